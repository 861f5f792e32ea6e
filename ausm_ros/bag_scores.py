"""Scores of what was found in a bag against its truth, frame by frame: J and F, AP, HOTA, IDF1, MOTA, in percent."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ausm.errors import AusmError
from ausm.metrics.davis import boundary_f, jaccard, make_score
from ausm.metrics.discovery import VideoTubes
from ausm.metrics.tracking import TrackingScorer, pairwise_iou
from ausm.metrics.tubes import evaluate_tubes

TUBE_PIXELS = 2**32 - 1  # pycocotools counts the pixels of a track over all frames in 32 bits
TRACKING = ("HOTA", "DetA", "AssA", "IDF1", "MOTA")
TRACKING_COUNTS = ("id_switches", "missed", "false", "true_tracks", "predicted_tracks")


def matched_overlap(found: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray]) -> float:
    """Mean over the true objects of the overlap with the mask matched to each (best assignment); NaN without any."""
    if not truth:
        return math.nan
    if not found:
        return 0.0
    overlaps = pairwise_iou(np.stack(list(truth.values())), np.stack(list(found.values())))
    return float(overlaps[linear_sum_assignment(-overlaps)].sum() / len(truth))


class BagScorer:
    """Collects one recording; memory grows by run lengths and a few numbers per object and frame, not by masks."""

    def __init__(self, prompted: bool, height: int, width: int, frames: int) -> None:
        """prompted: objects are started by their true masks, and judged under the id that the prompt was given.

        frames: announced length of the recording, for the check that tracks fit the counters of AP.
        """
        self.prompted, self.frames = prompted, 0
        self._size = height, width
        self._fits = height * width * frames <= TUBE_PIXELS
        self._tracking = TrackingScorer()
        self._curves: dict[int, tuple[list[float], list[float]]] = {}  # of true objects, since their prompt
        self._first: dict[int, int] = {}  # true object -> frame it was prompted on
        self._id_of: dict[int, int] = {}  # true object -> track id
        self._tubes = VideoTubes(1, height, width)

    def started(self, truth_id: int, track_id: int, frame: int) -> None:
        """A true object was prompted on this frame: it is judged from the next one on."""
        self._id_of[truth_id], self._first[truth_id] = track_id, frame

    def feed(
        self, frame: int, found: Mapping[int, np.ndarray], scores: Mapping[int, float], truth: Mapping[int, np.ndarray]
    ) -> float:
        """The next frame that has a truth: id -> (H, W) bool, non-empty. Returns the J of this frame, 0..1 or NaN."""
        self._tracking.feed(found, truth)
        if self.prompted:
            j_frame = self._feed_prompted(frame, found, truth)
        else:
            j_frame = matched_overlap(found, truth)
            if self._fits:
                self._tubes.feed(found, scores, truth)
        self.frames += 1
        return j_frame

    def _feed_prompted(self, frame: int, found: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray]) -> float:
        nothing = np.zeros(self._size, bool)
        values = []
        for truth_id, track_id in self._id_of.items():
            if self._first[truth_id] == frame:  # the prompt itself is no achievement
                continue
            mask, wanted = found.get(track_id, nothing), truth.get(truth_id, nothing)
            j, f = self._curves.setdefault(truth_id, ([], []))
            j.append(jaccard(mask, wanted))
            f.append(boundary_f(mask, wanted))
            values.append(j[-1])
        return float(np.mean(values)) if values else math.nan

    def finish(self) -> tuple[dict[str, float | int | None], list[dict[str, Any]], list[str]]:
        """Figures (percent and counts; None = not defined here), a row for each prompted object, and remarks."""
        figures: dict[str, float | int | None] = {}
        objects, notes = [], []
        if self.prompted:
            judged = [make_score(i, j, f) for i, (j, f) in sorted(self._curves.items())]
            if judged:
                j, f = (100 * float(np.mean([getattr(o, name).mean for o in judged])) for name in "JF")
                figures |= {"JF": (j + f) / 2, "J": j, "F": f}
                for key, name in (("J_recall", "J"), ("F_recall", "F")):
                    figures[key] = 100 * float(np.mean([getattr(o, name).recall for o in judged]))
                figures["objects"] = len(judged)
            for o in judged:
                row = {"object": o.object_id, "track_id": self._id_of[o.object_id], "from": self._first[o.object_id]}
                objects.append(row | {"J": 100 * o.J.mean, "F": 100 * o.F.mean, "frames": len(o.j)})
            if not judged:
                notes.append("no object was prompted before the last frame: J and F are not defined")
        else:
            figures |= self._average_precision(notes)
        try:
            tracking = self._tracking.finish()
            figures |= {name: 100 * getattr(tracking, name) for name in TRACKING}
            figures |= {name: getattr(tracking, name) for name in TRACKING_COUNTS}
        except AusmError as error:
            notes.append(f"no HOTA, IDF1 and MOTA: {error}")
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in figures.items()}, objects, notes

    def _average_precision(self, notes: list[str]) -> dict[str, float | int | None]:
        if not self._fits:
            notes.append(f"no AP: the frames have more than {TUBE_PIXELS} pixels together; use --max-frames")
            return {}
        if not self._tubes.truth:
            notes.append("no AP: the truth holds no object")
            return {}
        result = evaluate_tubes(self._tubes.truth, self._tubes.found, class_agnostic=True)
        return {name: 100 * getattr(result, name) for name in ("AP", "AP50", "AP75", "AR10")}
