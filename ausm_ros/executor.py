"""Images in the spinning thread, each service request in a thread of its own.

rclpy's single-threaded executor would hold the images back while a service waits for its answer; its multi-threaded
one costs half as much again per image, and spins at 100 % of a core when all its threads wait. Here images and timers
run at once where they are found, and requests in one of `slots` threads. When all of these wait, the request is
answered in the spinning thread, where `may_wait()` is False: the service then answers at once instead of waiting.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rclpy.executors import Executor, ExternalShutdownException, ShutdownException, TimeoutException
from rclpy.service import Service

_spinning = threading.local()


def may_wait() -> bool:
    """False in the thread that delivers images: nothing there may block."""
    return not getattr(_spinning, "here", False)


class ServiceThreadsExecutor(Executor):
    """See the module. Exceptions of callbacks are logged and the node lives on."""

    def __init__(self, slots: int = 12, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # one more than slots: `submit` must not take the thread of a request
        self._pool = ThreadPoolExecutor(slots + 1, thread_name_prefix="ausm-service")
        self._slots = threading.Semaphore(slots)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        _spinning.here = True
        try:
            handler, entity, node = self.wait_for_ready_callbacks(timeout_sec)
        except (TimeoutException, ShutdownException):
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
