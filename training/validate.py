"""Validation pictures: a few fixed clips, filmed plainly, run through the recurrent form with the averaged weights.

The clips are items of the training sources. They show whether tracking works at all and what it looks like; scores come
from `ausm eval` on data that was left out.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ausm.config import AusmConfig
from ausm.inference import mark_constant
from ausm.metrics.davis import jaccard
from ausm.model import AUSM
from ausm.stream import Stream
from ausm.visualize import contact_sheet, draw_caption, draw_tracks
from training.augment import make_clip
from training.clips import Clip, ClipDataError, plain
from training.loader import Source
from training.stages import Stage

log = logging.getLogger(__name__)

CLIPS = 4
TRIES = 10  # items looked at for one clip: it should show an object on its first frame
STREAM = 0x76616C  # a random stream of its own beside the seed


class Validated(NamedTuple):
    """Mean J (0..1) of the prompted objects on all frames but the first, None without one; sheets (H, W, 3) by name."""

    J: float | None
    pictures: dict[str, np.ndarray]


class Validation:
    """The clips of one run: the same for the same sources, stage and seed. They are read when first needed."""

    def __init__(self, sources: Sequence[Source], stage: Stage, seed: int) -> None:
        used = sorted((s for s in sources if s.weight > 0), key=lambda s: -s.weight)
        self._sources = [used[i % len(used)] for i in range(CLIPS)]
        self._config, self._seed = plain(stage.frames, stage.size, stage.max_instances), seed
        self._clips: list[Clip] | None = None

    def run(self, config: AusmConfig, values: Mapping[str, Tensor], device: torch.device, bf16: bool) -> Validated:
        """`values`: a whole state dict of a model of this configuration; it is copied."""
        if self._clips is None:
            found = (self._find(i, source) for i, source in enumerate(self._sources))
            self._clips = [clip for clip in found if clip is not None]
        model = AUSM(config)
        model.load_state_dict(values)
        model = mark_constant(model.eval().to(device))
        overlaps: list[float] = []
        pictures: dict[str, np.ndarray] = {}
        for i, clip in enumerate(self._clips):
            given = np.flatnonzero(clip.masks[:, 0].any((1, 2)))[: config.N_id]
            if len(given):
                pictures[f"{i}-prompted"] = _follow(model, clip, given, overlaps, bf16)
            if clip.exhaustive or not len(given):
                pictures[f"{i}-discovered"] = _follow(model, clip, given[:0], overlaps, bf16)
        return Validated(float(np.mean(overlaps)) if overlaps else None, pictures)

    def _find(self, number: int, source: Source) -> Clip | None:
        clip = None
        for attempt in range(TRIES):
            rng = np.random.default_rng([self._seed, STREAM, number, attempt])
            try:
                clip = make_clip(source.reader, int(rng.integers(len(source.reader))), rng, self._config, None)
            except ClipDataError as error:
                log.warning("validation: %s", error)
                continue
            if clip.masks[:, 0].any():
                break
        return clip


def _follow(model: AUSM, clip: Clip, given: np.ndarray, overlaps: list[float], bf16: bool) -> np.ndarray:
    """The clip as a stream, the objects `given` (indices) prompted, or discovered if none is: a sheet of three frames,
    image beside overlay. J of every given object and frame after the first is appended to `overlaps`."""
    prompted = len(given) > 0
    stream = Stream(model, discover=not prompted, precision="bf16" if bf16 else "fp32")
    ids = stream.prompt(clip.masks[given, 0]) if prompted else []
    last = len(clip.images) - 1
    cells: list[np.ndarray] = []
    for t, image in enumerate(clip.images):
        tracks = stream.step(image).tracks
        found = {track.track_id: track.mask for track in tracks}
        nothing = np.zeros(image.shape[:2], bool)
        J = [jaccard(found.get(i, nothing), clip.masks[k, t]) for i, k in zip(ids, given, strict=True)]
        if t:
            overlaps += J
        if t in (0, (last + 1) // 2, last):
            words = f"J {np.mean(J):.2f}" if prompted else "nothing given"
            cells += [draw_caption(image, clip.source), draw_caption(draw_tracks(image, tracks), f"{t}: {words}")]
    return contact_sheet(cells, columns=2, width=min(480, clip.images.shape[2]))
