"""J (region) and F (boundary) of video object segmentation, as the DAVIS 2016 and 2017 benchmarks define them.

Perazzi et al. 2016, Pont-Tuset et al. 2017. Values are 0..1. In the semi-supervised protocol the first and the last
frame do not count: the first is given, the last was not annotated everywhere.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from ausm.errors import InputError, SizeError
from ausm.masks import box_of

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal


class Statistics(NamedTuple):
    """Of one measure over the frames of one object."""

    mean: float
    recall: float  # fraction of frames above 0.5
    decay: float  # mean of the first quarter minus mean of the last


class ObjectScore(NamedTuple):
    """One object of one sequence: curves over the frames that count, and their statistics."""

    object_id: int
    j: tuple[float, ...]
    f: tuple[float, ...]
    J: Statistics
    F: Statistics


def jaccard(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 1 when both are empty."""
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from their right, lower or lower right neighbour (Martin's seg2bmap).

    In the last row only the right, in the last column only the lower neighbour counts; the last pixel is never one.
    """
    edge = np.zeros_like(mask)
    inner = mask[:-1, :-1]
    edge[:-1, :-1] = (inner ^ mask[:-1, 1:]) | (inner ^ mask[1:, :-1]) | (inner ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


@lru_cache(maxsize=8)
def _disk(radius: int) -> np.ndarray:
    """(2r+1, 2r+1) uint8: 1 within `radius` of the centre."""
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.uint8)


def boundary_f(prediction: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F-measure of the boundaries of two (H, W) bool masks, matched within `tolerance` of the diagonal.

    1 when neither mask has a boundary, 0 when one has none.
    """
    radius = int(np.ceil(tolerance * np.linalg.norm(truth.shape)))
    box = box_of(prediction | truth)
    if box.width == 0:
        return 1.0
    margin = radius + 2  # outside the box nothing changes: a small object costs little
    rows = slice(max(0, box.y - margin), box.y + box.height + margin)
    columns = slice(max(0, box.x - margin), box.x + box.width + margin)
    found, wanted = boundary(prediction[rows, columns]), boundary(truth[rows, columns])
    n_found, n_wanted = np.count_nonzero(found), np.count_nonzero(wanted)
    if n_found == 0 or n_wanted == 0:
        return 1.0 if n_found == n_wanted else 0.0
    disk = _disk(radius)
    precision = np.count_nonzero(found & (cv2.dilate(wanted.view(np.uint8), disk) > 0)) / n_found
    recall = np.count_nonzero(wanted & (cv2.dilate(found.view(np.uint8), disk) > 0)) / n_wanted
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def statistics(values: Iterable[float]) -> Statistics:
    """Mean, recall and decay of one curve, with the quarters of the official tool (their bounds overlap by one frame).

    Raises InputError for an empty curve.
    """
    curve = np.asarray(list(values), np.float64)
    if not curve.size:
        raise InputError("statistics of 0 frames: a sequence needs at least 3, its first and last do not count")
    bounds = np.round(np.linspace(1, curve.size, 5) + 1e-10).astype(int) - 1
    quarters = [curve[bounds[i] : bounds[i + 1] + 1] for i in range(4)]
    decay = quarters[0].mean() - quarters[3].mean()
    return Statistics(float(curve.mean()), float((curve > 0.5).mean()), float(decay))


class SequenceScorer:
    """Collects J and F of one sequence frame by frame; holds numbers only, no masks.

    objects: ids to judge; by default the ids of the first truth, as in DAVIS. A prediction's other ids are ignored.
    """

    def __init__(self, objects: Iterable[int] | None = None, skip_ends: bool = True) -> None:
        self._objects = None if objects is None else sorted(objects)
        self._skip_ends = skip_ends
        self._curves: dict[int, tuple[list[float], list[float]]] = {}
        self._shape: tuple[int, ...] | None = None

    def feed(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """The next frame: two (H, W) label maps. Raises SizeError when their sizes differ or change."""
        shape = self._shape if self._shape is not None else truth.shape
        if not prediction.shape == truth.shape == shape or truth.ndim != 2:
            raise SizeError(f"prediction {prediction.shape}, truth {truth.shape}, first truth {shape} (H, W)")
        self._shape = shape
        if self._objects is None:
            self._objects = [int(v) for v in np.unique(truth) if v]
        for object_id in self._objects:
            j, f = self._curves.setdefault(object_id, ([], []))
            found, wanted = prediction == object_id, truth == object_id
            j.append(jaccard(found, wanted))
            f.append(boundary_f(found, wanted))

    def finish(self) -> tuple[ObjectScore, ...]:
        """Scores per object, by id. Raises InputError when no frame counts or the first truth holds no object."""
        if not self._curves:
            raise InputError("no object in the first truth: nothing to judge")
        part = slice(1, -1) if self._skip_ends else slice(None)
        scores = []
        for object_id, (j, f) in sorted(self._curves.items()):
            scores.append(make_score(object_id, j[part], f[part]))
        return tuple(scores)


def make_score(object_id: int, j: Iterable[float], f: Iterable[float]) -> ObjectScore:
    """An `ObjectScore` from its two curves."""
    j, f = tuple(j), tuple(f)
    return ObjectScore(object_id, j, f, statistics(j), statistics(f))


def mean_statistics(items: Iterable[Statistics]) -> Statistics:
    """Plain mean over objects: the global figure of DAVIS 2017, and of 2016 where a sequence is one object."""
    table = np.array(list(items), np.float64)
    if not table.size:
        raise InputError("the mean of 0 objects")
    return Statistics(*(float(v) for v in table.mean(axis=0)))
