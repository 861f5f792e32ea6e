"""A node without ROS for `bench.fuzz`: its services, camera callback and worker as they are, on any stream."""

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ausm_ros.camera import Camera
from ausm_ros.counts import CameraCounts
from ausm_ros.messages import rgb_of, to_instance_array
from ausm_ros.parameters import SPECS, CameraSettings, make_settings
from ausm_ros.prompts import Code
from ausm_ros.runtime import CameraParts, Runtime
from ausm_ros.services import Services
from ausm_ros.session import Session
from ausm_ros.worker import CameraTask, Worker


class Rig:
    """One camera. `answers` holds the callbacks by service; `errors` and `warnings` count lines of the log."""

    def __init__(self, stream: Any) -> None:
        """stream: an `ausm.Stream`, or what behaves like one."""
        self.settings = make_settings({spec.name: spec.default for spec in SPECS})
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.published = 0
        self.fatal: list[str] = []
        self.answers: dict[str, Callable[[Any, Any], Any]] = {}
        session = Session(lambda: stream)
        session.new_epoch()
        self.counts = CameraCounts()
        node: Any = SimpleNamespace(
            create_service=lambda _, name, answer, **__: self.answers.setdefault(name[2:], answer),
            get_logger=lambda: SimpleNamespace(
                error=lambda text: self.errors.update([text]), warning=lambda text: self.warnings.update([text])
            ),
            get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=0)),
        )
        self.task = CameraTask("camera", session, "latest", rgb_of, self._publish, self._log, self.counts)
        self.worker = Worker([self.task], self.fatal.append, None)
        camera = CameraSettings("camera", "raw", "auto")
        self.camera = Camera(
            node, camera, self.task.mailbox, self.counts, self.worker.notify, lambda: self.settings, self._log
        )
        runtime: Any = Runtime.__new__(Runtime)  # what it loads and publishes is not under test here
        runtime.settings, runtime.active, runtime.worker = self.settings, True, self.worker
        runtime._epochs = {}
        parts: Any = CameraParts(self.camera, self.task, SimpleNamespace(), self.counts)  # type: ignore[arg-type]
        runtime.cameras = {"camera": parts}
        self.runtime = runtime
        Services(node, lambda: runtime, lambda _: "")

    def _publish(self, report: Any) -> None:
        message = to_instance_array(report, "camera", 0.0)
        assert (message.height, message.width) == report.image.shape[:2]
        self.published += 1

    def _log(self, kind: str, text: str) -> None:
        self.errors[kind] += 1


def check_answer(name: str, request: Any, response: Any, seen: Counter[Code]) -> None:
    """AssertionError unless every result has a known code and the numbers, ids and words of the answer fit together."""
    if not hasattr(response, "results"):
        return
    codes = [Code(r.code) for r in response.results]
    seen.update(codes)
    assert Code.INTERNAL_ERROR not in codes, [r.message for r in response.results]
    refused = response.message.startswith(tuple(Code.__members__))
    assert response.success == (all(c == Code.OK for c in codes) and not refused), response
    if name == "add_objects":
        assert len(codes) == len(request.prompts), (len(codes), len(request.prompts))
        for result in response.results:
            refused = result.code != Code.OK
            assert not refused or (result.track_id == 0 and math.isnan(result.iou_with_prompt)), result
            assert not refused or result.message, result
