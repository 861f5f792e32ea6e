"""The semi-supervised protocol of DAVIS: the masks of the first frame are given, those of all others are wanted."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

import ausm
from ausm.errors import InputError, SizeError
from ausm.io import list_images, read_image
from ausm.masks import label_map, read_palette_png
from ausm.metrics.davis import ObjectScore, SequenceScorer, Statistics, mean_statistics
from ausm.tracks import StepOutput

CONTROLS = ("state wiped", "true history", "optical flow")
OnFrame = Callable[[str, str, np.ndarray], None]  # sequence, frame name, (H, W) label map


class Sequence(NamedTuple):
    """The files of one sequence, frame by frame."""

    name: str
    images: list[Path]
    truths: list[Path]


@dataclass(frozen=True)
class SequenceResult:
    """One sequence: scores per object, number of frames run and the seconds they took (reading included)."""

    name: str
    objects: tuple[ObjectScore, ...]
    frames: int
    seconds: float


@dataclass(frozen=True)
class DavisResult:
    """All sequences; the global figures are means over objects, in percent (decay in points)."""

    sequences: tuple[SequenceResult, ...]

    def _mean(self, measure: str) -> Statistics:
        values = [getattr(score, measure) for sequence in self.sequences for score in sequence.objects]
        return Statistics(*(100 * value for value in mean_statistics(values)))

    @property
    def j_statistics(self) -> Statistics:
        return self._mean("J")

    @property
    def f_statistics(self) -> Statistics:
        return self._mean("F")

    @property
    def J(self) -> float:
        return self.j_statistics.mean

    @property
    def F(self) -> float:
        return self.f_statistics.mean

    @property
    def JF(self) -> float:
        return (self.J + self.F) / 2

    @property
    def frames_per_second(self) -> float:
        return sum(s.frames for s in self.sequences) / max(1e-9, sum(s.seconds for s in self.sequences))


def _folder(root: Path, kind: str) -> Path:
    """root/kind/480p or root/kind, whichever exists."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    for folder in (root / kind / "480p", root / kind):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{root}: no folder {kind}, DAVIS has JPEGImages/[480p/]<sequence> and Annotations/[480p/]<sequence>"
    )


def list_sequences(root: Path) -> list[str]:
    """All sequences that have annotations. Raises InputError when there are none."""
    folder = _folder(root, "Annotations")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not names:
        raise InputError(f"{folder}: no sequence")
    return names


def find_sequence(root: Path, name: str) -> Sequence:
    """The files of a sequence. Raises InputError unless every image has its annotation."""
    folders = [_folder(root, kind) / name for kind in ("JPEGImages", "Annotations")]
    for folder in folders:
        if not os.path.isdir(folder):  # Path.is_dir raises OSError for a name that is too long
            raise InputError(f"sequence {name}: {folder} does not exist")
    images = list_images(folders[0])
    truths = [folders[1] / f"{path.stem}.png" for path in images]
    missing = [path.name for path in truths if not path.is_file()]
    if missing:
        raise InputError(f"{folders[1]}: {len(missing)} of {len(images)} annotations are missing, first {missing[0]}")
    if len(images) < 3:
        raise InputError(f"{folders[0]}: {len(images)} images, the protocol needs at least 3")
    return Sequence(name, images, truths)


def read_truth(path: Path, multi: bool) -> np.ndarray:
    """(H, W) uint8 labels; without `multi` (DAVIS 2016) whatever is not 0 is object 1."""
    labels = read_palette_png(path)
    return labels if multi else (labels > 0).astype(np.uint8)


def _masks(labels: np.ndarray, objects: Iterable[int]) -> np.ndarray:
    """(n, H, W) bool, one mask per object id."""
    return np.stack([labels == object_id for object_id in objects])


