"""A perception node as a process, with a camera, a listener and a service client on this side."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ausm.errors import AusmError

READY = 900.0  # seconds for the node to become active: it may compile kernels on its first run, on a busy machine


class Arrival(NamedTuple):
    """One InstanceArray as it came."""

    at: float  # time.time() of receipt
    message: Any


class NodeRig:
    """A context manager. Stamps are the wall clock, which both processes share."""

    def __init__(self, parameters: Sequence[str], log: Path | None = None) -> None:
        """parameters: `name:=value` for the node; log: where its output goes (default: to this one's)."""
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        from ausm_ros.transport import use_large_shared_memory

        use_large_shared_memory()
        self._parameters, self._log = [w for p in parameters for w in ("-p", p)], log
        self.arrivals: list[Arrival] = []
        self.states: list[dict[str, float]] = []
        self.model: dict[str, str] = {}  # what the node says of its model: checkpoint, device, precision

    def __enter__(self) -> "NodeRig":
        import rclpy
        from ausm_ros.msg import InstanceArray
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image

        output = self._log.open("w") if self._log else None
        command = [sys.executable, "-m", "ausm_ros.perception_node", "--ros-args", *self._parameters]
        self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT if output else None)
        if not rclpy.ok():
            rclpy.init()
        self.node = rclpy.create_node("bench")
        self.node.create_subscription(InstanceArray, "/perception/camera/instances", self._receive, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self.publisher = self.node.create_publisher(Image, "/camera/image", QoSProfile(depth=1))
        self._clients: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import rclpy

        self._executor.shutdown()
        self._thread.join(5)
        rclpy.try_shutdown()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(20)

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _receive(self, message: Any) -> None:
        self.arrivals.append(Arrival(time.time(), message))

    def _diagnose(self, array: Any) -> None:
        for status in array.status:
            if status.name.endswith("ausm: memory"):
                self.states.append({v.key: float(v.value) for v in status.values} | {"at": time.time()})
            elif status.name.endswith("ausm: model"):
                self.model = {v.key: v.value for v in status.values}

    def wait_until(self, condition: Any, what: str, seconds: float = READY) -> None:
        """Raises AusmError when it does not come true in time, or the node has ended."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise AusmError(f"the node ended with {self.process.returncode}")
            if time.monotonic() > end:
                raise AusmError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.02)

    def show(self, pixels: np.ndarray, stamp_ns: int | None = None) -> int:
        """Publishes an image (H, W, 3) at the present time, or another stamp; returns the stamp [ns]."""
        from std_msgs.msg import Header

        from ausm_ros.messages import to_image, to_time

        stamp = time.time_ns() if stamp_ns is None else stamp_ns
        self.publisher.publish(to_image(Header(stamp=to_time(stamp), frame_id="camera"), pixels))
        return stamp

    def call(self, kind: Any, name: str, request: Any, seconds: float = 60.0) -> Any:
        """The answer of a service of the node."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f"/perception/{name}")
        future = self._clients[name].call_async(request)
        self.wait_until(future.done, f"an answer of {name}", seconds)
        return future.result()

    def wait_for_node(self, pixels: np.ndarray) -> None:
        """Shows images until the first answer, so that all connections stand."""
        self.wait_until(self.publisher.get_subscription_count, "the node to listen")
        end = time.monotonic() + READY
        while not self.arrivals:
            self.show(pixels)
            time.sleep(0.2)
            if time.monotonic() > end or self.process.poll() is not None:
                raise AusmError("the node does not answer to images")
