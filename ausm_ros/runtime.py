"""What a configured node holds: the shared weights, and for each camera its session, subscription and publishers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

import ausm
from ausm.together import gains_together, step_together
from ausm.weights import resolve, sha256
from ausm_ros.camera import Camera
from ausm_ros.counts import CameraCounts
from ausm_ros.diagnostics import CameraView
from ausm_ros.memory import give_back
from ausm_ros.messages import rgb_of
from ausm_ros.outputs import CameraOutputs
from ausm_ros.parameters import CameraSettings, Settings
from ausm_ros.prompts import Code, Refusal
from ausm_ros.repeats import REPEAT_OTHER, Repeats
from ausm_ros.session import Session, groups_to_warm
from ausm_ros.worker import CameraTask, Report, Worker

OWN_THREADS = torch.get_num_threads()  # PyTorch's choice: what `threads` 0 goes back to
RANDOM = "random:"  # prefix of an untrained preset
WARM_OBJECTS, WARM_STEP = 32, 8  # numbers of objects to warm up for; `ausm.padding` has one size in eight or less


@dataclass(frozen=True)
class CameraParts:
    """One camera: how it is received, processed, published and counted."""

    camera: Camera
    task: CameraTask
    outputs: CameraOutputs
    counts: CameraCounts

    def view(self) -> CameraView:
        c = self.camera
        return CameraView(c.camera.name, c.topic, c.reliability, c.enabled, self.counts, self.task.session.snapshot)


def load_model(settings: Settings) -> tuple[Any, dict[str, object]]:
    """The shared weights, and what diagnostics say of them. Raises CheckpointError."""
    name = settings.checkpoint
    if name.startswith(RANDOM):
        torch.manual_seed(settings.seed)  # the same untrained model every time
        model = ausm.load(name.removeprefix(RANDOM), device=settings.device, weights=False)
        digest = "none: random weights"
    else:
        model = ausm.load(name, device=settings.device)
        digest = sha256(resolve(name))
    device = next(model.parameters()).device
    return model, {"checkpoint": name, "sha256": digest, "device": str(device)}


def dynamic_values(settings: Settings) -> dict[str, Any]:
    """Fields of the streams' configuration that may change while they run."""
    names = ("score_threshold", "prompt_threshold", "birth_hits", "max_missed", "dedupe_iou", "part_gap")
    return {"discover": settings.discovery} | {name: getattr(settings, name) for name in names}


def stream_maker(model: Any, settings: Settings) -> Callable[[], "ausm.Stream"]:
    """What makes a new stream with the node's settings."""
    config = ausm.StreamConfig(
        capacity=settings.capacity,
        short_side=settings.input_short_side or None,
        head=settings.class_head or None,
        **dynamic_values(settings),
    )
    return partial(
        ausm.Stream,
        model,
        discover=settings.discovery,
        seed=settings.seed,
        config=config,
        precision=settings.precision,
        cuda_graph=settings.compile == "cuda_graph",
    )


def use_threads(number: int) -> None:
    """CPU threads of PyTorch in this process; 0 = its own choice, also where an earlier call made another."""
    if (wanted := number or OWN_THREADS) != torch.get_num_threads():
        torch.set_num_threads(wanted)


