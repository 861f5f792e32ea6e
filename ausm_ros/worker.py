"""The inference thread: steps the newest image of each camera and applies what services queued. No ROS."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ausm.errors import AusmError, ImageError
from ausm.tracks import StepOutput
from ausm_ros.counts import CameraCounts
from ausm_ros.prompts import Code, ObjectPrompt, Outcome
from ausm_ros.session import NotFiniteError, Session, Snapshot

QUEUE = 32  # images held for policy "every"
MAX_FAILURES = 3  # unexpected errors in a row before the node gives up


class Pending(NamedTuple):
    """An image that waits to be processed."""

    message: Any  # as received
    stamp: int  # [ns]
    received: float  # time.monotonic()
    jump: bool = False  # time went back before this image


class Report(NamedTuple):
    """One processed image, to be published."""

    message: Any  # the source image as received
    image: np.ndarray  # (H, W, 3) uint8 RGB
    output: StepOutput
    snapshot: Snapshot
    dropped: int
    received: float  # time.monotonic()
    queue_time: float  # seconds
    inference_time: float  # seconds


class PromptsApplied(NamedTuple):
    """The answer to a `PromptRequest`."""

    outcomes: list[Outcome]  # one for each prompt
    stamp: int  # of the image they were applied to, 0 if none was
    epoch: int


@dataclass(eq=False)  # two of the same content are two requests
class PromptRequest:
    """Checked prompts on their way to the worker. Cancelling `future` before they are applied withdraws them."""

    prompts: list[ObjectPrompt]
    atomic: bool
    stamp: int = 0  # 0 = next image
    future: "Future[PromptsApplied]" = field(default_factory=Future)


class Mailbox:
    """The images of one camera that wait: only the newest, or (policy "every") the last `QUEUE`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: deque[Pending] = deque()
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
            return displaced

    def take(self) -> Pending | None:
        with self._lock:
            return self._images.popleft() if self._images else None

    def since(self) -> float | None:
        """When the oldest waiting image was received, None if there is none."""
        with self._lock:
            return self._images[0].received if self._images else None

    def clear(self) -> int:
        with self._lock:
            number = len(self._images)
            self._images.clear()
            return number


