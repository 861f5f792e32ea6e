"""The overall score G of YouTube-VOS (Xu et al. 2018): J and F of seen and unseen categories, each with one quarter.

An object may enter late: its mask is given on the first frame on which it is annotated, and it is judged on the
annotated frames after that one, the last included.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ausm.errors import InputError, SizeError
from ausm.metrics.davis import ObjectScore, boundary_f, jaccard, make_score


class OverallScore(NamedTuple):
    """0..1; G is the mean of the four."""

    G: float
    J_seen: float
    J_unseen: float
    F_seen: float
    F_unseen: float


class LateObjectScorer:
    """Collects the annotated frames of one sequence whose objects may enter at any of them."""

    def __init__(self) -> None:
        self._curves: dict[int, tuple[list[float], list[float]]] = {}

    def feed(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """The next annotated frame, two (H, W) label maps. Raises SizeError."""
        if prediction.shape != truth.shape:
            raise SizeError(f"prediction {prediction.shape}, truth {truth.shape} (H, W)")
        for object_id, (j, f) in self._curves.items():
            found, wanted = prediction == object_id, truth == object_id
            j.append(jaccard(found, wanted))
            f.append(boundary_f(found, wanted))
        for value in np.unique(truth):
            if value:
                self._curves.setdefault(int(value), ([], []))

    def finish(self) -> tuple[ObjectScore, ...]:
        """Scores by id of the objects that were judged on at least one frame."""
        return tuple(make_score(i, j, f) for i, (j, f) in sorted(self._curves.items()) if j)


def overall_score(objects: Iterable[tuple[ObjectScore, bool]]) -> OverallScore:
    """G from the objects of all sequences and whether the category of each was seen in training.

    Each of the four terms is a mean over objects. Raises InputError unless both kinds occur.
    """
    objects = list(objects)
    terms = []
    for measure in ("J", "F"):
        for seen in (True, False):
            values = [getattr(score, measure).mean for score, is_seen in objects if is_seen is seen]
            if not values:
                raise InputError(f"no object of {'seen' if seen else 'unseen'} categories among {len(objects)}")
            terms.append(float(np.mean(values)))
    return OverallScore(float(np.mean(terms)), *terms)
