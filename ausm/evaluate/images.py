"""Instances on single images: COCO average precision of the detection queries, with inference scaling."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ausm.assemble import Geometry, exclusive, full_size_masks, keep_detections, mask_confidence, resize_image
from ausm.checks import check_size
from ausm.config import StreamConfig
from ausm.errors import InputError, SizeError
from ausm.io import read_image
from ausm.marker import marks_from_logits
from ausm.metrics.tracking import pairwise_iou
from ausm.metrics.tubes import encode_segmentation
from ausm.parts import keep_own_parts
from ausm.scaling import image_repeat, spatial_traversal

TRACK_THRESHOLD = 0.9  # App. A: foreground probability above which a showing's detection becomes a track of the next
DUPLICATE_IOU = 0.7  # between showings, as the stream's `dedupe_iou`
PHOTO_SIDE = {"nano": 384}  # by model, where photos gain by a size too slow for a stream (docs/checkpoints/nano.md)
SIGMA = 0.5  # of the Gaussian of Soft-NMS (Bodla et al. 2017)
MOST = 100  # detections per image that COCO looks at


class Detections(NamedTuple):
    """On one image, best score first."""

    masks: list[np.ndarray]  # n times (H, W) bool; masks may overlap
    scores: np.ndarray  # (n,) 0..1
    classes: np.ndarray  # (n,) index into the head's classes; 0 without a head


class CocoResult(NamedTuple):
    """In percent; nan where there is no truth. AR10: recall of the ten best per image, mean over overlaps."""

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR1: float
    AR10: float
    AR100: float
    images: int


@torch.inference_mode()
def detect(
    model: Any,
    showings: Sequence[np.ndarray],
    short_side: int | None = None,
    head: str | None = None,
    dedupe: bool = False,
    part_gap: int = StreamConfig.part_gap,
) -> Detections:
    """All queries of the last showing: those of tracks begun on earlier showings and the detection queries.

    showings: (H, W, 3) uint8 RGB of one size. head: class head for class-aware results. A mask is scored by objectness,
    which `loss.quality` taught how good the mask is (docs/checkpoints/findings.md), and with a head by the class
    probability times its mean probability inside (Mask2Former).
    short_side: None = `photo_side`.
    dedupe: a mask is one thing in one place (`ausm.parts`: what lies further than `part_gap` from it is not), and what
    overlaps better masks has a lower score (Soft-NMS); without it every query counts as it is (Mask2Former).
    """
    if len({image.shape for image in showings}) != 1:
        raise SizeError(f"showings of {len({image.shape for image in showings})} sizes")

    device = model.X_0.device
    g = Geometry.of(showings[0].shape[0], showings[0].shape[1], photo_side(model, short_side))
    state = model.new_state(g.inner_height, g.inner_width)
    ids = torch.zeros(0, dtype=torch.long, device=device)  # rows of B: the first ones, one per track
    marks = torch.zeros(0, *state.size, dtype=torch.bool, device=device)

    def own(logits: torch.Tensor) -> torch.Tensor:
        """(Q, H, W) -> the same without parts elsewhere; a track keeps those it was marked on, as in the stream."""
        if not dedupe:
            return logits
        tracked = keep_own_parts(logits, range(len(ids)), part_gap, before=marks)
        return keep_own_parts(tracked, range(len(ids), len(logits)), part_gap)

    for i, image in enumerate(showings):
        model.absorb(state, ids, marks)
        out = model.predict(state, torch.from_numpy(resize_image(image, g)).to(device), ids)
        if i == len(showings) - 1:
            break
        K, logits, foreground = len(ids), own(out.masks[0].float()), out.objectness[0].float().sigmoid()
        over = K + (foreground[K:] > TRACK_THRESHOLD).nonzero().flatten()
        kept = over[keep_detections(logits[over] > 0, foreground[over], logits[:K] > 0, DUPLICATE_IOU)]
        kept = kept[: model.config.N_id - K]
        marks = marks_from_logits(exclusive(torch.cat((logits[:K], logits[kept]))), state.size)
        ids = torch.arange(K + len(kept), device=device)
    logits, objectness = own(out.masks[0].float()), out.objectness[0].float().sigmoid()
    quality = (logits > 0).flatten(1).any(1).float()
    if head is not None:
        quality = quality * mask_confidence(logits)
    if dedupe:
        quality = quality * decay(logits > 0, objectness * quality)
    if head is None:
        scores = (objectness * quality)[:, None]  # (Q, 1)
    else:
        probabilities = model.pixel_decoder.classify(out.embeddings[0], head).float().softmax(-1)
        scores = probabilities[:, :-1] * quality[:, None]  # (Q, C)
    best = scores.flatten().topk(min(MOST, scores.numel()))
    queries = (best.indices // scores.shape[1]).tolist()
    planes = logits.cpu().numpy()
    masks = {q: full_size_masks(planes[q : q + 1], g)[0] for q in set(queries)}
    keep = [n for n, q in enumerate(queries) if masks[q].any()]
    classes = (best.indices % scores.shape[1]).cpu().numpy()
    return Detections([masks[queries[n]] for n in keep], best.values.cpu().numpy()[keep], classes[keep])


def photo_side(model: Any, wanted: int | None = None) -> int:
    """Short side in pixels at which a model looks at photos: `wanted`, or its own. Raises AusmError out of range."""
    StreamConfig(short_side=wanted)  # raises outside of its limits
    side: int = PHOTO_SIDE.get(model.config.name, model.config.short_side) if wanted is None else wanted
    return side


def decay(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """masks (Q, H, W) bool, scores (Q,) -> (Q,) factors 0..1 of Soft-NMS: one mask after the other, best first, lowers
    what is left by exp(-IoU^2 / SIGMA)."""
    planes = masks.cpu().numpy()
    overlaps = torch.from_numpy(pairwise_iou(planes, planes)).to(scores)
    lowered = torch.exp(-(overlaps**2) / SIGMA)
    factors, left = torch.ones_like(scores), torch.ones_like(scores, dtype=torch.bool)
    for _ in range(len(scores)):
        best = (scores * factors).masked_fill(~left, -1.0).argmax()
        left[best] = False
        factors = torch.where(left, factors * lowered[best], factors)
    return factors


def load_annotations(path: Path) -> COCO:
    """A COCO table. Raises InputError when there is no such file, or when it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text())
        table = COCO()
        table.dataset = {"images": data["images"], "annotations": data["annotations"], "categories": data["categories"]}
        with contextlib.redirect_stdout(io.StringIO()):
            table.createIndex()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a COCO annotation file ({type(error).__name__}: {error})") from error
    if not data["images"]:
        raise InputError(f"{path}: lists no image")
    return table


