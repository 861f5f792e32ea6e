"""A stream with the interface of `ausm.Stream` and no network in it: what it answers is known beforehand.

Prompted masks stay where they were drawn; with discovery on, every image has one object, a square in its corner.
"""

import math
import time
from typing import Any

import numpy as np

from ausm.errors import CapacityError, EmptyMaskError, SizeError, UnknownIdError
from ausm.tracks import Source, StepOutput, Track, TrackState


class ScriptedStream:
    """Set `fail` to an exception, `nan` or `slow` (seconds) to see how those around it bear it."""

    state_bytes = snapshot_bytes = 1000
    last_predictions = None

    def __init__(self, discover: bool = False, capacity: int = 5) -> None:
        self.capacity, self.discover = capacity, discover
        self.fail: Exception | None = None
        self.nan, self.slow = False, 0.0
        self.options: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self._tracks: dict[int, Track] = {}
        self._removed: list[Track] = []  # since the last step
        self._size: tuple[int, int] | None = None
        self.frame_index, self.ids_issued = -1, 0
        self.current: StepOutput | None = None

    @property
    def in_use(self) -> int:
        return len(self._tracks)

    def _output(self) -> StepOutput:
        height, width = self._size or (0, 0)
        self.current = StepOutput(max(0, self.frame_index), height, width, (*self._tracks.values(), *self._removed))
        return self.current

    def step(self, image: np.ndarray) -> StepOutput:
        time.sleep(self.slow)
        if self.fail is not None:
            raise self.fail
        if self._size not in (None, image.shape[:2]):
            raise SizeError(f"image {image.shape[:2]}, stream {self._size}")
        self._size = image.shape[:2]
        self.frame_index += 1
        self._removed = []
        for key, track in self._tracks.items():
            score = math.nan if self.nan else track.score
            self._tracks[key] = track._replace(age=track.age + 1, last_frame=self.frame_index, score=score)
        if self.discover and not any(t.source == Source.DISCOVERED for t in self._tracks.values()):
            corner = np.zeros(self._size, np.bool_)
            corner[:4, :4] = True
            self._start(corner, "", Source.DISCOVERED)
        return self._output()

    def _start(self, mask: np.ndarray, name: str, source: Source) -> int:
        self.ids_issued += 1
        k, now = self.ids_issued, self.frame_index
        self._tracks[k] = Track(k, mask, 0.9, -1, "", 0.0, TrackState.TRACKED, source, name, now, now, 0, 0)
        return k

    def prompt(self, masks: np.ndarray, track_ids: Any = None, names: Any = None) -> list[int]:
        wanted, names = track_ids or [None] * len(masks), names or [None] * len(masks)
        for mask, track_id in zip(masks, wanted, strict=True):
            if mask.shape != self._size:
                raise SizeError(f"mask {mask.shape}, image {self._size}")
            if not mask.any():
                raise EmptyMaskError("mask of 0 pixels")
            if track_id and track_id not in self._tracks:
                raise UnknownIdError(f"no live object {track_id}")
        if len(self._tracks) + sum(not t for t in wanted) > self.capacity:
            raise CapacityError(f"capacity {self.capacity}, in use {len(self._tracks)}")
        ids = []
        for mask, track_id, name in zip(masks, wanted, names, strict=True):
            if track_id:
                self._tracks[track_id] = self._tracks[track_id]._replace(mask=mask, source=Source.PROMPT)
            ids.append(track_id or self._start(mask, name or "", Source.PROMPT))
        self._output()
        return ids

    def remove(self, ids: list[int]) -> None:
        for track_id in ids:
            if track_id not in self._tracks:
                raise UnknownIdError(f"no live object {track_id}")
        for track_id in ids:
            track = self._tracks.pop(track_id)
            self._removed.append(track._replace(mask=np.zeros_like(track.mask), state=TrackState.REMOVED))
        self._output()

    def state_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "_tracks": dict(self._tracks), "_removed": list(self._removed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_tracks": dict(state["_tracks"]), "_removed": list(state["_removed"])})

    def absorb(self) -> None:
        """Nothing to do ahead of time."""

    def configure(self, **options: Any) -> None:
        self.options.update(options)


def scripted_together(streams: list[ScriptedStream], images: list[np.ndarray]) -> list[StepOutput]:
    """In place of `ausm.together.step_together`, which also raises before any stream has changed."""
    for stream in streams:
        if stream.fail is not None:
            raise stream.fail
    return [stream.step(image) for stream, image in zip(streams, images, strict=True)]
