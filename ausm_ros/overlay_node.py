"""Draws the instances on the images they belong to, in a process of its own: the model's process does not wait for it.

For each camera it joins `<camera>/image` and `<camera>/instances` by their stamps, and publishes `~/<camera>/image`,
but only while somebody looks: without a subscriber it listens to nothing and costs nothing.

    python -m ausm_ros.overlay_node --ros-args -r camera/instances:=/perception/camera/instances
"""

import sys
import time
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from ausm.errors import AusmError
from ausm.visualize import draw_tracks
from ausm_ros.messages import rgb_of, to_drawn, to_image, to_ns
from ausm_ros.msg import InstanceArray
from ausm_ros.node_parameters import declare_checked
from ausm_ros.on_demand import Held, OnDemand
from ausm_ros.outputs import reliable
from ausm_ros.parameters import CAMERA_SPECS, OVERLAY_SPECS
from ausm_ros.run_node import run_node
from ausm_ros.timing import RateLimit

REMAP = "camera/image:=/camera/image_raw"


class Overlay:
    """One camera: subscribes while its overlay has subscribers."""

    def __init__(self, node: Node, camera: str, compressed: bool) -> None:
        self._node, self._camera = node, camera
        self._kind: Any = CompressedImage if compressed else Image
        self._topic = f"{camera}/image" + ("/compressed" if compressed else "")
        self._publisher = node.create_publisher(Image, f"~/{camera}/image", reliable(1))
        self._images = Held()
        self._limit = RateLimit()
        self.demand = OnDemand(node, [self._publisher], self._subscribe, [self._topic])

    def _subscribe(self, qos: QoSProfile) -> list[Any]:
        self._images = Held()
        instances = f"{self._camera}/instances"
        return [
            self._node.create_subscription(self._kind, self._topic, self._on_image, qos),
            self._node.create_subscription(InstanceArray, instances, self._on_instances, reliable(5)),
        ]

    def _on_image(self, message: Any) -> None:
        self._images.put(to_ns(message.header.stamp), message)

    def _on_instances(self, message: InstanceArray) -> None:
        source = self._images.at(to_ns(message.header.stamp))
        if complaint := self._images.complaint(f"an image on {self._node.resolve_topic_name(self._topic)}"):
            self._node.get_logger().warning(f"{self._camera}: {complaint}", throttle_duration_sec=60.0)
        rate = self._node.get_parameter("max_rate").value
        if source is None or not self._limit.allows(time.monotonic(), rate):
            return
        try:
            drawn = draw_tracks(rgb_of(source), to_drawn(message.instances, message.height, message.width))
        except AusmError as error:
            self._node.get_logger().error(f"{self._camera}: {error}", throttle_duration_sec=60.0)
            return
        self._publisher.publish(to_image(message.header, drawn))


class OverlayNode(Node):
    """Parameters: `OVERLAY_SPECS`, and the transport of each camera under its name."""

    def __init__(self) -> None:
        """Raises `BadParameter`."""
        super().__init__("overlay")
        values = declare_checked(self, OVERLAY_SPECS)
        of_one = CAMERA_SPECS[0]._replace(default=values["transport"])
        names = {camera: f"{camera}.{of_one.name}" for camera in values["cameras"]}
        forms = declare_checked(self, [of_one._replace(name=name) for name in names.values()])
        self._overlays = [Overlay(self, camera, forms[name] == "compressed") for camera, name in names.items()]
        self.create_timer(0.25, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _check(self) -> None:
        for overlay in self._overlays:
            overlay.demand.check()


def main(argv: list[str] | None = None) -> int:
    return run_node(OverlayNode, "overlay_node", __doc__ or "", REMAP, argv)


if __name__ == "__main__":
    sys.exit(main())