def read_annotated(entry: dict[str, Any], folder: Path) -> np.ndarray:
    """The photo of an entry of a COCO table, (H, W, 3) uint8 RGB. Raises SizeError unless it has the entry's size."""
    image = read_image(folder / entry["file_name"])
    check_size(str(entry["file_name"]), image.shape[:2], "annotation", (entry["height"], entry["width"]))
    return image


def judge(truth: COCO, results: list[dict[str, Any]], images: list[int], class_agnostic: bool) -> CocoResult:
    """AP and AR of COCO results (`image_id`, `category_id`, `score`, `segmentation`) on the images of these ids."""
    if not results:
        empty = {"image_id": images[0], "category_id": min(truth.cats), "score": 0.0, "bbox": [0, 0, 0, 0]}
        size = [truth.imgs[images[0]]["height"], truth.imgs[images[0]]["width"]]
        results = [empty | {"segmentation": {"size": size, "counts": [size[0] * size[1]]}}]  # loadRes needs one
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCOeval(truth, _table(truth, results), iouType="segm")
        official.params.imgIds, official.params.useCats = images, int(not class_agnostic)
        official.evaluate()
        official.accumulate()
        official.summarize()
    found = [100 * float(value) if value >= 0 else float("nan") for value in official.stats[:9]]
    return CocoResult._make([*found, len(images)])


def _table(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    rows = [dict(row) for row in results]
    for row in rows:
        if isinstance(row["segmentation"]["counts"], list):
            row["segmentation"] = truth.annToRLE({"image_id": row["image_id"], "segmentation": row["segmentation"]})
    return truth.loadRes(rows)


def deduped(dedupe: bool | None, class_agnostic: bool) -> bool:
    """Whether `detect` is asked to dedupe where nobody says (None): without classes, as a mask then has one score."""
    return class_agnostic if dedupe is None else dedupe


def coco(
    model: Any,
    images: str | Path,
    annotations: str | Path,
    *,
    class_agnostic: bool = True,
    head: str = "coco",
    repeat: int = 1,
    traversal: bool = False,
    dedupe: bool | None = None,
    part_gap: int = StreamConfig.part_gap,
    short_side: int | None = None,
    limit: int | None = None,
    progress: Callable[[list[int]], Iterable[int]] | None = None,
    keep: Callable[[list[dict[str, Any]], int, int], None] | None = None,
) -> tuple[CocoResult, list[dict[str, Any]]]:
    """COCO average precision of a model; returns the figures and the results in COCO's own form. Nothing is written.

    class_agnostic: one class, scored without the head; else the classes of `head`, in the order of the file's category
    ids. repeat, traversal: inference scaling. dedupe, part_gap, short_side: see `detect`; dedupe: None = where
    class_agnostic. limit: only the images of the lowest ids. progress: wraps the list of image ids. keep: called once
    with the results, the number of images they are of and that of all, before they are judged; fewer than all where the
    run breaks off.
    Raises InputError for a missing image (before the first is run), one that cannot be read, a head of another number
    of classes, a limit or repeat below 1; AusmError for a part_gap or short_side out of range.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least 1")
    if repeat < 1:
        raise InputError(f"repeat {repeat}: at least 1")
    StreamConfig(part_gap=part_gap, short_side=short_side)  # raises outside of its limits
    truth = load_annotations(Path(annotations))
    ids = sorted(truth.imgs)[:limit]
    categories = sorted(truth.cats)
    if not class_agnostic:
        known = dict(model.config.heads)
        if known.get(head) != len(categories):
            raise InputError(f"{annotations} has {len(categories)} categories, the model's heads {known}")
    missing = [name for i in ids if not (Path(images) / (name := truth.imgs[i]["file_name"])).is_file()]
    if missing:
        raise InputError(f"{images}: {len(missing)} of {len(ids)} images are missing, first {missing[0]}")
    unique = deduped(dedupe, class_agnostic)
    results: list[dict[str, Any]] = []
    done = 0
    shown: Iterator[int] = iter(progress(ids) if progress else ids)
    try:
        for image_id in shown:
            image = read_annotated(truth.imgs[image_id], Path(images))
            plan = spatial_traversal(image) if traversal else image_repeat(image, repeat)
            found = detect(model, plan.frames, short_side, None if class_agnostic else head, unique, part_gap)
            for mask, score, c in zip(found.masks, found.scores, found.classes, strict=True):
                row = {"image_id": image_id, "category_id": categories[int(c)], "score": float(score)}
                results.append(row | {"segmentation": encode_segmentation(mask)})
            done += 1
    finally:
        if keep:
            keep(results, done, len(ids))
    return judge(truth, results, ids, class_agnostic), results
