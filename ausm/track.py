"""`ausm track`: a video, folder or bag in; palette PNG masks, an overlay video and a table of tracks out."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

import ausm
from ausm.arguments import add_model_arguments, add_part_gap
from ausm.assemble import Geometry, check_finite
from ausm.checks import check_out_folder
from ausm.errors import AusmError, SizeError
from ausm.io import MISCOUNT, Frame, FrameSource, open_frames
from ausm.masks import MAX_PALETTE, box_of, label_map, read_prompt_png, write_palette_png
from ausm.pixel_decoder import Predictions
from ausm.tracks import Source, StepOutput, Track, TrackState
from ausm.visualize import VideoWriter, draw_tracks

EPILOG = """\
Outputs: DIR/masks/NAME.png (palette PNG, index = track id, 0 = background; NAME is the file name of a folder's image,
else the frame index in five digits), DIR/overlay.mp4, DIR/tracks.json. Where objects overlap, prompted ones win over
discovered ones, then the higher score. A prompt PNG with values 1..n starts n objects with those ids; a binary one
(0 and 255) starts id 1. Discovered objects get the lowest ids that the prompt does not use, in the order in which they
appear, also when the prompt is drawn on a later frame. On the prompt frame the masks are the prompt. A PNG holds ids up
to 255: further tracks are in the overlay and in tracks.json only, and counted in the last line.

tracks.json: "input", "kind", "rate", "height", "width"; "frames", each with "index", "name", "stamp_ns" and "tracks"
(id, score, box as x, y, width, height, and area in pixels); "tracks", each with "id", "name", "source" (prompt or
discovered), "first_frame", "last_frame", "frames_seen" and, with --class-head, "class_id", "class_name", "class_score":
the likeliest class by the mean of its probabilities over the frames so far, and that mean, which is often low (without:
-1, "", 0). The score of an object is that it is one, whatever its class.
"""


class StreamLike(Protocol):
    """What `track` needs of an `ausm.Stream`."""

    @property
    def current(self) -> StepOutput | None: ...

    @property
    def last_predictions(self) -> tuple[Predictions, Geometry] | None: ...

    def step(self, image: np.ndarray) -> StepOutput: ...

    def prompt(self, masks: np.ndarray) -> Any: ...


class Prompt(NamedTuple):
    """Objects drawn on one frame."""

    masks: np.ndarray  # (n, H, W) bool
    ids: list[int]  # the ids the n objects shall have in the output
    frame: int  # index of the frame they are drawn on


class Summary(NamedTuple):
    """What `track` wrote."""

    frames: int
    tracks: int
    prompted: int
    discovered: int
    not_in_png: int  # tracks whose id is above 255
    seconds: float
    overlay_codec: str


class _Ids:
    """Ids of the output: those of the prompt are kept free for it, the others are given out in order."""

    def __init__(self, reserved: list[int]) -> None:
        self._reserved = frozenset(reserved)
        self._of_stream: dict[int, int] = {}
        self._next = 1

    def bind(self, stream_ids: list[int], ids: list[int]) -> None:
        self._of_stream.update(zip(stream_ids, ids, strict=True))

    def __getitem__(self, stream_id: int) -> int:
        if stream_id not in self._of_stream:
            while self._next in self._reserved:
                self._next += 1
            self._of_stream[stream_id] = self._next
            self._next += 1
        return self._of_stream[stream_id]


def read_prompt(path: Path, frame: int, source: FrameSource) -> Prompt:
    """The objects of a prompt PNG. Raises SizeError unless it has the input's size, AusmError for a frame too late."""
    masks, ids = read_prompt_png(path)
    height, width = masks.shape[1:]
    if (height, width) != (source.height, source.width):
        raise SizeError(f"prompt {path} is {height}x{width}, the input {source.height}x{source.width} (height x width)")
    if frame < 0:
        raise AusmError(f"prompt frame {frame}, frames are counted from 0")
    spare = MISCOUNT if source.kind == "video" else 0
    if source.count is not None and frame >= source.count + spare:
        raise AusmError(f"prompt frame {frame}, the input has frames 0..{source.count - 1}")
    return Prompt(masks, ids, frame)


def _visible(output: StepOutput, ids: _Ids) -> list[tuple[int, Track]]:
    """Output id and track of every object seen on this frame, in order of their ids in the stream."""
    tracks = sorted((t for t in output.tracks if t.state == TrackState.TRACKED), key=lambda t: t.track_id)
    return [(ids[t.track_id], t) for t in tracks]


