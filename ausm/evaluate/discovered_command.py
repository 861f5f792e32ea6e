"""`ausm eval youtube-vis` and `ausm eval ovis`: results.json in a zip, and AP where the annotations are local."""

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments, add_part_gap
from ausm.checks import check_out_folder
from ausm.class_names import CLASS_NAMES
from ausm.errors import AusmError
from ausm.evaluate.discovered import HEADS, PER_FRAME, judge, load_video_set, run_discovered, to_results
from ausm.evaluate.manifest import Manifest, data_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both commands; `benchmark` is set by the dispatcher."""
    parser.add_argument("--root", metavar="DIR", type=Path, required=True, help="the dataset, or one split of it")
    parser.add_argument("--split", default="valid", help="train, valid or test (valid)")
    parser.add_argument("--annotations", metavar="FILE", type=Path, help="instead of the one found under --root")
    parser.add_argument("--images", metavar="DIR", type=Path, help="instead of the one found under --root")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for results.json, its zip, manifest")
    parser.add_argument("--class-agnostic", action="store_true", help="ignore classes (for models without this head)")
    parser.add_argument("--head", help="class head (the one whose names, or else number, fit)")
    parser.add_argument("--score-threshold", metavar="P", type=float, default=0.5, help="of a discovery (0.5)")
    parser.add_argument("--top", metavar="K", type=int, help="objects shown per frame (YouTube-VIS 10, OVIS 20)")
    parser.add_argument("--repeat", action="store_true", help="run forward, backward, forward; the last pass counts")
    add_part_gap(parser)
    add_model_arguments(parser)


def choose_head(known: dict[str, int], wanted: str | None, benchmark: str, names: Sequence[str]) -> str:
    """The class head for categories of these names, in the order of their ids.

    Two editions of a benchmark may have equally many categories: unless a head is wanted, their names tell which it is,
    else their number does. Raises AusmError when no head of the model fits, or several do.
    """
    of_file = tuple(name.replace("_", " ").strip().lower() for name in names)
    heads = (wanted,) if wanted else HEADS[benchmark]
    if not wanted:
        heads = tuple(head for head in heads if CLASS_NAMES.get(head) == of_file) or heads
    fitting = [head for head in heads if known.get(head) == len(names)]
    if len(fitting) > 1:
        raise AusmError(
            f"{len(names)} categories of unknown names fit the heads {' and '.join(fitting)}: choose one with --head"
        )
    if not fitting:
        asked = " or ".join(heads)
        raise AusmError(f"{len(names)} categories, no head {asked} of that size among {known}: try --class-agnostic")
    return fitting[0]


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished, writes the submission, prints one JSON object (percent; null without labels)."""
    check_out_folder(args.out)
    if args.top is not None and args.top < 1:
        raise AusmError(f"--top {args.top}: at least 1")
    videos = load_video_set(args.root, args.split, args.annotations, args.images)
    top = args.top if args.top is not None else PER_FRAME[args.benchmark]
    digest = weights.sha256(weights.resolve(args.checkpoint))
    model = ausm.load(args.checkpoint, device=args.device)
    known = dict(model.config.heads)
    head = None if args.class_agnostic else choose_head(known, args.head, args.benchmark, videos.names)
    settings = {"benchmark": args.benchmark, "checkpoint_sha256": digest, "head": head, "top": top}
    settings |= {"score_threshold": args.score_threshold, "part_gap": args.part_gap, "repeat": args.repeat}
    settings |= {"short_side": args.short_side, "seed": args.seed, "split": args.split}
    settings |= data_settings(videos.annotations, root=args.root, images=videos.images)
    manifest = Manifest(args.out / "manifest.json", settings)
    config = ausm.StreamConfig(
        score_threshold=args.score_threshold, part_gap=args.part_gap, short_side=args.short_side, head=head
    )
    parts = args.out / "videos"
    parts.mkdir(exist_ok=True)
    results: list[dict[str, Any]] = []
    for video_id, video in tqdm(videos.videos.items(), unit="video", file=sys.stderr):
        part = parts / f"{video_id}.json"
        if manifest.get("", str(video_id)) is None or not part.is_file():
            rows = run_discovered(ausm.Stream(model, seed=args.seed, config=config), video, top, args.repeat)
            part.write_text(json.dumps(to_results(video, rows, videos.categories)))
            manifest.put("", str(video_id), {"tracks": len(rows)})
        results += json.loads(part.read_text())
    (args.out / "results.json").write_text(json.dumps(results))
    archive = args.out / "submission.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.write(args.out / "results.json", "results.json")
    print(f"{len(results)} tracks on {len(videos.videos)} videos; submission: {archive}")
    figures: dict[str, Any] = dict.fromkeys(("AP", "AP50", "AP75", "AR1", "AR10"))
    if videos.truth:
        scores = judge(videos, results, args.class_agnostic)._asdict()
        figures = {name: None if math.isnan(value) else 100 * value for name, value in scores.items()}
        print("  ".join(f"{name} {'-' if value is None else format(value, '.1f')}" for name, value in figures.items()))
    else:
        print("the annotations are not local: the server of the benchmark gives the score")
    print(json.dumps(figures | {"videos": len(videos.videos), "tracks": len(results), "checkpoint_sha256": digest}))
    return 0
