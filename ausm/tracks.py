"""What a step hands to its caller: typed tuples, no dictionaries."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class TrackState(IntEnum):
    """Values equal those of `msg/Instance.msg`."""

    TENTATIVE = 0
    TRACKED = 1
    LOST = 2
    REMOVED = 3


class Source(IntEnum):
    """Values equal those of `msg/Instance.msg`."""

    DISCOVERED = 0
    PROMPT = 1


class Track(NamedTuple):
    """One object at one frame. `mask` is (H, W) bool at the size of the stepped image; empty when LOST."""

    track_id: int  # >= 1, never reused before `Stream.reset`
    mask: np.ndarray
    score: float  # 0..1, objectness x mask confidence
    class_id: int  # -1 when class-agnostic
    class_name: str
    class_score: float
    state: TrackState
    source: Source
    name: str  # given with the prompt, "" if discovered
    first_frame: int
    last_frame: int  # the last frame it was seen on
    age: int  # frames processed since first_frame
    frames_since_seen: int  # 0 when TRACKED


class StepOutput(NamedTuple):
    """The result of `Stream.step`: the tracks at one frame, highest score first."""

    frame_index: int  # 0 for the first frame after construction or reset
    height: int
    width: int
    tracks: tuple[Track, ...]
