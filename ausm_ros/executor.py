"""Images in the spinning thread, each service request in a thread of its own.

rclpy's single-threaded executor would hold the images back while a service waits for its answer; its multi-threaded
one costs half as much again per image, and spins at 100 % of a core when all its threads wait. Here images and timers
run at once where they are found, and requests in one of `slots` threads. When all of these wait, the request is
answered in the spinning thread, where `may_wait()` is False: the service then answers at once instead of waiting.

Python runs one thread at a time, so a flood of requests would take the model's turns. Services of a `Ration` are served
one after the other, and together get no more than a share of the time; what comes beyond that waits its turn in DDS.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException, TimeoutException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.service import Service

SHARE = 0.08  # of the time that requests may take from the model in the long run
CREDIT = 1.0  # seconds of waiting that are forgiven: requests now and then are served at once, whatever they cost
RETRY = 0.05  # seconds after which an executor looks again whether requests have their turn

_spinning = threading.local()


def may_wait() -> bool:
    """False in the thread that delivers images: nothing there may block."""
    return not getattr(_spinning, "here", False)


class Ration(CallbackGroup):
    """A group whose callbacks run one after the other, for `SHARE` of the time. Those that wait let others run."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._running = 0
        self._until = 0.0  # time.monotonic() when all that was spent will be made up for
        self._begun = threading.local()

    @property
    def held_back(self) -> bool:
        """No callback may begin now, though one may be ready."""
        return self._running > 0 or time.monotonic() < self._until - CREDIT

    def can_execute(self, entity: Any) -> bool:
        return not self.held_back

    def beginning_execution(self, entity: Any) -> bool:
        with self._lock:
            if self._running:
                return False
            self._running += 1
        self._begun.at = time.thread_time()
        return True

    def ending_execution(self, entity: Any) -> None:
        spent = time.thread_time() - self._begun.at  # of this thread alone: waiting costs nobody anything
        with self._lock:
            self._running -= 1
            self._until = max(self._until, time.monotonic()) + spent * (1 / SHARE - 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the callback waits for something, the next one may begin."""
        with self._lock:
            self._running -= 1
        try:
            yield
        finally:
            with self._lock:
                self._running += 1


class ServiceThreadsExecutor(Executor):
    """See the module. Exceptions of callbacks are logged and the node lives on."""

    def __init__(self, ration: Ration | None = None, slots: int = 12, **kwargs: Any) -> None:
        """ration: the group of the services, if it is one; the executor then wakes up when their turn comes."""
        super().__init__(**kwargs)
        self._ration = ration
        # one more than slots: `submit` must not take the thread of a request
        self._pool = ThreadPoolExecutor(slots + 1, thread_name_prefix="ausm-service")
        self._slots = threading.Semaphore(slots)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        _spinning.here = True
        if timeout_sec is None and self._ration is not None and self._ration.held_back:
            timeout_sec = RETRY
        entity: Any
        try:
            handler, entity, node = self.wait_for_ready_callbacks(timeout_sec)
        except (TimeoutException, ShutdownException):
            return
        except rclpy_implementation.InvalidHandle:
            # rclpy waits for everything the node had when it began to look; a transition in another thread destroys
            # subscriptions meanwhile (rclpy #1142), and the next look finds them gone
            if not self.context.ok():
                raise
            return
        if isinstance(entity, Service) and self._slots.acquire(blocking=False):
            self._pool.submit(self._serve, handler, node)
            while not (handler.executing() or handler.done()):  # until then the executor would offer it again
                time.sleep(0.0001)
        else:
            self._call(handler, node)

    def _serve(self, handler: Any, node: Any) -> None:
        try:
            self._call(handler, node)
        finally:
            self._slots.release()

    def _call(self, handler: Any, node: Any) -> None:
        handler()
        error = handler.exception() if handler.done() else None
        if isinstance(error, (ExternalShutdownException, KeyboardInterrupt)):
            raise error
        if error is not None and self.context.ok():  # else ROS was shut down under the callback
            node.get_logger().error(f"callback failed: {type(error).__name__}: {error}")

    def submit(self, call: Any) -> None:
        """Runs `call()` beside the executor, as a service would."""
        self._pool.submit(call)

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        done = super().shutdown(timeout_sec)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return done
