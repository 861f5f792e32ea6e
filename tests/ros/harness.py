"""What the launch-level tests share: a private DDS domain, nodes as processes, and a robot's side to talk to them.

Import it before rclpy: the domain is chosen here, for this process and all it starts.
"""

import fcntl
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0  # seconds: a busy machine may load PyTorch slowly; nothing here measures time
ASK_AGAIN = 10.0  # seconds until a question without an answer is put again
FAST = (
    *("checkpoint:=random:nano", "device:=cpu", "threads:=1", "input_short_side:=64", "warmup_size:=[64, 96]"),
    "prompt.threshold:=0.0",  # objectness of untrained weights says nothing
)
SIZE = (64, 96)  # height, width of the test images


def _take_domain() -> tuple[int, Any]:
    """A DDS domain no other test process on this machine uses, held by a lock until this process ends."""
    for domain in range(20, 100):  # 0..101 are safe on Linux; the first ones are people's
        file = open(Path(tempfile.gettempdir()) / f"ausm_test_domain_{domain}.lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        return domain, file
    raise RuntimeError("80 DDS domains are in use by other test processes")


pytest.importorskip("rclpy", reason="ROS 2 is not installed")
DOMAIN, _lock = _take_domain()
os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="ausm_ros_log_")
os.environ["OMP_NUM_THREADS"] = "1"

from ausm_ros.transport import use_large_shared_memory  # noqa: E402

use_large_shared_memory()

import rclpy  # noqa: E402
from ausm_ros.msg import InstanceArray, Prompt  # noqa: E402
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from ausm_ros.ask import Question  # noqa: E402
from ausm_ros.messages import to_duration, to_image, to_rle, to_time  # noqa: E402