def _labels(output: StepOutput, of_track: dict[int, int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) label map of the prompted tracks."""
    tracks = [t for t in output.tracks if t.track_id in of_track and t.mask.any()]
    values = [of_track[t.track_id] for t in tracks]
    return label_map([t.mask for t in tracks], values, [t.score for t in tracks], size)


def _run_stream(
    stream: Any, images: Iterable[np.ndarray], truths: list[Path], multi: bool, control: str
) -> Iterator[np.ndarray]:
    """Label maps of all frames; the first is the given one.

    "state wiped": the recurrent state is zeroed before every frame. "true history": after each frame the true masks
    replace the predicted ones; an object that is absent at that frame cannot be drawn and keeps its prediction.
    """
    first = read_truth(truths[0], multi)
    objects = [int(v) for v in np.unique(first) if v]
    if not objects:
        raise InputError(f"{truths[0]}: no object to follow")
    of_track: dict[int, int] = {}
    for index, image in enumerate(images):
        if image.shape[:2] != first.shape:
            sizes = f"{image.shape[0]}x{image.shape[1]}, the first annotation {first.shape[0]}x{first.shape[1]}"
            raise SizeError(f"{truths[index].parent.name}: image {truths[index].stem} is {sizes}")
        if index == 0:
            of_track = dict(zip(stream.prompt(_masks(first, objects)), objects, strict=True))
            stream.step(image)
            yield first
            continue
        if control == "state wiped":
            stream.wipe_state()
        yield _labels(stream.step(image), of_track, first.shape)
        if control == "true history":
            truth = read_truth(truths[index], multi)
            present = [(track, value) for track, value in of_track.items() if (truth == value).any()]
            if present:
                stream.prompt(_masks(truth, [v for _, v in present]), track_ids=[t for t, _ in present])


def follow_by_flow(images: Iterable[np.ndarray], first: np.ndarray) -> Iterator[np.ndarray]:
    """Label maps that the first one becomes when DIS optical flow carries it from frame to frame."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    rows, columns = np.indices(first.shape, dtype=np.float32)
    labels, before = first, None
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if before is not None:
            motion = flow.calc(grey, before, None)  # type: ignore[call-overload]  # (H, W, 2): where a pixel was
            labels = cv2.remap(labels, columns + motion[:, :, 0], rows + motion[:, :, 1], cv2.INTER_NEAREST)
        before = grey
        yield labels


def run_sequence(
    make_stream: Callable[[], Any], sequence: Sequence, multi: bool, control: str = "", on_frame: OnFrame | None = None
) -> SequenceResult:
    """Runs and scores one sequence; see `davis`."""
    start = time.monotonic()
    images = (read_image(path) for path in sequence.images)
    if control == "optical flow":
        predictions = follow_by_flow(images, read_truth(sequence.truths[0], multi))
    else:
        predictions = _run_stream(make_stream(), images, sequence.truths, multi, control)
    scorer = SequenceScorer()
    scoring = 0.0
    for path, labels in zip(sequence.truths, predictions, strict=True):
        began = time.monotonic()
        truth = read_truth(path, multi)
        if truth.shape != labels.shape:
            sizes = f"{truth.shape[0]}x{truth.shape[1]}, its image {labels.shape[0]}x{labels.shape[1]}"
            raise SizeError(f"{sequence.name}: annotation {path.stem} is {sizes}")
        scorer.feed(labels, truth)
        if on_frame is not None:
            on_frame(sequence.name, path.stem, labels)
        scoring += time.monotonic() - began
    seconds = time.monotonic() - start - scoring
    return SequenceResult(sequence.name, scorer.finish(), len(sequence.images), seconds)


def davis(
    model: Any,
    root: str | Path,
    sequences: Iterable[str],
    short_side: int | None = None,
    *,
    multi: bool = False,
    control: str = "",
    seed: int = 0,
    on_frame: OnFrame | None = None,
) -> DavisResult:
    """J and F of a model; nothing is written to disk.

    model: as from `ausm.load`, in eval mode. root: DAVIS layout. short_side: pixels the model works at, None for its
    own. multi: several objects per sequence (DAVIS 2017). control: "" or one of CONTROLS ("optical flow" needs no
    model). on_frame: called with sequence, frame name and (H, W) label map of every frame. Raises InputError for
    files that are missing or do not fit.
    """
    if control and control not in CONTROLS:
        raise InputError(f"no control {control!r}, there are {CONTROLS}")

    def make_stream() -> Any:
        config = ausm.StreamConfig(discover=False, short_side=short_side)
        return ausm.Stream(model, discover=False, seed=seed, config=config)

    found = [find_sequence(Path(root), name) for name in sequences]
    return DavisResult(tuple(run_sequence(make_stream, sequence, multi, control, on_frame) for sequence in found))
