"""Average precision of tracks ("tubes"), as YouTube-VIS, OVIS and their kin define it (Yang et al. 2019).

The overlap of two tracks is the sum of their intersections over the sum of their unions over all frames. That is the
overlap of two ordinary masks once the frames of a video lie side by side in one wide image, so pycocotools computes it.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ausm.errors import InputError, SizeError

AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))  # all, small, medium, large: mean over frames
MAX_TRACKS = (1, 10, 100)  # per video and class


class Tube:
    """One track, frame by frame: run lengths of the wide image, column by column."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.frames = height, width, 0
        self._runs: list[int] = [0]  # background, object, background, ...
        self._areas: list[int] = []

    def append(self, mask: np.ndarray | None) -> None:
        """The next frame: (H, W) bool, or None where the object is not seen. Raises SizeError."""
        if mask is not None and mask.shape != (self.height, self.width):
            raise SizeError(f"mask {mask.shape[0]}x{mask.shape[1]} in a track of {self.height}x{self.width}")
        self.frames += 1
        if mask is None or not mask.any():
            self._extend([self.height * self.width])
            return
        flat = mask.T.ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(np.concatenate(([-1], edges, [flat.size - 1]))).tolist()
        self._extend([0, *runs] if flat[0] else runs)
        self._areas.append(int(np.count_nonzero(mask)))

    def _extend(self, runs: list[int]) -> None:
        """Joins runs that start with background to those so far."""
        ends_with_object = len(self._runs) % 2 == 0
        if not ends_with_object:
            self._runs[-1] += runs[0]
            self._runs += runs[1:]
        elif runs[0] == 0:
            self._runs[-1] += runs[1]
            self._runs += runs[2:]
        else:
            self._runs += runs

    @property
    def mean_area(self) -> float:
        """Pixels per frame on which the object is seen, 0 if it never is."""
        return float(np.mean(self._areas)) if self._areas else 0.0

    def rle(self) -> dict[str, Any]:
        """COCO run lengths of the wide image (H, frames * W)."""
        size = [self.height, self.frames * self.width]
        return dict(coco_mask.frPyObjects({"counts": self._runs, "size": size}, *size))


class Entry(NamedTuple):
    """A track of a video, true (score without meaning) or predicted."""

    video: int
    tube: Tube
    category: int = 1
    score: float = 1.0
    is_crowd: bool = False


class TubeScores(NamedTuple):
    """0..1; nan where no truth exists. AP: mean over overlaps 0.5 .. 0.95 and classes, at most 100 tracks per video."""

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR1: float
    AR10: float


def _table(entries: list[Entry], videos: dict[int, tuple[int, int]], categories: list[int]) -> COCO:
    """A COCO table with one wide image per video."""
    table = COCO()
    annotations = []
    for i, entry in enumerate(entries, 1):
        size = entry.tube.height, entry.tube.width * entry.tube.frames
        if size != videos[entry.video]:
            raise SizeError(f"video {entry.video}: tracks of {size} and {videos[entry.video]} (rows, columns x frames)")
        fields = {"id": i, "image_id": entry.video, "category_id": entry.category, "score": entry.score}
        shape = {"segmentation": entry.tube.rle(), "area": entry.tube.mean_area, "iscrowd": int(entry.is_crowd)}
        annotations.append(fields | shape)
    table.dataset = {
        "images": [{"id": v, "height": h, "width": w} for v, (h, w) in videos.items()],
        "categories": [{"id": c, "name": str(c)} for c in categories],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
    return table


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined (pycocotools marks the rest with -1)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def evaluate_tubes(
    truth: Iterable[Entry],
    predictions: Iterable[Entry],
    class_agnostic: bool = False,
    max_tracks: Sequence[int] = MAX_TRACKS,
) -> TubeScores:
    """AP and AR of predicted tracks. Videos are those with a truth or a prediction; a video's tracks have one size.

    class_agnostic: classes are ignored. Raises InputError when there is no truth at all, SizeError for tracks of
    several sizes in one video.
    """
    truth, predictions = list(truth), list(predictions)
    if not truth:
        raise InputError("no true track to compare with")
    videos: dict[int, tuple[int, int]] = {}
    for entry in (*truth, *predictions):
        videos.setdefault(entry.video, (entry.tube.height, entry.tube.width * entry.tube.frames))
    categories = sorted({entry.category for entry in (*truth, *predictions)})
    tables = [_table(entries, videos, categories) for entries in (truth, predictions)]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(*tables, iouType="segm")
        judge.params.areaRng, judge.params.areaRngLbl = [list(a) for a in AREAS], ["all", "small", "medium", "large"]
        judge.params.maxDets, judge.params.useCats = list(max_tracks), int(not class_agnostic)
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]  # (T, R, K, A, M), (T, K, A, M)
    return TubeScores(
        _mean(precision[:, :, :, 0, -1]),
        _mean(precision[0, :, :, 0, -1]),
        _mean(precision[5, :, :, 0, -1]),
        _mean(precision[:, :, :, 1, -1]),
        _mean(precision[:, :, :, 2, -1]),
        _mean(precision[:, :, :, 3, -1]),
        _mean(recall[:, :, 0, 0]),
        _mean(recall[:, :, 0, 1]),
    )


def tube_of_segmentations(segmentations: Sequence[Any], height: int, width: int) -> Tube:
    """A track of a results.json: per frame COCO run lengths (compressed or as a list), polygons, or null."""
    tube = Tube(height, width)
    for item in segmentations:
        if not item:
            tube.append(None)
            continue
        rle = item
        if isinstance(item, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(item, height, width))
        elif isinstance(item["counts"], list):
            rle = coco_mask.frPyObjects(item, height, width)
        tube.append(coco_mask.decode(rle).astype(bool))
    return tube


def encode_segmentation(mask: np.ndarray) -> dict[str, Any] | None:
    """The COCO run lengths of a (H, W) bool mask as JSON takes them; None for an empty one."""
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}
