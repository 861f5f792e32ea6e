"""The last moments of a stream: images and states, so that a late prompt is applied to the image it was drawn on."""

from collections import deque
from typing import Any, NamedTuple

import numpy as np

MAX_BYTES = 2**30  # per camera, whatever the seconds asked for: the state of a large model is hundreds of megabytes


class Moment(NamedTuple):
    """One processed image and the stream just after it."""

    stamp: int  # [ns]
    image: np.ndarray  # (H, W, 3) uint8 RGB
    state: Any  # of `Stream.state_dict`
    nbytes: int


class History:
    """A ring of the last `seconds` of stamps, at most `MAX_BYTES`. Off when `seconds` is 0: then nothing is copied."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._span = round(seconds * 1e9)
        self._moments: deque[Moment] = deque()
        self._bytes = 0

    @property
    def on(self) -> bool:
        return self._span > 0

    def __len__(self) -> int:
        return len(self._moments)

    def add(self, moment: Moment) -> None:
        """Appends a moment; older ones fall out by age and by bytes, all of them where time goes back."""
        if self._moments and moment.stamp < self._moments[-1].stamp:
            self.clear()
        self._moments.append(moment)
        self._bytes += moment.nbytes
        oldest = moment.stamp - self._span
        while self._moments[0].stamp < oldest or (self._bytes > MAX_BYTES and len(self._moments) > 1):
            self._bytes -= self._moments.popleft().nbytes

    def from_stamp(self, stamp: int) -> list[Moment]:
        """The moment nearest to the stamp and all after it; empty when the stamp is older than the oldest moment."""
        if not self._moments or stamp < self._moments[0].stamp:
            return []
        moments = list(self._moments)
        first = min(range(len(moments)), key=lambda k: abs(moments[k].stamp - stamp))
        return moments[first:]

    def clear(self) -> None:
        """Forgets all: what was done to the stream since would not be done again by running it forward."""
        self._moments.clear()
        self._bytes = 0
