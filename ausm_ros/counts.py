"""Counters and rolling figures of one camera: written by the threads that see the events, read by diagnostics."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 10.0  # seconds that rates and percentiles look back
STOPPED = 2.0  # seconds without an event after which its rate is 0, unless it is slower than that
USELESS = 5.0  # seconds of images none of which is processed
NOT_MEANT = ("rate_limited", "disabled")  # reasons for which an image was not to be processed
DROPS = (
    "replaced",  # a newer image came before this one was processed
    "zero_stamp",
    "duplicate",
    "too_old",
    "rate_limited",
    "disabled",
    "unreadable",
    "wrong_size",
    "failed",
)


class Percentiles(NamedTuple):
    """Of one duration, in milliseconds; NaN without samples."""

    p50: float
    p95: float
    p99: float
    max: float


class Rolling:
    """Times of events within the last `WINDOW` seconds with one value each; bounded, whatever the rate."""

    def __init__(self, limit: int = 2048) -> None:
        self._events: deque[tuple[float, float]] = deque(maxlen=limit)
        self._lock = threading.Lock()
        self.last = -math.inf  # time.monotonic() of the last event, however long ago
        self._interval = math.inf  # between the last two

    def add(self, value: float = 0.0) -> None:
        with self._lock:
            now = time.monotonic()
            self._interval, self.last = now - self.last, now
            self._events.append((now, value))

    def values(self) -> list[tuple[float, float]]:
        """(seconds ago, value) of the events in the window, oldest first."""
        now = time.monotonic()
        with self._lock:
            while self._events and self._events[0][0] < now - WINDOW:
                self._events.popleft()
            return [(now - t, v) for t, v in self._events]

    def rate(self) -> float:
        """Events per second over the window, or between the last two where these are further apart; 0 once stopped."""
        events = self.values()
        if len(events) < 2:
            interval, silence = self._interval, time.monotonic() - self.last
        else:
            interval, silence = (events[0][0] - events[-1][0]) / (len(events) - 1), events[-1][0]
        if math.isinf(interval):
            return len(events) / WINDOW  # the first event
        return 1 / max(interval, 1e-9) if silence < max(STOPPED, 2 * interval) else 0.0

    def percentiles(self) -> Percentiles:
        """Of the values in the window, which are in seconds."""
        values = [v * 1e3 for _, v in self.values()]
        if not values:
            return Percentiles(*[float("nan")] * 4)
        return Percentiles(*(float(v) for v in np.percentile(values, [50, 95, 99, 100])))


class CameraCounts:
    """What happened to the images of one camera since the node was configured."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._dropped = 0
        self._last: dict[str, float] = {}  # time.monotonic() of each event's last time
        self.received = Rolling()
        self.processed = Rolling()  # value: receipt -> publication
        self.inference = Rolling()
        self.queue = Rolling()
        self.last_received = 0.0  # time.monotonic(), 0 = never
        self._left = 0  # images since the last processed one that were to be processed
        self._left_since = math.inf  # time.monotonic() of the first of them
        self.encoding = ""
        self._error = ("", -math.inf)  # its words and time.monotonic()

    def tell_error(self, text: str) -> None:
        self._error = (text, time.monotonic())  # one assignment: words and time belong together

    def last_error(self) -> tuple[str, float]:
        """Its words and how many seconds ago; "" and infinity before the first."""
        text, at = self._error
        return text, time.monotonic() - at

    def useless(self) -> bool:
        """Whether images have come for some seconds, and still come, and not one of them was processed.

        Only images that were to be processed count: with a low `max_rate` long times without a processed image are as
        they should be. A step of more than `USELESS` seconds looks the same.
        """
        now = time.monotonic()
        with self._lock:
            left = self._left > 1 and self.processed.last < self._left_since < now - USELESS
        return left and now - self.last_received < USELESS

    def reason(self) -> str:
        """Why images are not processed, as far as that is known."""
        text, ago = self.last_error()
        return text if ago < 2 * USELESS else "dropped, see the counts"

    def last_image(self) -> str:
        """For people: when the last image came, and why it was not processed."""
        if not self.last_received:
            return "no image yet"
        age = f"the last image came {time.monotonic() - self.last_received:.1f} s ago"
        return f"{age}, none is processed: {self.reason()}" if self.useless() else age

    def receive(self, encoding: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._totals["received"] += 1
            if self.processed.last >= self._left_since:
                self._left, self._left_since = 0, math.inf
            self._left, self._left_since = self._left + 1, min(self._left_since, now)
        self.received.add()
        self.last_received = now
        self.encoding = encoding

    def drop(self, reason: str, number: int = 1) -> None:
        """reason: one of `DROPS`."""
        with self._lock:
            self._totals[reason] += number
            self._dropped += number
            if reason in NOT_MEANT:
                self._left = max(0, self._left - number)
                self._left_since = self._left_since if self._left else math.inf

    def count(self, event: str) -> int:
        """Counts any other event; returns its total."""
        with self._lock:
            self._totals[event] += 1
            self._last[event] = time.monotonic()
            return self._totals[event]

    def recent(self, event: str) -> bool:
        """Whether `count` was told of the event within the last `WINDOW` seconds."""
        with self._lock:
            return event in self._last and time.monotonic() - self._last[event] < WINDOW

    def since_last_image(self, event: str) -> bool:
        """Whether `count` was told of the event and no image came after it."""
        with self._lock:
            return event in self._last and self._last[event] >= self.last_received

    def take_dropped(self) -> int:
        """Images dropped since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def totals(self, names: Sequence[str]) -> dict[str, int]:
        with self._lock:
            return {name: self._totals[name] for name in names}
