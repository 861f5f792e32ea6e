"""`ausm eval occlusion`: is an object found again after it was hidden, and is it the memory that finds it?

The benchmark is no data but the options of `ausm simulate` below: forty clips of meshes that no training clip shows, in
each of which one object is out of sight for 5 to 30 frames, among look-alikes (`training.sim_occlusion`). `--make`
renders it. The object is given by its mask on the first frame that shows it; `ausm.metrics.recovery` says what counts.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments, add_part_gap
from ausm.errors import InputError
from ausm.evaluate.davis_command import format_table
from ausm.evaluate.semi_supervised import follow_by_flow
from ausm.metrics.recovery import Absence, Outcome, judge_recovery, plan_absence
from training import simulate
from training.sim_clip import as_record
from training.sim_occlusion import WAYS
from training.sim_store import SimClips

# 40 clips of 60 frames; no photos, so that anyone can render it
BENCHMARK = (
    *("--frames", "2400", "--clip-length", "60", "--size", "256x448"),
    *("--scenario", "occlusion", "--held-out", "--seed", "7100"),
)
ROWS = ("prediction", "state wiped", "true history", "optical flow", "copy first mask")


class HiddenClip(NamedTuple):
    """One clip of the benchmark with what is to be found out in it."""

    name: str
    way: str  # how the object vanishes
    images: np.ndarray  # (T, H, W, 3) uint8 RGB
    labels: np.ndarray  # (T, H, W) uint8
    target: int  # its label
    absence: Absence

    @property
    def truth(self) -> np.ndarray:
        """(T, H, W) bool."""
        truth: np.ndarray = self.labels == self.target
        return truth

    @property
    def span(self) -> range:
        """Frames that are run: from the prompt to the last one judged."""
        return range(self.absence.prompt, self.absence.judged[-1] + 1)


class Case(NamedTuple):
    """One clip under one row."""

    name: str
    way: str
    hidden: int  # frames
    outcome: Outcome


def read_clips(store: SimClips, limit: int | None = None) -> Iterator[HiddenClip]:
    """The first `limit` clips whose object returns enough to be judged. InputError for clips of another scenario."""
    for index in range(min(len(store), limit or len(store))):
        about = store.meta(index)
        if "hidden" not in about:
            raise InputError(f"{store.paths[index]}: hides no object; make clips with --scenario occlusion")
        images, labels, _ = store.load(index)
        areas = np.count_nonzero(labels == about["target"], axis=(1, 2))
        absence = plan_absence(areas, *about["hidden"])
        if absence is not None:
            yield HiddenClip(store.paths[index].stem, about["way"], images, labels, about["target"], absence)


def _by_stream(stream: Any, clip: HiddenClip, row: str) -> Iterator[np.ndarray]:
    """The mask under the object's id, frame by frame of the span.

    "true history": until the object vanishes its true mask replaces each predicted one; from then on nothing is told.
    """
    track_id = 0
    for t in clip.span:
        if t == clip.absence.prompt:
            track_id = stream.prompt(clip.truth[t][None])[0]
        elif row == "state wiped":
            stream.wipe_state()
        output = stream.step(clip.images[t])
        yield next((track.mask for track in output.tracks if track.track_id == track_id), np.zeros_like(clip.truth[t]))
        if row == "true history" and clip.absence.prompt < t < clip.absence.start and clip.truth[t].any():
            stream.prompt(clip.truth[t][None], track_ids=[track_id])


def _masks(make_stream: Callable[[], Any], clip: HiddenClip, row: str) -> Iterator[np.ndarray]:
    first = clip.truth[clip.absence.prompt]
    if row == "copy first mask":
        return (first for _ in clip.span)
    if row == "optical flow":
        carried = follow_by_flow((clip.images[t] for t in clip.span), first.astype(np.uint8))
        return (labels > 0 for labels in carried)
    return _by_stream(make_stream(), clip, row)


def recover(make_stream: Callable[[], Any], clips: Iterable[HiddenClip], rows: Sequence[str] = ROWS) -> dict[str, Any]:
    """Row -> cases. make_stream: a new stream, as of one model. Nothing is written."""
    cases: dict[str, list[Case]] = {row: [] for row in rows}
    for clip in clips:
        for row in rows:
            masks = dict(zip(clip.span, _masks(make_stream, clip, row), strict=True))
            outcome = judge_recovery(masks, clip.labels, clip.target, clip.absence)
            cases[row].append(Case(clip.name, clip.way, clip.absence.stop - clip.absence.start, outcome))
    return cases


def summarise(cases: Sequence[Case]) -> dict[str, Any]:
    """Figures of one row, in percent; None for a way of hiding without a clip."""

    def share(values: list[float]) -> float | None:
        return 100 * sum(values) / len(values) if values else None

    outcomes = [case.outcome for case in cases]
    return {
        "recovered": share([o.recovered for o in outcomes]),
        "by_way": {way: share([c.outcome.recovered for c in cases if c.way == way]) for way in WAYS},
        "iou": share([o.iou for o in outcomes]),
        "taken": share([o.taken for o in outcomes]),
        "lost": share([o.lost for o in outcomes]),
        "quiet": share([o.quiet for o in outcomes]),
    }


def digest_of(store: SimClips) -> str:
    """sha256 over the files: two machines that print the same one judged the same pixels."""
    digest = hashlib.sha256()
    for path in store.paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _benchmark(root: Path) -> argparse.Namespace:
    """What `ausm simulate` is told to make BENCHMARK under `root`."""
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return parser.parse_args([*BENCHMARK, "--resume", "--out", str(root)])


def is_benchmark(store: SimClips) -> bool:
    """Whether the clips are all of BENCHMARK, by the record that `ausm simulate` keeps beside them."""
    manifest, args = store.root / simulate.MANIFEST, _benchmark(store.root)
    wanted = as_record(simulate.clip_settings(args))
    complete = len(store) == args.frames // args.clip_length
    return complete and manifest.is_file() and json.loads(manifest.read_text()) == wanted


def make_benchmark(root: Path) -> None:
    """Render the clips that are missing under `root`. Raises AusmError."""
    simulate.make(_benchmark(root))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm eval occlusion`."""
    parser.add_argument(
        "--root", metavar="DIR", type=Path, required=True, help="clips: ausm simulate " + " ".join(BENCHMARK)
    )
    parser.add_argument("--make", action="store_true", help="render the clips of the benchmark that DIR lacks")
    parser.add_argument("--rows", metavar="LIST", default=",".join(ROWS), help="rows, with commas (all)")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N clips")
    parser.add_argument("--cases", action="store_true", help="print a line per clip too")
    parser.add_argument(
        "--prompt-threshold", metavar="P", type=float, default=0.0, help="least probability at which it is shown (0)"
    )
    parser.add_argument(
        "--discover", action="store_true", help="everything else is found and followed too, as on a robot (prompt only)"
    )
    add_part_gap(parser)
    add_model_arguments(parser)