class CameraTask:
    """What the worker does for one camera. `post*` and `mailbox.put` are for other threads, the rest for the worker."""

    def __init__(
        self,
        name: str,
        session: Session,
        policy: str,
        decode: Callable[[Any], np.ndarray],
        publish: Callable[[Report], None],
        log_error: Callable[[str, str], None],
        counts: CameraCounts,
    ) -> None:
        """decode: message -> (H, W, 3) RGB or ImageError; log_error(kind, text): one line per kind of error."""
        self.name = name
        self.session = session
        self.mailbox = Mailbox(1 if policy == "latest" else QUEUE)
        self.counts = counts
        self.on_time_jump = "reset"
        self.on_size_change = "reset"
        self.failures = 0
        self._decode = decode
        self._publish = publish
        self._log_error = log_error
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._prompts: deque[PromptRequest] = deque()

    @property
    def waiting_prompts(self) -> list[ObjectPrompt]:
        """Objects that services have queued and no image has taken up yet."""
        return [p for request in list(self._prompts) if not request.future.done() for p in request.prompts]

    def post(self, call: Callable[[], Any]) -> "Future[Any]":
        """Runs `call` in the worker before the next image."""
        future: Future[Any] = Future()
        self._calls.append((call, future))
        return future

    def post_prompts(self, request: PromptRequest) -> None:
        self._prompts.append(request)

    def has_work(self) -> bool:
        return bool(self._calls) or self.mailbox.since() is not None or self._prompt_is_due()

    def run_calls(self) -> None:
        """Carries out removals, resets and settings, then prompts drawn on the image that was processed last."""
        while self._calls:
            call, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except Exception as error:  # handed to the service that waits
                    future.set_exception(error)
        if self._prompt_is_due():
            self._apply_prompts()

    def _prompt_is_due(self) -> bool:
        """A prompt names exactly the image the session stands on, so need not wait for another."""
        stamp = self.session.snapshot.stamp
        return stamp > 0 and any(0 < r.stamp <= stamp and not r.future.done() for r in list(self._prompts))

    def _apply_prompts(self, next_image: bool = False) -> None:
        """Applies the requests whose time has come to the image the session stands on."""
        snapshot = self.session.snapshot
        for _ in range(len(self._prompts)):
            request = self._prompts.popleft()
            due = next_image if request.stamp == 0 else request.stamp <= snapshot.stamp
            if not due:
                self._prompts.append(request)
            elif request.future.set_running_or_notify_cancel():
                stamp = snapshot.stamp
                try:
                    if 0 < request.stamp < stamp:
                        outcomes, stamp = self.session.prompt_at(request.stamp, request.prompts, request.atomic)
                    else:
                        outcomes = self.session.prompt(request.prompts, request.atomic)
                except Exception as error:  # handed to the service that waits
                    outcomes = [Outcome(Code.INTERNAL_ERROR, f"{type(error).__name__}: {error}")] * len(request.prompts)
                    self._log_error("prompt", outcomes[0].message)
                applied = any(o.code == Code.OK for o in outcomes)
                request.future.set_result(PromptsApplied(outcomes, stamp if applied else 0, snapshot.epoch))

    def refuse_waiting(self, code: Code, message: str) -> None:
        """Answers every queued request that can no longer be carried out."""
        while self._prompts:
            self._refuse(self._prompts.popleft(), code, message)
        while self._calls:
            self._calls.popleft()[1].cancel()

    def _refuse(self, request: PromptRequest, code: Code, message: str) -> None:
        if request.future.set_running_or_notify_cancel():
            outcomes = [Outcome(code, message)] * len(request.prompts)
            request.future.set_result(PromptsApplied(outcomes, 0, self.session.epoch))

    def process(self) -> None:
        """Takes one image through decode, step, prompts and publication."""
        pending = self.mailbox.take()
        if pending is None:
            return
        started = time.monotonic()
        try:
            image = self._decode(pending.message)
        except ImageError as error:
            self.counts.drop("unreadable")
            self._log_error("unreadable", str(error))
            return
        if pending.jump and self.on_time_jump == "reset":
            self.reset("time_jumps")
        height, width = image.shape[:2]
        if not self.session.see(height, width, pending.stamp):
            if self.on_size_change == "reject":
                self.counts.drop("wrong_size")
                known = f"{self.session.snapshot.height}x{self.session.snapshot.width}"
                self._log_error("wrong_size", f"image of {height}x{width} rejected, the stream has {known}")
                return
            self.reset("size_changes")
            self.session.see(height, width, pending.stamp)
        try:
            before = time.monotonic()
            self.session.step(image, pending.stamp)
            inference = time.monotonic() - before
        except (AusmError, NotFiniteError) as error:
            self.counts.drop("failed")
            self._log_error("failed", f"{type(error).__name__}: {error}; history reset")
            self.reset("model_errors")
            return
        self._apply_prompts(next_image=True)
        output = self.session.stream.current
        assert output is not None  # a step was made
        report = Report(
            pending.message,
            image,
            output,
            self.session.snapshot,
            self.counts.take_dropped(),
            pending.received,
            started - pending.received,
            inference,
        )
        self._publish(report)
        self.counts.inference.add(inference)
        self.counts.queue.add(report.queue_time)
        self.counts.processed.add(time.monotonic() - pending.received)
        self.counts.count("processed")
        self.failures = 0
        self.session.stream.absorb()  # half of the next step, done while the camera exposes

    def reset(self, event: str) -> int:
        """A new epoch, counted as `event`; returns it. A prompt that waits for a stamp of the old one is refused."""
        self.counts.count(event)
        epoch = self.session.new_epoch()
        for request in [r for r in self._prompts if r.stamp]:
            self._prompts.remove(request)
            self._refuse(request, Code.STALE_STAMP, f"a new epoch began before an image of stamp {request.stamp} ns")
        return epoch

    def recover(self, error: Exception) -> bool:
        """After an unexpected error: a new epoch, unless it is the third in a row."""
        self.failures += 1
        self.counts.drop("failed")
        self._log_error("internal", f"{type(error).__name__}: {error}; history reset")
        if self.failures >= MAX_FAILURES:
            return False
        self.reset("model_errors")
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """True for PyTorch's errors on either device, which share no class."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("memory" in words and "alloc" in words)
    )


class Worker:
    """One thread for all cameras: they share the weights and the device. The image that waits longest goes first."""

    def __init__(self, tasks: Sequence[CameraTask], on_fatal: Callable[[str], None]) -> None:
        """on_fatal: called once from the worker's thread when it cannot go on (out of memory, errors that repeat)."""
        self._tasks = list(tasks)
        self._on_fatal = on_fatal
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ausm-worker", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something was put in a mailbox or posted."""
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """Lets the image in progress finish, then answers what still waits."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        for task in self._tasks:
            task.counts.drop("disabled", task.mailbox.clear())
            task.refuse_waiting(Code.NOT_ACTIVE, "the node was deactivated")

    def _next(self) -> CameraTask | None:
        waiting = [(since, task) for task in self._tasks if (since := task.mailbox.since()) is not None]
        return min(waiting, key=lambda pair: pair[0])[1] if waiting else None

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or any(t.has_work() for t in self._tasks))
                if self._stopping:
                    return
            for task in self._tasks:
                task.run_calls()
            chosen = self._next()
            if chosen is None:
                continue
            try:
                chosen.process()
            except Exception as error:  # the thread must live on; recover() logs it
                if is_out_of_memory(error):
                    self._on_fatal(f"out of memory: {str(error).splitlines()[0]}")
                    return
                try:
                    if chosen.recover(error):
                        continue
                    words = f"{MAX_FAILURES} errors in a row, the last"
                except Exception as second:  # the thread may not end without a word
                    error, words = second, "no reset after an error"
                self._on_fatal(f"{words}: {type(error).__name__}: {error}")
                return
