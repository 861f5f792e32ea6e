"""The node's services. Every request is checked here at once and answered with a typed code; none can raise or hang."""

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool

from ausm.tracks import TrackState
from ausm_ros.executor import Ration, may_wait
from ausm_ros.messages import to_instances, to_ns, to_result, to_time
from ausm_ros.parameters import Settings
from ausm_ros.prompts import (
    OTHER_IDS,
    Code,
    ObjectPrompt,
    Outcome,
    Refusal,
    check_count,
    check_prompts,
    outcomes_if_refused,
)
from ausm_ros.runtime import CameraParts, Runtime
from ausm_ros.session import Snapshot
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
from ausm_ros.worker import PromptRequest, PromptsApplied

MAX_WAITING = 8  # requests that wait for their prompts at a time; the executor has threads for more than these
MAX_WAIT = 60.0  # seconds a request may hold one of the service threads
CALL_WAIT = 20.0  # seconds for the step in progress to end, before a removal or reset gives up
QUEUE = QoSProfile(depth=100)  # ROS's own 10 lose requests that come together, and a lost one is never answered
MAX_REMOVALS = 4096  # ids in one request


class Services:
    """Creates the services of a node; `runtime` gives what is configured at the moment, or None."""

    def __init__(self, node: Node, runtime: Callable[[], Runtime | None], set_discovery: Callable[[bool], str]) -> None:
        """set_discovery: changes the parameter; returns the reason if that is refused, "" if not."""
        self._node, self._runtime, self._set_discovery = node, runtime, set_discovery
        self._waiting = threading.Semaphore(MAX_WAITING)
        self.ration = Ration()
        options: dict[str, Any] = {"callback_group": self.ration, "qos_profile": QUEUE}
        self._services = [
            node.create_service(AddObjects, "~/add_objects", self._guarded(self._add), **options),
            node.create_service(RemoveObjects, "~/remove_objects", self._guarded(self._remove), **options),
            node.create_service(Reset, "~/reset", self._guarded(self._reset), **options),
            node.create_service(ListObjects, "~/list_objects", self._guarded(self._list), **options),
            node.create_service(SetBool, "~/enable", self._guarded(self._enable), **options),
            node.create_service(SetBool, "~/discovery", self._guarded(self._discovery), **options),
        ]

    def _guarded(self, handle: Callable[[Any, Any], None]) -> Callable[[Any, Any], Any]:
        """Turns a refusal, and any error of our own, into a reply."""

        def answer(request: Any, response: Any) -> Any:
            try:
                handle(request, response)
            except Refusal as refusal:
                self._refuse(request, response, refusal.code, refusal.message)
            except Exception as error:  # the caller gets a reply, the log gets the place
                place = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error}"
                self._node.get_logger().error(f"{handle.__name__} failed at {place.filename}:{place.lineno}: {text}")
                self._refuse(request, response, Code.INTERNAL_ERROR, text)
            return response

        return answer

    @staticmethod
    def _refuse(request: Any, response: Any, code: Code, message: str) -> None:
        response.success = False
        response.message = f"{code.name}: {message}"
        number = len(request.prompts) if hasattr(request, "prompts") else len(getattr(request, "track_ids", ()))
        if hasattr(response, "results"):
            response.results = [to_result(Outcome(code, message)) for _ in range(min(number, MAX_REMOVALS))]

    def _active(self) -> Runtime:
        runtime = self._runtime()
        if runtime is None or not runtime.active:
            state = "unconfigured" if runtime is None else "configured but not active"
            raise Refusal(Code.NOT_ACTIVE, f"the node is {state}")
        return runtime

    @staticmethod
    def _wake(runtime: Runtime, *posted: "Future[Any]") -> None:
        """The worker has something to do. If it was stopped since the request was checked, nobody would ever do it."""
        runtime.worker.notify()
        if not runtime.active:
            for future in posted:
                future.cancel()

    def _wait(self, future: "Future[Any]", seconds: float) -> Any:
        """The result of the worker. Withdraws the request and raises `Refusal` when it does not come in time."""
        if not may_wait():
            if future.cancel():
                raise Refusal(Code.TOO_MANY, "as many requests as the node accepts are in progress already")
            return future.result()
        try:
            with self.ration.waiting():
                return future.result(timeout=min(seconds, MAX_WAIT))
        except FutureTimeoutError:
            if future.cancel():
                raise Refusal(Code.TIMEOUT, f"not applied within {min(seconds, MAX_WAIT):.2f} s, withdrawn") from None
            return future.result()  # it began in this very moment
        except CancelledError:
            raise Refusal(Code.NOT_ACTIVE, "the node was deactivated") from None

    # --- prompts ------------------------------------------------------------------------------------------------

    def _add(self, request: Any, response: Any) -> None:
        runtime = self._active()
        parts = runtime.find(request.camera)
        snapshot = parts.task.session.snapshot
        check_count(request.prompts, snapshot.capacity)  # the model's, where the parameter asks for more
        response.epoch = snapshot.epoch
        stamp = self._check_stamp(request, parts, snapshot, runtime.settings)
        checked = self._check(request, parts, snapshot, runtime.settings)
        outcomes = outcomes_if_refused(checked, request.all_or_nothing)
        good = [c for c, o in zip(checked, outcomes, strict=True) if o is None and isinstance(c, ObjectPrompt)]
        if good:
            awaited = to_ns(request.wait) > 0
            queued = PromptRequest(good, request.all_or_nothing, stamp, awaited, snapshot.epoch)
            parts.task.post_prompts(queued)
            self._wake(runtime, queued.future)
            applied = self._applied(queued, to_ns(request.wait) / 1e9, snapshot, parts)
            response.epoch = applied.epoch
            response.applied_stamp = to_time(applied.stamp)
            results = iter(applied.outcomes)
            outcomes = [next(results) if o is None else o for o in outcomes]
        final = [o for o in outcomes if o is not None]
        self._conclude(response, final)

    def _check_stamp(self, request: Any, parts: CameraParts, snapshot: Snapshot, settings: Settings) -> int:
        stamp = to_ns(request.stamp)
        if not parts.camera.enabled:
            raise Refusal(Code.NOT_ACTIVE, f"camera {parts.task.name} is disabled")
        if snapshot.height == 0:
            raise Refusal(Code.NO_IMAGE, f"camera {parts.task.name} has had no image in epoch {snapshot.epoch}")
        if 0 < stamp < snapshot.began and any(p.track_id for p in request.prompts):
            words = f"epoch {snapshot.epoch} began {(snapshot.began - stamp) / 1e9:.3f} s after the stamp"
            raise Refusal(Code.STALE_STAMP, f"{words}: {OTHER_IDS}")
        apart = (stamp - snapshot.stamp) / 1e9
        if stamp and abs(apart) > settings.prompt_stale_after:
            words = f"{abs(apart):.3f} s {'after' if apart > 0 else 'before'} the newest image"
            raise Refusal(Code.STALE_STAMP, f"stamp is {words}, at most {settings.prompt_stale_after:g} s are accepted")
        return stamp

    def _check(self, request: Any, parts: CameraParts, snapshot: Snapshot, settings: Settings) -> list[Any]:
        waiting = parts.task.waiting_prompts
        if len(waiting) + len(request.prompts) > snapshot.capacity:
            raise Refusal(
                Code.TOO_MANY,
                f"{len(request.prompts)} prompts and {len(waiting)} that wait, at most {snapshot.capacity} may wait",
            )
        scene = snapshot.scene(settings.prompt_min_area)
        scene = replace(scene, pinned=scene.pinned + sum(p.track_id == 0 for p in waiting))
        return check_prompts(request.prompts, scene, {p.name: p.track_id for p in waiting if p.name})

    def _applied(self, request: PromptRequest, wait: float, snapshot: Snapshot, parts: CameraParts) -> PromptsApplied:
        """What became of the request: applied, or (wait 0) queued, or withdrawn."""
        number = len(request.prompts)
        if wait <= 0 and request.future.cancelled():
            return PromptsApplied([Outcome(Code.NOT_ACTIVE, "the node was deactivated")] * number, 0, snapshot.epoch)
        if wait <= 0:
            return PromptsApplied([Outcome(Code.OK, "queued")] * number, 0, snapshot.epoch)
        try:
            if not self._waiting.acquire(blocking=False):
                if request.future.cancel():
                    raise Refusal(Code.TOO_MANY, f"{MAX_WAITING} requests are waiting already; withdrawn")
                return request.future.result()
            try:
                applied: PromptsApplied = self._wait(request.future, wait)
                return applied
            finally:
                self._waiting.release()
        except Refusal as refusal:
            message = refusal.message
            if refusal.code == Code.TIMEOUT:
                message += f"; camera {parts.task.name}: {parts.counts.last_image()}"
            return PromptsApplied([Outcome(refusal.code, message)] * number, 0, snapshot.epoch)

    @staticmethod
    def _conclude(response: Any, outcomes: list[Outcome]) -> None:
        response.results = [to_result(o) for o in outcomes]
        bad = [o for o in outcomes if o.code != Code.OK]
        response.success = not bad
        response.message = f"{len(bad)} of {len(outcomes)} refused: {bad[0].code.name}: {bad[0].message}" if bad else ""

    # --- the rest -----------------------------------------------------------------------------------------------

    def _remove(self, request: Any, response: Any) -> None:
        runtime = self._active()
        parts = runtime.find(request.camera)
        if len(request.track_ids) > MAX_REMOVALS:
            raise Refusal(Code.TOO_MANY, f"{len(request.track_ids)} ids in one request, at most {MAX_REMOVALS}")
        session, ids = parts.task.session, [int(i) for i in request.track_ids]
        call = session.remove_all if request.all else partial(session.remove, ids)
        future = parts.task.post(call)
        self._wake(runtime, future)
        self._conclude(response, self._wait(future, CALL_WAIT))

    def _reset(self, request: Any, response: Any) -> None:
        runtime = self._active()
        chosen = list(runtime.cameras.values()) if request.camera == "" else [runtime.find(request.camera)]
        futures = [parts.task.post(partial(parts.task.reset, "resets")) for parts in chosen]
        self._wake(runtime, *futures)
        response.epoch = max(self._wait(future, CALL_WAIT) for future in futures)
        response.success = True

    def _list(self, request: Any, response: Any) -> None:
        parts = self._active().find(request.camera)
        snapshot = parts.task.session.snapshot
        live = [t for t in snapshot.tracks if t.state != TrackState.REMOVED]
        response.objects = to_instances(live, snapshot.sightings, with_mask=False)
        response.capacity, response.in_use = snapshot.capacity, snapshot.in_use
        response.success = True

    def _enable(self, request: Any, response: Any) -> None:
        self._active().set_enabled(request.data)
        response.success = True
        response.message = "enabled" if request.data else "disabled: images are received, counted and dropped"

    def _discovery(self, request: Any, response: Any) -> None:
        reason = self._set_discovery(request.data)
        response.success = not reason
        response.message = reason or f"discovery is {'on' if request.data else 'off'}"
