"""STQ, segmentation and tracking quality (Weber et al. 2021): the geometric mean of two terms over whole videos.

AQ weighs how much of every true thing carries one predicted id, SQ is the mean IoU of the classes.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ausm.errors import AusmError, InputError, SizeError


class StqScores(NamedTuple):
    """0..1."""

    STQ: float
    AQ: float
    SQ: float


class _Sequence:
    """Pixel counts of one sequence. Tubes are (class, instance) pairs packed into one integer."""

    def __init__(self) -> None:
        self.truth: Counter[int] = Counter()
        self.prediction: Counter[int] = Counter()
        self.overlap: Counter[tuple[int, int]] = Counter()


def _count(counter: Counter[int], values: np.ndarray) -> None:
    keys, counts = np.unique(values, return_counts=True)
    for key, n in zip(keys.tolist(), counts.tolist(), strict=True):
        counter[key] += n


class StqScorer:
    """Collects frames of any number of sequences.

    Classes are 0..classes-1; `ignore` in the truth is void. A true thing of instance 0 is a crowd: it does not count
    for AQ, nor does any prediction on it.
    """

    def __init__(self, classes: int, things: set[int], ignore: int = 255) -> None:
        self._classes, self._things, self._ignore = classes, sorted(things), ignore
        self._confusion = np.zeros((classes + 1, classes + 1), np.int64)  # the last row and column: ignored
        self._sequences: dict[str, _Sequence] = {}

    def feed(
        self,
        true_class: np.ndarray,
        true_instance: np.ndarray,
        found_class: np.ndarray,
        found_instance: np.ndarray,
        sequence: str = "",
    ) -> None:
        """The next frame of a sequence: four (H, W) integer maps, instances 0..65535. Raises SizeError, AusmError."""
        maps = [np.asarray(m, np.int64) for m in (true_class, true_instance, found_class, found_instance)]
        if len({m.shape for m in maps}) != 1:
            raise SizeError(f"maps of sizes {sorted({m.shape for m in maps})} (H, W)")
        classes = [np.where(m == self._ignore, self._classes, m) for m in (maps[0], maps[2])]
        for found in classes:
            if found.size and not 0 <= found.min() <= found.max() <= self._classes:
                raise AusmError(
                    f"classes {found.min()}..{found.max()}, there are 0..{self._classes - 1} and {self._ignore}"
                )
        if any(m.size and not 0 <= m.min() <= m.max() < 1 << 16 for m in (maps[1], maps[3])):
            raise AusmError("instances must be 0..65535")
        joint = classes[0] * (self._classes + 1) + classes[1]
        size = self._classes + 1
        self._confusion += np.bincount(joint.ravel(), minlength=size * size).reshape(size, size)
        counts = self._sequences.setdefault(sequence, _Sequence())
        truth, found = (c << 16 | i for c, i in ((classes[0], maps[1]), (classes[1], maps[3])))
        is_thing = np.isin(classes[0], self._things)
        is_crowd = is_thing & (maps[1] == 0)
        is_thing &= ~is_crowd
        is_found = np.isin(classes[1], self._things) & ~is_crowd
        _count(counts.truth, truth[is_thing])
        _count(counts.prediction, found[is_found])
        both = is_thing & is_found
        pairs, numbers = np.unique(np.stack((truth[both], found[both])), axis=1, return_counts=True)
        for (t, p), n in zip(pairs.T.tolist(), numbers.tolist(), strict=True):
            counts.overlap[t, p] += n

    def finish(self) -> StqScores:
        """Raises InputError when no pixel was judged."""
        total, tubes = 0.0, 0
        for counts in self._sequences.values():
            tubes += len(counts.truth)
            for (t, p), n in counts.overlap.items():
                total += n * n / (counts.truth[t] + counts.prediction[p] - n) / counts.truth[t]
        confusion = self._confusion.copy()
        confusion[self._classes] = 0  # predictions on void cost nothing
        hits = confusion.diagonal()
        unions = confusion.sum(0) + confusion.sum(1) - hits
        if not unions.any():
            raise InputError("no pixel to judge")
        quality = float((hits / np.maximum(unions, 1)).sum() / np.count_nonzero(unions))
        association = total / tubes if tubes else 0.0
        return StqScores(float(np.sqrt(association * quality)), association, quality)
