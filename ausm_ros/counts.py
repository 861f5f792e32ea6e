"""Counters and rolling figures of one camera: written by the threads that see the events, read by diagnostics."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 10.0  # seconds that rates and percentiles look back
USELESS = 5.0  # seconds of images none of which is processed
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

    def add(self, value: float = 0.0) -> None:
        with self._lock:
            self._events.append((time.monotonic(), value))

    def values(self) -> list[tuple[float, float]]:
        """(seconds ago, value) of the events in the window, oldest first."""
        now = time.monotonic()
        with self._lock:
            while self._events and self._events[0][0] < now - WINDOW:
                self._events.popleft()
            return [(now - t, v) for t, v in self._events]

    def rate(self) -> float:
        """Events per second over the window."""
        events = self.values()
        if len(events) < 2:
            return len(events) / WINDOW
        return (len(events) - 1) / max(events[0][0] - events[-1][0], 1e-9) if events[-1][0] < 2.0 else 0.0

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
        self.encoding = ""
        self._error = ("", -math.inf)  # its words and time.monotonic()

    def tell_error(self, text: str) -> None:
        self._error = (text, time.monotonic())  # one assignment: words and time belong together

    def last_error(self) -> tuple[str, float]:
        """Its words and how many seconds ago; "" and infinity before the first."""
        text, at = self._error
        return text, time.monotonic() - at

    def useless(self) -> bool:
        """Whether images have come for some seconds, and still come, and not one of them was processed."""
        came = self.received.values()
        comes = bool(came) and came[0][0] > USELESS > came[-1][0]
        return comes and not any(ago < USELESS for ago, _ in self.processed.values())

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
        with self._lock:
            self._totals["received"] += 1
        self.received.add()
        self.last_received = time.monotonic()
        self.encoding = encoding

    def drop(self, reason: str, number: int = 1) -> None:
        """reason: one of `DROPS`."""
        with self._lock:
            self._totals[reason] += number
            self._dropped += number

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

    def take_dropped(self) -> int:
        """Images dropped since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def totals(self, names: Sequence[str]) -> dict[str, int]:
        with self._lock:
            return {name: self._totals[name] for name in names}
