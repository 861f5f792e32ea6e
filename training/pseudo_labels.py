"""Labels of a model's own for photos of which only some objects are labelled.

python -m training.pseudo_labels --weights nano --annotations R/instances.json --images R/images --out R/more.json

Writes the same COCO table with more annotations: what the model detects and no label covers. Some are wrong
(docs/training.md says how often), so the source stays one without exhaustive labels: `exhaustive = false`, `head = ""`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ausm import weights
from ausm.checks import check_out_folder
from ausm.errors import AusmError, InputError
from ausm.evaluate.images import detect, load_annotations, read_annotated
from ausm.metrics.tubes import encode_segmentation

LEAST = 0.5  # score of `detect`: objectness, lowered by Soft-NMS
COVERED = 0.3  # of the smaller of the two masks: what a label covers that much is taken for the labelled thing
MIN_AREA = 200  # pixels of the photo


def covered(mask: np.ndarray, labels: list[np.ndarray]) -> bool:
    """Whether a label shares more than COVERED of the smaller of the two. All (H, W) bool, none empty."""
    return any((mask & label).sum() > COVERED * min(mask.sum(), label.sum()) for label in labels)


def add_labels(
    model: Any, annotations: Path, images: Path, least: float = LEAST, short_side: int | None = None
) -> tuple[dict[str, Any], int]:
    """The table of `annotations` with what `model` detects added, best first in every image, each with its `score`; and
    how many were added.

    They get the table's first category: their class is not known. Raises InputError for a table that is none, a missing
    photo, and one of another size than annotated.
    """
    truth = load_annotations(annotations)
    table: dict[str, Any] = json.loads(annotations.read_text())
    if not 0 < least <= 1:
        raise InputError(f"least {least}: a score in 0..1 that is not 0")
    number = max((row["id"] for row in table["annotations"]), default=0)
    if not truth.cats:
        raise InputError(f"{annotations}: lists no category")
    category, before = min(truth.cats), len(table["annotations"])
    for image_id in tqdm(sorted(truth.imgs), unit="image", file=sys.stderr):
        image = read_annotated(truth.imgs[image_id], images)
        found = detect(model, [image], short_side, dedupe=True)
        labels = [mask for row in truth.imgToAnns[image_id] if (mask := truth.annToMask(row) > 0).any()]
        for mask, score in zip(found.masks, found.scores, strict=True):
            area = int(mask.sum())
            if score < least or area < MIN_AREA or covered(mask, labels):
                continue
            labels.append(mask)
            number += 1
            runs = encode_segmentation(mask)
            row = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": 0, "area": area}
            table["annotations"].append(row | {"score": float(score), "segmentation": runs})
    return table, len(table["annotations"]) - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="name or path of the checkpoint that labels")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO table")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the table with more labels")
    parser.add_argument("--least", type=float, default=LEAST, help="least score of a label (default %(default)s)")
    parser.add_argument("--short-side", type=int, help="working size in pixels (default: as `ausm eval coco`)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        check_out_folder(args.out.absolute().parent)
        if args.out.is_dir():
            raise InputError(f"--out {args.out} is a folder, a file is needed")
        if args.out.resolve() == args.annotations.resolve():
            raise InputError(f"--out {args.out} would overwrite the labels it is made from")
        with torch.autocast("cpu", torch.bfloat16):
            model = weights.load(args.weights, "cpu")
            table, added = add_labels(model, args.annotations, args.images, args.least, args.short_side)
    except AusmError as error:
        print(f"pseudo_labels: error: {error}", file=sys.stderr)
        return 2
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(table))
    print(f"{args.out}: {len(table['annotations'])} labels, {added} of them added")
    return 0


if __name__ == "__main__":
    sys.exit(main())
