"""Records what a subscriber gets: the InstanceArray messages as a rosbag2, the images as JPEG, the node's diagnostics.

A process of its own (`ausm_ros.demo` starts it): pictures and figures of the demo are made from what arrived here over
DDS. It subscribes to the images when it hears the node and the node knows it, so whoever finds it among their
subscribers can begin. Stops at SIGINT or SIGTERM, once nothing more comes.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from ausm.errors import AusmError
from ausm_ros.ask import Question
from ausm_ros.instance_bag import InstanceBagWriter
from ausm_ros.messages import rgb_of, to_ns
from ausm_ros.msg import InstanceArray
from ausm_ros.transport import use_large_shared_memory

BAG, IMAGES, LOG = "instances", "images.bin", "recorder.json"  # names in the output folder
ASK_AGAIN = 1.0  # seconds until a question without an answer is put again
QUIET = 0.5  # seconds without a message that end the recording, once it was told to stop
QUALITY = 95  # of the JPEG pictures; the files are for the overlay only


class StoredImage(NamedTuple):
    """Where an image lies in the file of images."""

    stamp: int  # [ns]
    offset: int
    length: int


class Recorder(Node):
    """Writes while it receives: memory does not grow but for one line per image."""

    def __init__(self, camera: str, node: str, bag: InstanceBagWriter, images: Any) -> None:
        """images: binary file to append to."""
        super().__init__("demo_recorder")
        self._bag, self._file = bag, images
        self.images: list[StoredImage] = []
        self.diagnostics: list[dict[str, Any]] = []
        self._offset = 0
        self.heard = 0.0  # time.monotonic() of the last result or image
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self._instances = self.create_subscription(
            InstanceArray, f"{node}/{camera}/instances", self._on_instances, reliable, raw=True
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable)
        # Made last: what a process makes is announced in order, so who answers this client knows the listeners above.
        self._state = self.create_client(GetState, f"{node}/get_state")
        self._known = Question(self._state, GetState.Request(), ASK_AGAIN)
        self._start = self.create_timer(0.05, lambda: self._listen(f"{camera}/image", reliable))

    def _listen(self, topic: str, qos: QoSProfile) -> None:
        if not self.count_publishers(self._instances.topic_name) or not self._state.service_is_ready():
            return
        if self._known.poll() is not None:
            self.create_subscription(Image, topic, self._on_image, qos)
            self._start.cancel()

    def _on_instances(self, data: bytes) -> None:
        self.heard = time.monotonic()
        self._bag.write(bytes(data), time.time_ns())

    def _on_image(self, message: Image) -> None:
        self.heard = time.monotonic()
        try:
            pixels = cv2.cvtColor(rgb_of(message), cv2.COLOR_RGB2BGR)
        except AusmError as error:
            self.get_logger().error(f"image not stored: {error}", throttle_duration_sec=10.0)
            return
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        self._file.write(jpeg.tobytes())
        self.images.append(StoredImage(to_ns(message.header.stamp), self._offset, len(jpeg)))
        self._offset += len(jpeg)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {s.name: {v.key: v.value for v in s.values} for s in message.status}
        self.diagnostics = [*self.diagnostics[:1], {"stamp_ns": to_ns(message.header.stamp), "status": values}]


def main(argv: list[str] | None = None) -> int:
    """Records into --out until a signal comes."""
    parser = argparse.ArgumentParser("demo_recorder", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--camera", default="camera")
    parser.add_argument("--node", default="/perception", help="full name of the perception node")
    options = parser.parse_args(argv)
    use_large_shared_memory()
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        topic = f"{options.node}/{options.camera}/instances"
        with InstanceBagWriter(options.out / BAG, topic) as bag, (options.out / IMAGES).open("wb") as images:
            recorder = Recorder(options.camera, options.node, bag, images)
            while not stopped:
                rclpy.spin_once(recorder, timeout_sec=0.1)
            told = time.monotonic()
            while time.monotonic() - max(told, recorder.heard) < QUIET:
                rclpy.spin_once(recorder, timeout_sec=0.1)
        log = {"images": recorder.images, "diagnostics": recorder.diagnostics}
        (options.out / LOG).write_text(json.dumps(log))
    except (AusmError, OSError) as error:
        print(f"demo: recorder: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
