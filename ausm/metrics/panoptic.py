"""VPQ, video panoptic quality (Kim et al. 2020), as VIPSeg's evaluation computes it: panoptic quality of short tubes.

A window of k frames slides over a video; a tube is what one segment id covers in the window. Pixels of truth id 0 are
void: they are taken off the union, and a prediction that lies mostly on them is not counted as false.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ausm.errors import InputError, SizeError

VOID = 0
WINDOWS = (1, 2, 4, 6)  # frames; papers report the mean over these


class Segment(NamedTuple):
    """What a segment id of a frame is."""

    category: int
    is_crowd: bool = False


class PanopticFrame(NamedTuple):
    """Truth and prediction of one frame: (H, W) integer ids, 0 = void, and what the ids are."""

    truth: np.ndarray
    prediction: np.ndarray
    truth_segments: Mapping[int, Segment]
    predicted_segments: Mapping[int, Segment]


class _Overlaps(NamedTuple):
    """Pixel counts of one frame."""

    pairs: Counter[tuple[int, int]]  # (true id, predicted id)
    truth_segments: Mapping[int, Segment]
    predicted_segments: Mapping[int, Segment]


class PanopticQuality(NamedTuple):
    """0..1; nan when no class of the kind occurs. Means over classes."""

    PQ: float
    SQ: float
    RQ: float


class _Tally(NamedTuple):
    """Matches of one category."""

    overlap: float = 0.0
    hits: int = 0
    false: int = 0
    missed: int = 0

    def plus(self, overlap: float = 0.0, hits: int = 0, false: int = 0, missed: int = 0) -> "_Tally":
        return _Tally(self.overlap + overlap, self.hits + hits, self.false + false, self.missed + missed)


def _overlaps(frame: PanopticFrame) -> _Overlaps:
    if frame.truth.shape != frame.prediction.shape:
        raise SizeError(f"truth {frame.truth.shape}, prediction {frame.prediction.shape} (H, W)")
    joint = frame.truth.astype(np.int64) << 32 | frame.prediction.astype(np.int64)
    keys, counts = np.unique(joint, return_counts=True)
    pairs = Counter({(int(k) >> 32, int(k) & 0xFFFFFFFF): int(n) for k, n in zip(keys, counts, strict=True)})
    drawn = {predicted for _, predicted in pairs} - {VOID}
    listed = set(frame.predicted_segments)
    if drawn != listed:
        raise InputError(
            f"segments drawn but not listed: {sorted(drawn - listed)}, listed only: {sorted(listed - drawn)}"
        )
    return _Overlaps(pairs, frame.truth_segments, frame.predicted_segments)


class VpqScorer:
    """Collects videos for one window length; holds counts only."""

    def __init__(self, window: int) -> None:
        """window: frames per tube, 1 is the panoptic quality of images."""
        self.window = window
        self._tallies: dict[int, _Tally] = {}

    def _add(self, category: int, **counts: float) -> None:
        self._tallies[category] = self._tallies.get(category, _Tally()).plus(**counts)  # type: ignore[arg-type]

    def feed(self, video: Iterable[PanopticFrame]) -> None:
        """One video. A video shorter than the window has no tube. Raises SizeError, and InputError for a prediction
        whose drawn and listed segments differ."""
        recent: list[_Overlaps] = []
        for frame in video:
            recent = [*recent, _overlaps(frame)][-self.window :]
            if len(recent) == self.window:
                self._match(recent)

    def _match(self, frames: Sequence[_Overlaps]) -> None:
        pairs: Counter[tuple[int, int]] = Counter()
        truth: dict[int, Segment] = {}
        predicted: dict[int, Segment] = {}
        for frame in frames:
            pairs.update(frame.pairs)
            for known, listed in ((truth, frame.truth_segments), (predicted, frame.predicted_segments)):
                for segment_id, segment in listed.items():
                    known.setdefault(segment_id, segment)  # the first frame of a tube says what it is
        true_area: Counter[int] = Counter()
        predicted_area: Counter[int] = Counter()
        for (t, p), count in pairs.items():
            true_area[t] += count
            predicted_area[p] += count
        matched_truth, matched_prediction = set(), set()
        for (t, p), count in pairs.items():
            if t not in truth or p not in predicted or truth[t].is_crowd or truth[t].category != predicted[p].category:
                continue
            union = true_area[t] + predicted_area[p] - count - pairs.get((VOID, p), 0)
            if count / union > 0.5:
                self._add(truth[t].category, hits=1, overlap=count / union)
                matched_truth.add(t)
                matched_prediction.add(p)
        crowds: dict[int, int] = {}
        for t, segment in truth.items():
            if segment.is_crowd:
                crowds[segment.category] = t  # of several the last, as in the official tool
            elif t not in matched_truth:
                self._add(segment.category, missed=1)
        for p, segment in predicted.items():
            if p in matched_prediction:
                continue
            ignored = pairs.get((VOID, p), 0)
            if segment.category in crowds:
                ignored += pairs.get((crowds[segment.category], p), 0)
            if ignored / predicted_area[p] <= 0.5:
                self._add(segment.category, false=1)

    def finish(self, categories: Iterable[int] | None = None) -> PanopticQuality:
        """Means over the classes that occur, of these categories only if given (things, or stuff)."""
        wanted = self._tallies if categories is None else set(categories)
        rows = []
        for category, tally in self._tallies.items():
            size = tally.hits + 0.5 * tally.false + 0.5 * tally.missed
            if category in wanted and size:
                rows.append((tally.overlap / size, tally.overlap / max(tally.hits, 1), tally.hits / size))
        return PanopticQuality(*np.mean(rows, axis=0).tolist()) if rows else PanopticQuality(*[float("nan")] * 3)


def vpq(videos: Iterable[Sequence[PanopticFrame]], windows: Sequence[int] = WINDOWS) -> dict[int, PanopticQuality]:
    """Panoptic quality per window length over all videos; VPQ is the mean of their PQ."""
    scorers = [VpqScorer(window) for window in windows]
    for video in videos:
        for scorer in scorers:
            scorer.feed(video)
    return {scorer.window: scorer.finish() for scorer in scorers}
