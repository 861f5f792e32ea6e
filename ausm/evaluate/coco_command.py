"""`ausm eval coco`: average precision on single images."""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments, add_part_gap
from ausm.checks import check_out_folder
from ausm.errors import InputError
from ausm.evaluate.images import coco, deduped, photo_side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm eval coco`."""
    parser.add_argument("--images", metavar="DIR", type=Path, required=True)
    parser.add_argument("--annotations", metavar="FILE", type=Path, required=True, help="COCO json of instances")
    parser.add_argument("--class-agnostic", action="store_true", help="ignore classes and the class head")
    parser.add_argument("--head", default="coco", help="class head of the model (coco)")
    scaling = parser.add_mutually_exclusive_group()
    scaling.add_argument("--repeat", metavar="N", type=int, default=1, help="show every image N times (1)")
    scaling.add_argument("--traversal", action="store_true", help="show the image, four 90 %% windows and the image")
    parser.add_argument(
        "--dedupe",
        action=argparse.BooleanOptionalAction,
        help="one thing in one place, lower scores of what overlaps better masks (default: with --class-agnostic)",
    )
    parser.add_argument("--limit", metavar="N", type=int, help="only the N images of the lowest ids")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the detections as COCO results; those of a run that breaks off to FILE.partial",
    )
    add_part_gap(parser)
    add_model_arguments(parser, seed=False)


def run(args: argparse.Namespace) -> int:
    """Prints a line per figure (percent) and one JSON object; a figure without truth is null."""
    if args.out is not None:
        check_out_folder(args.out.parent)
        if args.out.is_dir():
            raise InputError(f"--out {args.out}: is a folder, a file is needed")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit}: at least 1")  # before the weights are loaded
    partial = None if args.out is None else args.out.with_name(f"{args.out.name}.partial")

    def progress(ids: list[int]) -> Iterable[int]:
        if partial is not None:  # here everything has been checked
            partial.unlink(missing_ok=True)  # an earlier run's is none of this one's
        return tqdm(ids, unit="image", file=sys.stderr)

    def keep(detections: list[dict[str, Any]], done: int, images: int) -> None:
        if args.out is None or partial is None or not done:
            return
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(detections))
        if done == images:
            partial.replace(args.out)
        else:
            print(f"ausm: the detections on the first {done} of {images} images are in {partial}", file=sys.stderr)

    digest = weights.sha256(weights.resolve(args.checkpoint))
    model = ausm.load(args.checkpoint, device=args.device)
    short_side = photo_side(model, args.short_side)
    result, _ = coco(
        model,
        args.images,
        args.annotations,
        class_agnostic=args.class_agnostic,
        head=args.head,
        repeat=args.repeat,
        traversal=args.traversal,
        dedupe=args.dedupe,
        part_gap=args.part_gap,
        short_side=short_side,
        limit=args.limit,
        progress=progress,
        keep=keep,
    )
    for name, value in result._asdict().items():
        print(f"{name:<10} {value:6.1f}" if isinstance(value, float) else f"{name:<10} {value:4d}")
    figures = {name: None if math.isnan(value) else value for name, value in result._asdict().items()}
    settings = {
        "dedupe": deduped(args.dedupe, args.class_agnostic),
        "part_gap": args.part_gap,
        "short_side": short_side,
    }
    print(json.dumps(figures | settings | {"checkpoint_sha256": digest}))
    return 0
