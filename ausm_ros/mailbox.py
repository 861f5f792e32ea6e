"""Images that wait for the worker, of one camera. No ROS."""

import threading
from collections import deque
from typing import Any, NamedTuple

QUEUE = 32  # images held for policy "every"


class Pending(NamedTuple):
    """An image that waits to be processed."""

    message: Any  # as received
    stamp: int  # [ns]
    received: float  # time.monotonic()
    jump: bool = False  # time went back before this image


class Mailbox:
    """The images of one camera that wait: only the newest, or (policy "every") the last `QUEUE`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: deque[Pending] = deque()
        self._since: float | None = None
        self._lock = threading.Lock()

    def put(self, pending: Pending) -> int:
        """Returns how many older images it displaced; a jump in time among them is passed on."""
        with self._lock:
            displaced = 0
            while len(self._images) >= self._size:
                oldest = self._images.popleft()
                displaced += 1
                if oldest.jump and self._images:
                    self._images[0] = self._images[0]._replace(jump=True)
                elif oldest.jump:
                    pending = pending._replace(jump=True)
            self._images.append(pending)
            if self._since is None:
                self._since = pending.received
            return displaced

    def take(self) -> Pending | None:
        with self._lock:
            taken = self._images.popleft() if self._images else None
            self._since = self._images[0].received if self._images else None
            return taken

    def since(self) -> float | None:
        """Since when the camera waits, None if it does not. A newer image in place of another one waits as long: else
        the camera whose images are displaced more often would always come last."""
        with self._lock:
            return self._since

    def clear(self) -> int:
        with self._lock:
            number = len(self._images)
            self._images.clear()
            self._since = None
            return number