def _cells(figures: dict[str, Any]) -> list[str]:
    numbers = [
        figures["recovered"],
        *figures["by_way"].values(),
        *(figures[k] for k in ("iou", "taken", "lost", "quiet")),
    ]
    return ["-" if number is None else f"{number:.1f}" for number in numbers]


def run(args: argparse.Namespace) -> int:
    """Prints the table and one JSON object (percent)."""
    rows = [row.strip() for row in args.rows.split(",")]
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        raise InputError(f"no row {unknown[0]!r}, there are: {', '.join(ROWS)}")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit}: at least 1")
    if args.make:
        make_benchmark(args.root)
    store = SimClips(args.root)
    digest = weights.sha256(weights.resolve(args.checkpoint))
    model = ausm.load(args.checkpoint, device=args.device)
    config = ausm.StreamConfig(
        discover=args.discover,
        short_side=args.short_side,
        prompt_threshold=args.prompt_threshold,
        part_gap=args.part_gap,
    )
    total = min(len(store), args.limit or len(store))
    clips = tqdm(read_clips(store, args.limit), total=total, unit="clip", file=sys.stderr)
    cases = recover(lambda: ausm.Stream(model, discover=args.discover, seed=args.seed, config=config), clips, rows)
    figures = {row: summarise(cases[row]) for row in rows}
    print(
        format_table(
            [["row", "recovered", *WAYS, "IoU", "taken", "lost", "quiet"], *([r, *_cells(figures[r])] for r in rows)]
        )
    )
    judged = cases[rows[0]]
    counts = {way: sum(case.way == way for case in judged) for way in WAYS}
    print(f"{len(judged)} of {total} clips judged: " + ", ".join(f"{n} {way}" for way, n in counts.items()))
    if args.cases:
        for i, case in enumerate(judged):
            found = "  ".join(f"{100 * cases[row][i].outcome.iou:5.1f}" for row in rows)
            print(f"{case.name}  {case.way:<6}  {case.hidden:2d} frames  {found}")
    whole = is_benchmark(store) and args.limit is None
    if not whole:
        print("not the whole benchmark: these figures compare with none but their own")
    report = {"rows": figures, "clips": len(judged), "clips_by_way": counts, "benchmark": whole}
    about = {
        "discover": args.discover,
        "part_gap": args.part_gap,
        "clips_sha256": digest_of(store),
        "checkpoint_sha256": digest,
    }
    print(json.dumps(report | about))
    return 0