def _labels(visible: list[tuple[int, Track]], size: tuple[int, int], given: Prompt | None) -> np.ndarray:
    """(H, W) uint16 label map of one frame; `given`: the prompt drawn on this frame, which overrides."""
    replaced = given.ids if given else []
    drawable = [(i, t) for i, t in visible if i <= MAX_PALETTE and i not in replaced]
    priority = [t.score + (2.0 if t.source == Source.PROMPT else 0.0) for _, t in drawable]
    labels = label_map([t.mask for _, t in drawable], [i for i, _ in drawable], priority, size)
    if given is not None:
        for mask, value in zip(given.masks, given.ids, strict=True):
            labels[mask] = value
    return labels


class _TrackTable:
    """Writes tracks.json frame by frame, so that only one summary per track is held."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path, self._partial = path, path.with_suffix(".json.partial")
        self._file: IO[str] = self._partial.open("w")
        self._file.write(json.dumps(head)[:-1] + ', "frames": [')
        self._tracks: dict[int, dict[str, Any]] = {}
        self._frames = 0

    def add(self, frame: Frame, visible: list[tuple[int, Track]]) -> None:
        rows = []
        for track_id, track in visible:
            row = {"id": track_id, "score": round(float(track.score), 4), "box": list(box_of(track.mask))}
            rows.append(row | {"area": int(np.count_nonzero(track.mask))})
            first = {"id": track_id, "name": track.name, "source": Source(track.source).name.lower()}
            entry = self._tracks.setdefault(track_id, first | {"first_frame": frame.index, "frames_seen": 0})
            entry["frames_seen"] += 1
            entry |= {"class_id": int(track.class_id), "class_name": track.class_name}
            entry |= {"class_score": round(float(track.class_score), 4), "last_frame": frame.index}
        line = {"index": frame.index, "name": frame.name, "stamp_ns": frame.stamp_ns, "tracks": rows}
        self._file.write((",\n" if self._frames else "\n") + json.dumps(line))
        self._frames += 1

    def finish(self) -> list[dict[str, Any]]:
        """Completes the file under its own name; returns the summaries of the tracks by id."""
        tracks = [self._tracks[i] for i in sorted(self._tracks)]
        self._file.write('\n], "tracks": ' + json.dumps(tracks) + "}\n")
        self._file.close()
        self._partial.replace(self._path)
        return tracks

    def abandon(self) -> None:
        """Closes the file. Without a frame nothing of it stays; else it tells the next run whose the masks are."""
        self._file.close()
        if not self._frames:
            self._partial.unlink(missing_ok=True)


@contextmanager
def _open_table(path: Path, head: dict[str, Any]) -> Iterator[_TrackTable]:
    table = _TrackTable(path, head)
    try:
        yield table
    finally:
        table.abandon()


def _files(out: Path) -> tuple[Path, Path]:
    """The overlay and the table."""
    return out / "overlay.mp4", out / "tracks.json"


def check_out(out: Path, source: FrameSource) -> None:
    """Raises AusmError when the results cannot be written to `out`, or would replace what is not ours."""
    masks = out / "masks"
    check_out_folder(out)
    check_out_folder(masks)
    if source.path.resolve() == masks.resolve():
        raise AusmError(f"the masks would overwrite the input {source.path}")
    for path in (*_files(out), *(masks.iterdir() if masks.exists() else ())):
        if path.exists() and path.samefile(source.path):
            raise AusmError(f"the results would overwrite the input {source.path}")
    found = len(list(masks.iterdir())) if masks.exists() else 0
    if found and not any(out.glob("tracks.json*")):
        raise AusmError(f"{masks} already holds {found} files that are not of an earlier run")


def _prepare(out: Path, source: FrameSource) -> Path:
    """DIR/masks, empty. Removes the results of an earlier run, and nothing else: its table tells of other masks."""
    check_out(out, source)
    masks = out / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    for path in masks.iterdir():
        if path.suffix == ".png":
            path.unlink()
    for path in _files(out):
        path.unlink(missing_ok=True)
    return masks


def track(
    stream: StreamLike, source: FrameSource, out: Path, prompt: Prompt | None = None, max_frames: int | None = None
) -> Summary:
    """Runs a fresh stream over all frames, or the first `max_frames`, and writes `out`.

    Raises AusmError unless every frame was written.
    """
    masks_dir, (overlay_path, table_path) = _prepare(out, source), _files(out)
    ids = _Ids(prompt.ids if prompt else [])
    start, frames, size = time.monotonic(), 0, (source.height, source.width)
    head = {"input": str(source.path), "kind": source.kind, "rate": source.rate, "height": size[0], "width": size[1]}
    with _open_table(table_path, head) as table:
        with VideoWriter(overlay_path, source.rate or 24.0) as video:
            total = min(source.count or max_frames, max_frames) if max_frames else source.count
            for frame in tqdm(islice(source, max_frames), total=total, unit="frame", file=sys.stderr):
                given = prompt if prompt and prompt.frame == frame.index else None
                if given and frame.index == 0:  # before the first step: the prompt is part of the history it starts on
                    ids.bind(list(stream.prompt(given.masks)), given.ids)
                output = stream.step(frame.image)
                check_finite(output, stream.last_predictions)
                if given and frame.index > 0:
                    ids.bind(list(stream.prompt(given.masks)), given.ids)
                    output = stream.current or output
                visible = _visible(output, ids)
                write_palette_png(masks_dir / f"{frame.name}.png", _labels(visible, size, given))
                drawn = [t._replace(track_id=i) for i, t in visible]
                video.write(draw_tracks(frame.image, drawn))
                table.add(frame, visible)
                frames += 1
        if prompt and prompt.frame >= frames:
            raise AusmError(f"prompt frame {prompt.frame}, the input has frames 0..{frames - 1}")
        tracks = table.finish()
    prompted = sum(t["source"] == "prompt" for t in tracks)
    hidden = sum(t["id"] > MAX_PALETTE for t in tracks)
    seconds = time.monotonic() - start
    return Summary(frames, len(tracks), prompted, len(tracks) - prompted, hidden, seconds, video.codec)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm track`."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", metavar="INPUT", type=Path, help="video file, folder of images or rosbag2")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--prompt", metavar="MASK.png", type=Path, help="objects to follow")
    parser.add_argument("--prompt-frame", metavar="N", type=int, help="frame the prompt is drawn on (0)")
    parser.add_argument(
        "--discover",
        action=argparse.BooleanOptionalAction,
        help="find objects that nobody prompted (default: only without --prompt)",
    )
    parser.add_argument("--max-frames", metavar="N", type=int, help="stop after so many frames")
    parser.add_argument("--topic", help="image topic of a bag that holds several")
    words = "least objectness of a discovery (0.5); its score is this times the certainty of the mask and may be lower"
    parser.add_argument("--score-threshold", metavar="P", type=float, default=0.5, help=words)
    words = "least objectness at which a prompted object is shown (0: its mask alone decides; the ROS node has 0.4)"
    parser.add_argument("--prompt-threshold", metavar="P", type=float, default=0.0, help=words)
    parser.add_argument("--class-head", metavar="NAME", help="class head that names objects; nano: coco, sim (none)")
    add_part_gap(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Tracks and prints a line for people and one JSON object."""
    source = open_frames(args.input, args.topic)
    if args.prompt is None and args.prompt_frame is not None:
        raise AusmError("--prompt-frame goes with --prompt")
    drawn_on = args.prompt_frame or 0
    if args.max_frames is not None and args.max_frames <= drawn_on:
        raise AusmError(f"--max-frames {args.max_frames}: at least 1, and beyond --prompt-frame {drawn_on}")
    prompt = read_prompt(args.prompt, drawn_on, source) if args.prompt else None
    discover = prompt is None if args.discover is None else args.discover
    if prompt is None and not discover:
        raise AusmError("--no-discover without --prompt: there is nothing to follow")
    check_out(args.out, source)
    config = ausm.StreamConfig(
        discover=discover,
        score_threshold=args.score_threshold,
        prompt_threshold=args.prompt_threshold,
        part_gap=args.part_gap,
        head=args.class_head or None,
        short_side=args.short_side,
    )
    model = ausm.load(args.checkpoint, device=args.device)
    stream = ausm.Stream(model, discover=discover, seed=args.seed, config=config)
    if earlier := len(list((args.out / "masks").glob("*.png"))):
        print(f"ausm: replaces the {earlier} masks of an earlier run in {args.out}", file=sys.stderr)
    result = track(stream, source, args.out, prompt, args.max_frames)
    rate = result.frames / max(1e-9, result.seconds)
    print(
        f"{result.frames} frames in {result.seconds:.1f} s ({rate:.1f}/s): {result.prompted} prompted and "
        f"{result.discovered} discovered tracks in {args.out}"
    )
    if result.not_in_png:
        print(f"{result.not_in_png} tracks have an id above {MAX_PALETTE} and are in tracks.json and the overlay only")
    print(json.dumps(result._asdict() | {"fps": rate, "out": str(args.out), "checkpoint": str(args.checkpoint)}))
    return 0
