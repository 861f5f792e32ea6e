"""Videos of which nothing is given, class-agnostic: AP of tracks (as YouTube-VIS) and IDF1, HOTA, MOTA (TrackEval).

All pixels of an object count from its first on, on every frame; several videos are pooled, as both benchmarks do.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ausm.errors import InputError
from ausm.metrics.tracking import TrackingScorer
from ausm.metrics.tubes import Entry, Tube, evaluate_tubes

ID_STRIDE = 10**9  # ids of two videos never meet


class VideoTubes:
    """The true and the found tracks of one video, frame by frame; holds run lengths, no masks."""

    def __init__(self, video: int, height: int, width: int) -> None:
        self.video, self.frames, self._size = video, 0, (height, width)
        self._true: dict[int, Tube] = {}
        self._found: dict[int, Tube] = {}
        self._scores: dict[int, list[float]] = {}

    def feed(
        self, found: Mapping[int, np.ndarray], scores: Mapping[int, float], truth: Mapping[int, np.ndarray]
    ) -> None:
        """The next frame: id -> (H, W) bool and the score of each found one, 0..1."""
        self._append(self._true, truth)
        self._append(self._found, found)
        for track_id in found:
            self._scores.setdefault(track_id, []).append(scores[track_id])
        self.frames += 1

    def _append(self, tubes: dict[int, Tube], masks: Mapping[int, np.ndarray]) -> None:
        for i in masks:
            if i not in tubes:
                tubes[i] = Tube(*self._size)
                for _ in range(self.frames):
                    tubes[i].append(None)
        for i, tube in tubes.items():
            tube.append(masks.get(i))

    @property
    def truth(self) -> list[Entry]:
        return [Entry(self.video, tube) for tube in self._true.values()]

    @property
    def found(self) -> list[Entry]:
        """A track scores the mean over the frames that show it."""
        return [Entry(self.video, tube, score=float(np.mean(self._scores[i]))) for i, tube in self._found.items()]


class DiscoveryScores(NamedTuple):
    """In percent, and counts over all videos."""

    AP: float
    AP50: float
    AP75: float
    AR10: float
    IDF1: float
    IDP: float
    IDR: float
    HOTA: float
    MOTA: float
    id_switches: int
    missed: int  # true masks without a match at overlap 0.5
    false: int  # found masks without one
    true_tracks: int
    predicted_tracks: int
    videos: int
    frames: int


class DiscoveryScorer:
    """Pools videos, one after the other."""

    def __init__(self) -> None:
        self._videos: list[VideoTubes] = []
        self._tracking = TrackingScorer()

    def start(self, height: int, width: int) -> None:
        """The next video."""
        self._videos.append(VideoTubes(len(self._videos) + 1, height, width))

    def feed(
        self, found: Mapping[int, np.ndarray], scores: Mapping[int, float], truth: Mapping[int, np.ndarray]
    ) -> None:
        """The next frame of the video: id -> (H, W) bool, none empty, and the score of each found one."""
        video = self._videos[-1]
        video.feed(found, scores, truth)
        offset = ID_STRIDE * video.video
        pooled = ({offset + i: mask for i, mask in masks.items()} for masks in (found, truth))
        self._tracking.feed(*pooled)

    def finish(self) -> DiscoveryScores:
        """Raises InputError when there is no true object in any of the videos."""
        truth = [entry for video in self._videos for entry in video.truth]
        if not truth:
            raise InputError(f"{len(self._videos)} videos without any true object")
        found = [entry for video in self._videos for entry in video.found]
        ap = evaluate_tubes(truth, found, class_agnostic=True)
        t = self._tracking.finish()
        return DiscoveryScores(
            *(100 * ap.AP, 100 * ap.AP50, 100 * ap.AP75, 100 * ap.AR10),
            *(100 * t.IDF1, 100 * t.IDP, 100 * t.IDR, 100 * t.HOTA, 100 * t.MOTA),
            *(t.id_switches, t.missed, t.false, t.true_tracks, t.predicted_tracks),
            videos=len(self._videos),
            frames=sum(video.frames for video in self._videos),
        )
