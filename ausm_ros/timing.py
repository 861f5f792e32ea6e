"""What the stamp of an image means for it: accept, drop, or a jump in time. Stamps are integers in nanoseconds."""

import math
from enum import Enum

SECOND = 10**9
JUMP = SECOND  # stamps that go back by more than this are a jump (a bag that loops), less is a duplicate


class Verdict(Enum):
    """What to do with an image."""

    ACCEPT = "accepted"
    JUMP = "time_jump"  # accept, but time went back
    ZERO = "zero_stamp"
    DUPLICATE = "duplicate"  # equal to or older than the last one
    TOO_OLD = "too_old"
    LIMITED = "rate_limited"


class StampGate:
    """Decides on each image of one camera by its stamp alone. Dropped images leave no trace."""

    def __init__(self) -> None:
        self.last: int | None = None  # stamp of the last accepted image
        self._due: int | None = None

    def check(self, stamp: int, now: int = 0, max_age: int = 0, period: int = 0) -> Verdict:
        """now, max_age: the node's clock, the most age on it; period: least time between images; 0 = no limit [ns]."""
        if stamp == 0:
            return Verdict.ZERO
        jump = self.last is not None and stamp < self.last - JUMP
        if self.last is not None and stamp <= self.last and not jump:
            return Verdict.DUPLICATE
        if max_age and now - stamp > max_age:
            return Verdict.TOO_OLD
        if period and not jump and self._due is not None and self.last is not None:
            self._due = min(self._due, self.last + period + period // 20)  # set by a longer period than now
            if stamp < self._due - period // 20:  # a camera is never exactly on time
                return Verdict.LIMITED
            on_time = stamp < self._due + period  # the mean rate is kept, a gap is not made up for
            self._due = (self._due if on_time else stamp) + period
        else:
            self._due = stamp + period if period else None
        self.last = stamp
        return Verdict.JUMP if jump else Verdict.ACCEPT


class RateLimit:
    """Lets through at most so many events per second of a monotonic clock."""

    def __init__(self) -> None:
        self._last = -math.inf

    def allows(self, now: float, rate: float) -> bool:
        """now: seconds of any monotonic clock; rate: Hz, 0 = no limit."""
        if rate > 0 and now - self._last < 1.0 / rate:
            return False
        self._last = now
        return True
