"""The inference thread: steps the newest image of each camera and applies what services queued. No ROS."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ausm.errors import AusmError, ImageError
from ausm.tracks import StepOutput
from ausm_ros.counts import CameraCounts
from ausm_ros.mailbox import QUEUE, Mailbox, Pending
from ausm_ros.prompts import OTHER_IDS, Code, ObjectPrompt, Outcome
from ausm_ros.session import Session, Snapshot

MAX_FAILURES = 3  # unexpected errors in a row before the node gives up

StepTogether = Callable[[list[Any], list[np.ndarray]], list[StepOutput]]  # `ausm.together.step_together`


class Report(NamedTuple):
    """One processed image, to be published."""

    message: Any  # the source image as received
    image: np.ndarray  # (H, W, 3) uint8 RGB
    output: StepOutput
    snapshot: Snapshot
    dropped: int
    received: float  # time.monotonic()
    queue_time: float  # seconds
    inference_time: float  # seconds; of the batch, where cameras stepped together


class Ready(NamedTuple):
    """A decoded image on its way through the model."""

    pending: Pending
    image: np.ndarray  # (H, W, 3) uint8 RGB
    queue_time: float  # seconds
    output: StepOutput | None = None  # once several cameras have stepped together
    inference_time: float = 0.0  # seconds, of all of them


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
    awaited: bool = True  # somebody waits for the outcomes; if not, the log has to tell of a failure
    epoch: int | None = None  # whose ids the prompts name; None = any
    future: "Future[PromptsApplied]" = field(default_factory=Future)

    @property
    def names_ids(self) -> bool:
        """An id means one object within one epoch only."""
        return any(p.track_id for p in self.prompts)


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
        log_event: Callable[[str, str], None] = lambda kind, text: None,
    ) -> None:
        """decode: message -> (H, W, 3) RGB or ImageError; log_error, log_event (kind, text): one line per kind."""
        self.name = name
        self.session = session
        self.mailbox = Mailbox(1 if policy == "latest" else QUEUE)
        self.counts = counts
        self.on_time_jump = "reset"
        self.on_size_change = "reset"
        self.failures = 0
        self.ready: Ready | None = None
        self._decode = decode
        self._publish = publish
        self._log_error, self._log_event = log_error, log_event
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._prompts: tuple[PromptRequest, ...] = ()  # replaced as a whole: any thread may read it
        self._prompts_lock = threading.Lock()  # held to replace it

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of this epoch's images; 0 x 0 before the first."""
        return self.session.snapshot.height, self.session.snapshot.width

    @property
    def waiting_prompts(self) -> list[ObjectPrompt]:
        """Objects that services have queued and no image has taken up yet."""
        return [p for request in self._unanswered for p in request.prompts]

    @property
    def _unanswered(self) -> list[PromptRequest]:
        """In their order, without those that are over and about to leave the queue."""
        return [r for r in self._prompts if not r.future.done()]

    def post(self, call: Callable[[], Any]) -> "Future[Any]":
        """Runs `call` in the worker before the next image."""
        future: Future[Any] = Future()
        self._calls.append((call, future))
        return future

    def post_prompts(self, request: PromptRequest) -> None:
        with self._prompts_lock:
            self._prompts += (request,)
        # one that is withdrawn would hold its masks until the next image, and the camera may be silent
        request.future.add_done_callback(lambda _: self._drop_finished())

    def _drop_finished(self) -> None:
        with self._prompts_lock:
            self._prompts = tuple(r for r in self._prompts if not r.future.done())

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
        return stamp > 0 and any(0 < r.stamp <= stamp for r in self._unanswered)

    def _apply_prompts(self, next_image: bool = False) -> None:
        """Applies the requests whose time has come to the image the session stands on."""
        snapshot = self.session.snapshot
        for request in self._unanswered:  # one leaves the queue when it is answered: until then its names are taken
            if not (next_image if request.stamp == 0 else request.stamp <= snapshot.stamp):
                continue
            if request.names_ids and request.epoch not in (None, snapshot.epoch):
                self._refuse(request, Code.STALE_STAMP, f"a new epoch began, {snapshot.epoch}: {OTHER_IDS}")
            elif request.future.set_running_or_notify_cancel():
                stamp, fatal = snapshot.stamp, None
                try:
                    if 0 < request.stamp < stamp:
                        outcomes, stamp = self.session.prompt_at(request.stamp, request.prompts, request.atomic)
                    else:
                        outcomes = self.session.prompt(request.prompts, request.atomic)
                except Exception as error:  # handed to the service that waits
                    outcomes = [Outcome(Code.INTERNAL_ERROR, f"{type(error).__name__}: {error}")] * len(request.prompts)
                    self._log_error("prompt", outcomes[0].message)
                    fatal = error if is_out_of_memory(error) else None
                applied = any(o.code == Code.OK for o in outcomes)
                self._answer(request, PromptsApplied(outcomes, stamp if applied else 0, snapshot.epoch))
                if fatal is not None:
                    raise fatal

    def _answer(self, request: PromptRequest, answer: PromptsApplied) -> None:
        bad = [(p, o) for p, o in zip(request.prompts, answer.outcomes, strict=True) if o.code != Code.OK]
        if bad and not request.awaited:
            first, outcome = bad[0]
            which = f"{len(bad)} of {len(request.prompts)} queued prompts not applied: '{first.name}'"
            self._log_error("queued_prompt", f"{which}: {outcome.code.name}: {outcome.message}")
        request.future.set_result(answer)

    def refuse_waiting(self, code: Code, message: str) -> None:
        """Answers every queued request that can no longer be carried out."""
        for request in self._unanswered:
            self._refuse(request, code, message)
        while self._calls:
            self._calls.popleft()[1].cancel()

    def _refuse(self, request: PromptRequest, code: Code, message: str) -> None:
        if request.future.set_running_or_notify_cancel():
            outcomes = [Outcome(code, message)] * len(request.prompts)
            self._answer(request, PromptsApplied(outcomes, 0, self.session.epoch))

    def prepare(self) -> None:
        """Takes an image from the mailbox: `ready`, unless there is none that the stream can take."""
        self.ready = None
        pending = self.mailbox.take()
        if pending is None:
            return
        queue_time = time.monotonic() - pending.received
        if pending.jump and self.on_time_jump == "reset":  # also if the image turns out to be unreadable
            self.reset("time_jumps")
        try:
            image = self._decode(pending.message)
        except ImageError as error:
            self.counts.drop("unreadable")
            self._log_error("unreadable", str(error))
            return
        height, width = image.shape[:2]
        if not self.session.see(height, width, pending.stamp):
            if self.on_size_change == "reject":
                self.counts.drop("wrong_size")
                known = f"{self.session.snapshot.height}x{self.session.snapshot.width}"
                self._log_error("wrong_size", f"image of {height}x{width} rejected, the stream has {known}")
                return
            self.reset("size_changes")
            self.session.see(height, width, pending.stamp)
        self.ready = Ready(pending, image, queue_time)

    def finish(self) -> None:
        """Steps the image that is ready, unless that is done already, applies prompts and publishes."""
        ready = self.ready
        if ready is None:
            return
        pending, inference = ready.pending, ready.inference_time
        try:
            if ready.output is not None:
                self.session.accept(ready.output, ready.image, pending.stamp)
            else:
                before = time.monotonic()
                self.session.step(ready.image, pending.stamp)
                inference = time.monotonic() - before
        except AusmError as error:
            self.ready = None
            self.counts.drop("failed")
            self._log_error("failed", f"{type(error).__name__}: {error}; history reset")
            self.reset("model_errors")
            return
        self._apply_prompts(next_image=True)
        report = Report(
            pending.message,
            ready.image,
            self.session.take_output(),
            self.session.snapshot,
            self.counts.take_dropped(),
            pending.received,
            ready.queue_time,
            inference,
        )
        self._publish(report)
        self.counts.inference.add(inference)
        self.counts.queue.add(report.queue_time)
        self.counts.processed.add(time.monotonic() - pending.received)
        self.counts.count("processed")
        self.failures = 0

    def absorb(self) -> None:
        """Half of the next step, done while the camera exposes."""
        if self.ready is not None:
            self.ready = None
            self.session.stream.absorb()

    def reset(self, event: str) -> int:
        """A new epoch, counted as `event`; returns it.

        A prompt that waits for a stamp of the old one or names an object of it is refused.
        """
        self.counts.count(event)
        forgotten = self.session.snapshot.in_use
        epoch = self.session.new_epoch()
        self._log_event(event, f"epoch {epoch} begins ({event}), {forgotten} objects are forgotten")
        for request in self._unanswered:
            if request.stamp or request.names_ids:
                image = f"an image of stamp {request.stamp} ns" if request.stamp else "the next image"
                ids = f": {OTHER_IDS}" if request.names_ids else ""
                self._refuse(request, Code.STALE_STAMP, f"a new epoch began before {image}{ids}")
        return epoch

    def recover(self, error: Exception) -> bool:
        """After an unexpected error: a new epoch, unless it is the third in a row."""
        self.ready = None
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