SHOW_AGAIN = {ReliabilityPolicy.RELIABLE: 20.0, ReliabilityPolicy.BEST_EFFORT: 5.0}  # s until an image is shown again
SECOND = 10**9
_stamps = iter(range(1_000 * SECOND, 10**18, SECOND // 20))


def next_stamp() -> int:
    """Stamps (ns) that only grow, 50 ms apart, over the whole test process."""
    return next(_stamps)


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of `condition`; fails the test when there is none in time."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {patience:.0f} s for {what}")


class Process:
    """A program of ours in a process of its own, its output kept."""

    def __init__(self, program: str, arguments: Sequence[str] = ()) -> None:
        """program: a module, or a script in this folder by its name with .py."""
        self.lines: list[str] = []
        run = [str(Path(__file__).with_name(program))] if program.endswith(".py") else ["-m", program]
        self._process = subprocess.Popen(
            [sys.executable, *run, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, words: str, patience: float = PATIENCE) -> str:
        """The first line that holds these words."""

        def found() -> str | None:
            if self._process.poll() is not None and not self._reader.is_alive():
                hits = [line for line in self.lines if words in line]
                assert hits, (
                    f"the process ended with {self._process.returncode} before it said {words!r}:\n{self.output}"
                )
            return next((line for line in list(self.lines) if words in line), None)

        line: str = wait_until(found, f"{words!r} in:\n{self.output}", patience)
        return line

    def count(self, words: str) -> int:
        return sum(words in line for line in list(self.lines))

    def finish(self, patience: float = PATIENCE) -> int:
        """Waits for it to end by itself; its exit status."""
        status = self._process.wait(patience)
        self._reader.join(5)
        return status

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            return self.finish(90)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # its threads tell where they are
            self.finish(30)
            raise AssertionError(f"still running 90 s after {how.name}:\n{self.output}") from None


@contextmanager
def perception(*parameters: str, remap: Sequence[str] = (), fast: bool = True) -> Iterator[Process]:
    """The node as a process. parameters: `name:=value`; they win over the small, untrained model of `FAST`."""
    arguments = ["--ros-args"]
    for value in (*(FAST if fast else ()), *parameters):
        arguments += ["-p", value]
    for value in remap:
        arguments += ["-r", value]
    process = Process("ausm_ros.perception_node", arguments)
    try:
        yield process
    finally:
        status = process.stop()
    assert status == 0, f"exit status {status}:\n{process.output}"


class Robot:
    """The other side: camera, listener and service client in the test's own process."""

    def __init__(self, target: str = "/perception", cameras: Sequence[str] = ("camera",)) -> None:
        if not rclpy.ok():
            rclpy.init()
        self.node = rclpy.create_node(f"robot_{time.monotonic_ns()}", start_parameter_services=False)
        self.target = target
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self.received: dict[str, list[InstanceArray]] = {}
        for camera in cameras:
            self.received[camera] = []
            topic = f"{target}/{camera}/instances"
            self.listen(InstanceArray, topic, self.received[camera].append)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5)
        self.node.destroy_node()

    # --- topics -------------------------------------------------------------------------------------------------

    def listen(self, kind: Any, topic: str, callback: Callable[[Any], Any]) -> Any:
        return self.node.create_subscription(kind, topic, callback, 100)  # this process may be the slow one

    def publisher(self, camera: str = "camera", kind: Any = Image, topic: str = "", reliable: bool = True) -> Any:
        """A publisher the node listens to by now, as reliably as it offers."""
        topic = topic or f"/{camera}/image"
        if topic not in self._publishers:
            policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            self._publishers[topic] = self.node.create_publisher(kind, topic, QoSProfile(depth=1, reliability=policy))
        publisher = self._publishers[topic]

        def settled() -> bool:
            kinds = {i.qos_profile.reliability for i in self.node.get_subscriptions_info_by_topic(topic)}
            return publisher.get_subscription_count() > 0 and kinds == {publisher.qos_profile.reliability}

        wait_until(settled, f"a subscription to {topic}")
        return publisher

    @staticmethod
    def pause(seconds: float) -> bool:
        """Waits a moment; False, so that it can end a condition."""
        time.sleep(seconds)
        return False

    def publisher_count(self, camera: str) -> int:
        """Subscriptions of the node to a camera."""
        return int(self._publishers[f"/{camera}/image"].get_subscription_count())

    def publish(self, message: Any, camera: str = "camera") -> None:
        self.publisher(camera).publish(message)

    def show(
        self, camera: str = "camera", stamp: int | None = None, size: tuple[int, int] = SIZE, repeat: bool = True
    ) -> InstanceArray:
        """Shows one image, returns the answer at its stamp. A lost image (best effort) is shown again, a bit later."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            at = next_stamp() if stamp is None else stamp
            self.publish(image_message(at, size), camera)
            offered = self._publishers[f"/{camera}/image"].qos_profile.reliability
            answer = self.answer(camera, at, SHOW_AGAIN[offered] if repeat and stamp is None else PATIENCE)
            if answer is not None:
                return answer
        raise AssertionError(f"no InstanceArray of {camera} in {PATIENCE:.0f} s")

    def answer(self, camera: str, stamp: int, patience: float) -> InstanceArray | None:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            for message in reversed(self.received[camera]):
                if message.header.stamp == to_time(stamp):
                    return message
            time.sleep(0.005)
        return None

    # --- services -----------------------------------------------------------------------------------------------

    def _client(self, kind: Any, name: str, patience: float = PATIENCE) -> Any:
        """A client whose service is there, and knows it."""
        name = name if name.startswith("/") else f"{self.target}/{name}"
        new = name not in self._clients
        if new:
            self._clients[name] = self.node.create_client(kind, name)
        assert self._clients[name].wait_for_service(timeout_sec=patience), f"no service {name}"
        if new:
            self.settle(patience)
        return self._clients[name]

    def settle(self, patience: float = PATIENCE) -> None:
        """Until the node knows all publishers, listeners and clients that this process has made so far.

        That a service is seen says nothing about the other direction: it drops an answer whose reader it has not
        discovered within 0.1 s (rmw_fastrtps). DDS announces what a process makes one after the other, without gaps;
        so an answer to a client that is made now says that the node has discovered what was made before it.
        """
        newest = self.node.create_client(GetState, f"{self.target}/get_state")
        self._clients[f"settled {len(self._clients)}"] = newest  # kept: nothing is taken away under the executor
        wait_until(newest.service_is_ready, f"service {newest.srv_name}", patience)
        self._ask(newest, GetState.Request(), newest.srv_name, patience, again=1.0)

    def call(self, kind: Any, name: str, request: Any, patience: float = PATIENCE, again: bool = False) -> Any:
        """again: the request may be repeated, and is after `ASK_AGAIN`."""
        return self._ask(self._client(kind, name, patience), request, name, patience, ASK_AGAIN if again else math.inf)

    @staticmethod
    def _ask(client: Any, request: Any, name: str, patience: float, again: float) -> Any:
        return wait_until(Question(client, request, again).poll, f"an answer of {name}", patience)

    def add(self, *prompts: Prompt, camera: str = "", wait: float = 0.0, stamp: int = 0, atomic: bool = False) -> Any:
        request = AddObjects.Request(
            camera=camera, prompts=list(prompts), wait=to_duration(wait), stamp=to_time(stamp), all_or_nothing=atomic
        )
        return self.call(AddObjects, "add_objects", request)

    def add_and_show(self, *prompts: Prompt, camera: str = "camera", **options: Any) -> Any:
        """Prompts for the next image, shows images until the answer is there; returns the answer."""
        request = AddObjects.Request(camera=camera, prompts=list(prompts), wait=to_duration(30.0), **options)
        client = self._client(AddObjects, "add_objects")
        future = client.call_async(request)
        end = time.monotonic() + PATIENCE
        while not future.done() and time.monotonic() < end:
            self.show(camera)
        assert future.done(), "add_objects gave no answer"
        return future.result()

    def remove(self, *ids: int, camera: str = "", everything: bool = False) -> Any:
        return self.call(
            RemoveObjects, "remove_objects", RemoveObjects.Request(camera=camera, track_ids=ids, all=everything)
        )

    def reset(self, camera: str = "") -> Any:
        return self.call(Reset, "reset", Reset.Request(camera=camera))

    def objects(self, camera: str = "") -> Any:
        return self.call(ListObjects, "list_objects", ListObjects.Request(camera=camera), again=True)

    def switch(self, name: str, on: bool) -> Any:
        return self.call(SetBool, name, SetBool.Request(data=on))

    def state(self) -> str:
        return str(self.call(GetState, "get_state", GetState.Request(), again=True).current_state.label)

    def transition(self, label: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        return bool(self.call(ChangeState, "change_state", request).success)

    def wait_for_state(self, label: str) -> None:
        wait_until(lambda: self.state() == label or self.pause(0.1), f"state {label}")

    def set_parameter(self, name: str, value: Any) -> tuple[bool, str]:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        result = self.call(SetParameters, "set_parameters", request, again=True).results[0]
        return bool(result.successful), str(result.reason)

    def get_parameter(self, name: str) -> Any:
        values = self.call(GetParameters, "get_parameters", GetParameters.Request(names=[name]), again=True).values
        return Parameter.from_parameter_msg(rclpy.parameter.ParameterMsg(name=name, value=values[0])).value

    def describe(self, *names: str) -> Any:
        request = DescribeParameters.Request(names=list(names))
        return self.call(DescribeParameters, "describe_parameters", request, again=True).descriptors


@contextmanager
def camera_process(
    topic: str, rate: int = 10, size: tuple[int, int] = SIZE, reliable: bool = True
) -> Iterator[Process]:
    """A camera as a process."""
    policy = "reliable" if reliable else "best_effort"
    process = Process("camera_process.py", [topic, str(rate), str(size[0]), str(size[1]), policy])
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def robot(**options: Any) -> Iterator[Robot]:
    made = Robot(**options)
    try:
        yield made
    finally:
        made.close()


def scenery(size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 RGB: smooth noise, always the same."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256], -1).astype(np.uint8)


def image_message(stamp: int, size: tuple[int, int] = SIZE, frame: str = "camera_frame") -> Image:
    return to_image(Header(stamp=to_time(stamp), frame_id=frame), scenery(size))


def square(x: int = 20, y: int = 10, side: int = 30, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool with one square on it."""
    mask = np.zeros(size, np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def mask_prompt(mask: np.ndarray | None = None, **fields: Any) -> Prompt:
    """A prompt by run lengths."""
    return Prompt(type=Prompt.MASK_RLE, rle=to_rle(square() if mask is None else mask), **fields)
