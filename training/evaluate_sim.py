"""`ausm eval sim`: simulated videos of which nothing is given. AP of the tracks found and whether ids last.

The videos are clips (`ausm simulate --frames`) or bags with a truth topic (`ausm simulate --seconds`), all under one
folder. Every object is labelled, so that false tracks count. Judge on videos made with --held-out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments, add_part_gap
from ausm.errors import InputError
from ausm.evaluate.davis_command import format_table
from ausm.io import open_frames
from ausm.metrics.discovery import DiscoveryScorer, DiscoveryScores
from ausm.scaling import video_fbf
from ausm.tracks import TrackState
from training.sim_store import PATTERN, SimClips

ROWS = ("prediction", "state wiped")
SHOWN = ("AP", "AP50", "AR10", "IDF1", "IDP", "IDR", "HOTA", "id_switches", "predicted_tracks", "true_tracks")
METADATA = "metadata.yaml"  # what makes a folder a bag


class TrueFrame(NamedTuple):
    """An image and what is on it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    truth: Mapping[int, np.ndarray]  # instance -> (H, W) bool, none empty


class TrueVideo(NamedTuple):
    """A video that can be read any number of times."""

    name: str
    read: Callable[[], Iterator[TrueFrame]]


def _clip(store: SimClips, index: int) -> TrueVideo:
    def read() -> Iterator[TrueFrame]:
        images, labels, _ = store.load(index)
        for image, values in zip(images, labels, strict=True):
            yield TrueFrame(image, {int(v): values == v for v in np.unique(values) if v})

    return TrueVideo(store.paths[index].stem, read)


def _bag(path: Path) -> TrueVideo:
    def read() -> Iterator[TrueFrame]:
        from ausm.bag_masks import TruthReader, find_truth

        topic = find_truth(path)
        if topic is None:
            raise InputError(f"{path}: no topic has 'truth' in its name")
        source, truth = open_frames(path), TruthReader(path, topic)
        for frame in source:
            masks = truth.at(frame.stamp_ns, source.height, source.width)
            if masks is None:
                raise InputError(f"{path}: no true masks for the image at {frame.stamp_ns / 1e9:.3f} s")
            yield TrueFrame(frame.image, {i: mask for i, mask in masks.items() if mask.any()})

    return TrueVideo(path.name, read)


def open_videos(root: Path) -> list[TrueVideo]:
    """The clips under a folder, or else its bags (it may be one itself), by name. InputError when it has neither."""
    if root.is_dir() and any(root.rglob(PATTERN)):
        store = SimClips(root)
        return [_clip(store, index) for index in range(len(store))]
    bags = sorted(path.parent for path in root.rglob(METADATA))
    if not bags:
        raise InputError(f"{root}: neither simulated clips ({PATTERN}) nor bags")
    return [_bag(path) for path in bags]


def discover(
    make_stream: Callable[[], Any], videos: Iterable[TrueVideo], wiped: bool = False, repeat: bool = False
) -> DiscoveryScores:
    """Run each video through a new stream and judge all together. wiped: the state is zeroed before every frame.

    What counts as found is what `ausm track` draws: tracks in state TRACKED. repeat: each video, its images held in
    memory, is run forward, backward and forward, the last pass counts. Raises InputError without true objects.
    """
    scorer = DiscoveryScorer()
    for video in videos:
        stream = make_stream()
        if repeat:
            _show_before(stream, [frame.image for frame in video.read()])
        for index, (image, truth) in enumerate(video.read()):
            if index == 0:
                scorer.start(*image.shape[:2])
            if wiped:
                stream.wipe_state()
            shown = [t for t in stream.step(image).tracks if t.state == TrackState.TRACKED and t.mask.any()]
            scorer.feed({t.track_id: t.mask for t in shown}, {t.track_id: t.score for t in shown}, truth)
    return scorer.finish()


def _show_before(stream: Any, images: list[np.ndarray]) -> None:
    """All passes of `video_fbf` but the last one, which is the video in its order."""
    if not images:
        return
    order, keep = video_fbf(range(len(images)))
    for index in order[: keep[0]]:
        stream.step(images[index])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm eval sim`."""
    parser.add_argument("--root", metavar="DIR", type=Path, required=True, help="folder of simulated clips or bags")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N videos")
    parser.add_argument("--controls", action="store_true", help="also with the state wiped before every frame")
    parser.add_argument("--score-threshold", metavar="P", type=float, default=0.5, help="of a discovery (0.5)")
    parser.add_argument("--repeat", action="store_true", help="run forward, backward, forward; the last pass counts")
    add_part_gap(parser)
    add_model_arguments(parser)


def _cell(value: float | int) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def run(args: argparse.Namespace) -> int:
    """Prints the table and one JSON object (percent and counts)."""
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit}: at least 1")
    videos = open_videos(args.root)[: args.limit]
    digest = weights.sha256(weights.resolve(args.checkpoint))
    model = ausm.load(args.checkpoint, device=args.device)
    config = ausm.StreamConfig(short_side=args.short_side, score_threshold=args.score_threshold, part_gap=args.part_gap)
    rows = ROWS if args.controls else ROWS[:1]
    results = {}
    for row in rows:
        shown = tqdm(videos, desc=row, unit="video", file=sys.stderr)
        results[row] = discover(
            lambda: ausm.Stream(model, seed=args.seed, config=config), shown, row == "state wiped", args.repeat
        )
    lines = [[row, *(_cell(getattr(result, name)) for name in SHOWN)] for row, result in results.items()]
    print(format_table([["row", *SHOWN], *lines]))
    figures: dict[str, Any] = dict(results["prediction"]._asdict())
    if args.controls:
        figures["controls"] = {row: result._asdict() for row, result in results.items() if row != "prediction"}
    settings = {"score_threshold": args.score_threshold, "part_gap": args.part_gap, "repeat": args.repeat}
    print(json.dumps(figures | settings | {"checkpoint_sha256": digest}))
    return 0
