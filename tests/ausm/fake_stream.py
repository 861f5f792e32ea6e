"""A stream without a network: follows bright squares by their grey value, so that every mask is known."""

from typing import Any

import numpy as np

from ausm.errors import SizeError
from ausm.tracks import Source, StepOutput, Track, TrackState


class FakeStream:
    """An object is all pixels of one grey value; discovery takes every value above 0 that is not followed yet."""

    def __init__(self, discover: bool = False) -> None:
        self.discover, self.wiped, self.prompts = discover, 0, []
        self.values: dict[int, tuple[int, Source]] = {}  # track id -> grey value, source
        self.shown: dict[int, np.ndarray] = {}  # masks of the current frame that a prompt has replaced
        self.waiting: list[tuple[int, np.ndarray]] = []
        self.image: np.ndarray | None = None
        self.index, self.issued = -1, 0
        self.last_predictions: Any = None

    def prompt(self, masks: np.ndarray, track_ids: list[int] | None = None, names: Any = None) -> list[int]:
        assert masks.dtype == bool and masks.ndim == 3
        ids = track_ids if track_ids is not None else [self._new_id() for _ in masks]
        self.prompts.append((self.index, list(ids)))
        for track_id, mask in zip(ids, masks, strict=True):
            if self.image is None:
                self.waiting.append((track_id, mask))
            else:
                self._follow(track_id, mask)
        return ids

    def _new_id(self) -> int:
        self.issued += 1
        return self.issued

    def _follow(self, track_id: int, mask: np.ndarray) -> None:
        self.values[track_id] = int(np.median(self.image[..., 0][mask])), Source.PROMPT
        self.shown[track_id] = mask.copy()

    def step(self, image: np.ndarray) -> StepOutput:
        if self.image is not None and image.shape != self.image.shape:
            raise SizeError("another size")
        self.image, self.shown, self.index = image, {}, self.index + 1
        for track_id, mask in self.waiting:
            self._follow(track_id, mask)
        self.waiting = []
        if self.discover:
            followed = {value for value, _ in self.values.values()}
            for value in np.unique(image[..., 0]).tolist():
                if value > 0 and value not in followed:
                    self.values[self._new_id()] = value, Source.DISCOVERED
        return self.current

    @property
    def current(self) -> StepOutput:
        tracks = []
        for track_id, (value, source) in self.values.items():
            mask = self.shown.get(track_id, self.image[..., 0] == value)
            state = TrackState.TRACKED if mask.any() else TrackState.LOST
            score = 0.5 + value / 1000
            tracks.append(Track(track_id, mask, score, -1, "", 0.0, state, source, "", 0, self.index, self.index, 0))
        return StepOutput(self.index, *self.image.shape[:2], tuple(tracks))

    def wipe_state(self) -> None:
        self.wiped += 1


def squares(values: dict[int, int], height: int = 32, width: int = 48, side: int = 8) -> np.ndarray:
    """(H, W, 3) uint8: one square per grey value at the given column, in rows of their own."""
    image = np.zeros((height, width, 3), np.uint8)
    for row, (value, column) in enumerate(values.items()):
        image[1 + row * (side + 2) : 1 + row * (side + 2) + side, column : column + side] = value
    return image