def step_batch(step: StepTogether, tasks: Sequence[CameraTask]) -> None:
    """One pass of the model for the images of several cameras, all of them ready.

    An image that the model refuses changes nothing: then each camera steps alone in `finish`, and answers for itself.
    """
    before = time.monotonic()
    try:
        outputs = step([task.session.stream for task in tasks], [task.ready.image for task in tasks if task.ready])
    except AusmError:
        return
    duration = time.monotonic() - before
    for task, output in zip(tasks, outputs, strict=True):
        assert task.ready is not None
        task.ready = task.ready._replace(output=output, inference_time=duration)


class Worker:
    """One thread for all cameras: they share the weights and the device.

    Images that wait at the same moment are taken together, else the one that waits longest goes first.
    """

    def __init__(
        self, tasks: Sequence[CameraTask], on_fatal: Callable[[str], None], together: StepTogether | None
    ) -> None:
        """on_fatal: called once from the worker's thread when it cannot go on (out of memory, errors that repeat).

        together: steps several cameras at once; None = one after the other.
        """
        self._tasks = list(tasks)
        self._on_fatal = on_fatal
        self._together = together
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
        """Lets the images in progress finish, then answers what still waits."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        for task in self._tasks:
            task.counts.drop("disabled", task.mailbox.clear())
            task.refuse_waiting(Code.NOT_ACTIVE, "the node was deactivated")

    def _next(self) -> list[CameraTask]:
        """The camera that waits longest, and others that wait with images of the same size."""
        waiting = [(since, task) for task in self._tasks if (since := task.mailbox.since()) is not None]
        tasks = [task for _, task in sorted(waiting, key=lambda pair: pair[0])]
        return [t for t in tasks if t is tasks[0] or (self._together and t.size == tasks[0].size)]

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or any(t.has_work() for t in self._tasks))
                if self._stopping:
                    return
            if not all(self._attempt([task], task.run_calls) for task in self._tasks):
                return
            tasks = self._next()
            if not all(self._attempt([task], task.prepare) for task in tasks):
                return
            ready = [task for task in tasks if task.ready is not None]
            together = partial(step_batch, self._together, ready) if self._together and len(ready) > 1 else None
            if together and not self._attempt(ready, together):
                return
            # all are published before the first one begins with its next step
            if not all(self._attempt([task], task.finish) for task in tasks):
                return
            if not all(self._attempt([task], task.absorb) for task in tasks):
                return

    def _attempt(self, tasks: Sequence[CameraTask], work: Callable[[], None]) -> bool:
        """Runs `work`; after an unexpected error its cameras begin new epochs. False when the worker cannot go on."""
        try:
            work()
        except Exception as error:  # the thread must live on; recover() logs it
            if is_out_of_memory(error):
                self._on_fatal(f"out of memory: {str(error).splitlines()[0]}")
                return False
            try:
                if all(task.recover(error) for task in tasks):
                    return True
                words = f"{MAX_FAILURES} errors in a row, the last"
            except Exception as second:  # the thread may not end without a word
                error, words = second, "no reset after an error"
            self._on_fatal(f"{words}: {type(error).__name__}: {error}")
            return False
        return True