class Runtime:
    """Made by configure, thrown away by cleanup; `start` and `stop` any number of times in between."""

    def __init__(
        self,
        node: Node,
        settings: Settings,
        cameras: list[CameraSettings],
        epochs: dict[str, int],
        on_fatal: Callable[[str], None],
    ) -> None:
        """Loads, allocates, warms up: takes seconds. Raises AusmError or RuntimeError before it creates publishers.

        epochs: the last epoch of each camera, kept up to date here, so that it outlives a cleanup.
        """
        self.settings = settings
        self.active = False
        self._node = node
        self._repeats = Repeats()
        use_threads(settings.threads)
        started = time.monotonic()
        model, self.model_values = load_model(settings)
        self.device = next(model.parameters()).device
        make_stream = stream_maker(model, settings)
        if settings.compile == "cuda_graph" and self.device.type != "cuda":
            node.get_logger().warning(f"compile cuda_graph is for a GPU: on {self.device} the step runs as with none")
        self._epochs = epochs
        unused = int(time.time()) % 2**32  # a node that starts again after a crash must not use an epoch twice
        sessions = {c.name: Session(make_stream, epochs.get(c.name, unused), settings.prompt_history) for c in cameras}
        self.model_values["precision"] = next(iter(sessions.values())).stream.precision  # what auto has chosen
        order = list(sessions.values())
        if settings.capacity > (most := order[0].stream.capacity):
            words = f"capacity {settings.capacity} is more than the model has ID vectors: {most} objects at a time"
            node.get_logger().warning(words)
        together = settings.batch and gains_together([session.stream for session in order])
        for group in groups_to_warm(order, together):
            self._warm_up(group)
        self.model_values["configure_s"] = time.monotonic() - started
        self.cameras: dict[str, CameraParts] = {}
        for camera in cameras:
            self.cameras[camera.name] = self._build(camera, sessions[camera.name])
        tasks = [parts.task for parts in self.cameras.values()]
        self.worker = Worker(tasks, on_fatal, step_together if together else None)

    def _warm_up(self, sessions: list[Session]) -> None:
        """Steps on a blank image, then one for each padded number of objects that is usual: kernels are chosen now."""
        height, width = self.settings.warmup_size
        streams = [session.stream for session in sessions]
        blanks = [np.zeros((height, width, 3), np.uint8)] * len(streams)
        for _ in range(self.settings.warmup_frames):
            step_together(streams, blanks)
        for number in range(WARM_STEP, min(WARM_OBJECTS, streams[0].capacity) + 1, WARM_STEP):
            if self.settings.warmup_frames:
                for stream in streams:
                    stream.reset()
                    stream.prompt(np.ones((number, height, width), bool))
                step_together(streams, blanks)
        for stream in streams:
            stream.reset()

    def _build(self, camera: CameraSettings, session: Session) -> CameraParts:
        counts = CameraCounts()
        log_error = partial(self._log_error, camera.name, counts)
        outputs = CameraOutputs(self._node, camera.name)
        task = CameraTask(
            camera.name, session, self.settings.policy, rgb_of, partial(self._publish, outputs), log_error, counts,
            partial(self._log_event, camera.name),
        )  # fmt: skip
        receiver = Camera(
            self._node, camera, task.mailbox, counts, lambda: self.worker.notify(), lambda: self.settings, log_error
        )
        parts = CameraParts(receiver, task, outputs, counts)
        self._apply_policies(parts)
        return parts

    def _publish(self, outputs: CameraOutputs, report: Report) -> None:
        try:
            outputs.publish(report, self.settings)
        except rclpy_implementation.RCLError:
            if self._node.context.ok():  # else ROS is shutting down under the last image
                raise

    def _log_error(self, camera: str, counts: CameraCounts, kind: str, text: str) -> None:
        """A line for an error, again only after a minute, or some seconds if its words are others; all are counted,
        /diagnostics has the last."""
        counts.tell_error(text)
        if self._repeats.take_turn(camera, kind, text):
            self._node.get_logger().error(f"{camera}: {text}")

    def _log_event(self, camera: str, kind: str, text: str) -> None:
        """A line for what is no error but costs objects."""
        if self._repeats.take_turn(camera, kind, text, REPEAT_OTHER):
            self._node.get_logger().info(f"{camera}: {text}")

    def _apply_policies(self, parts: CameraParts) -> None:
        parts.task.on_time_jump = self.settings.on_time_jump
        parts.task.on_size_change = self.settings.on_size_change

    def start(self) -> None:
        """A new epoch for each camera, then images."""
        for name, parts in self.cameras.items():
            # put there by a callback that was still running when `stop` cleared it
            parts.counts.drop("disabled", parts.task.mailbox.clear())
            forgotten = parts.task.session.snapshot.in_use
            epoch = parts.task.session.new_epoch()
            if forgotten:
                words = f"epoch {epoch} begins (activation), {forgotten} objects are forgotten"
                self._log_event(name, "activation", words)
            parts.task.session.configure(**dynamic_values(self.settings))  # `stop` withdraws what was not yet taken up
            parts.camera.enabled = True
        self.worker.start()
        self.active = True
        for parts in self.cameras.values():
            parts.camera.subscribe()

    def stop(self) -> None:
        """No more images; the one in progress is finished and published."""
        self.active = False
        for parts in self.cameras.values():
            parts.camera.unsubscribe()
        self.worker.stop()
        self._epochs |= {name: parts.task.session.epoch for name, parts in self.cameras.items()}

    def close(self) -> None:
        """Removes the publishers and gives the device's memory back."""
        self.stop()
        self.worker = Worker([], lambda _: None, None)
        while self.cameras:
            self.cameras.popitem()[1].outputs.destroy()  # and no name here that still holds the last camera's stream
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def change(self, settings: Settings) -> None:
        """Takes over dynamic parameters: at once where they concern messages, before the next image in the model."""
        old, self.settings = self.settings, settings
        values = dict(dynamic_values(settings).items() - dynamic_values(old).items())
        for parts in self.cameras.values():
            self._apply_policies(parts)
            if values:
                parts.task.post(partial(parts.task.session.configure, **values))
        if values and self.active:
            self.worker.notify()

    def set_enabled(self, enabled: bool) -> None:
        for parts in self.cameras.values():
            parts.camera.enabled = enabled

    def clock_jumped(self) -> None:
        """The node's clock went back by more than a second."""
        for parts in self.cameras.values():
            if parts.camera.clock_jumped() and self.settings.on_time_jump == "reset" and self.active:
                # before the reset is posted: the worker must find no image of the old time after it
                parts.counts.drop("too_old", parts.task.mailbox.clear())
                parts.task.post(partial(parts.task.reset, "time_jumps"))
        self.worker.notify()

    def find(self, camera: str) -> CameraParts:
        """The parts of a camera by name; "" stands for the only one. Raises `Refusal`."""
        if camera == "" and len(self.cameras) == 1:
            return next(iter(self.cameras.values()))
        if camera not in self.cameras:
            raise Refusal(Code.UNKNOWN_CAMERA, f"no camera '{camera[:60]}', cameras: {' '.join(self.cameras)}")
        return self.cameras[camera]
