"""What a camera publishes: instances for every image; all else only while somebody listens."""

import time
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Float64

from ausm.visualize import draw_tracks
from ausm_ros.messages import to_duration, to_image, to_instance_array, to_label_map, to_ns
from ausm_ros.msg import InstanceArray
from ausm_ros.optional_outputs import OptionalOutputs
from ausm_ros.parameters import Settings
from ausm_ros.timing import RateLimit

if TYPE_CHECKING:  # it brings PyTorch
    from ausm_ros.worker import Report


def reliable(depth: int) -> QoSProfile:
    """A subscriber that asks for best effort hears a reliable publisher too, not the other way round."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


class DebugTimes:
    """Times in milliseconds on `~/debug/...`, under the names Autoware uses; with several cameras all in one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        names = ("cyclic_time_ms", "processing_time_ms", "pipeline_latency_ms")
        self._publishers = [node.create_publisher(Float64, f"~/debug/{name}", reliable(5)) for name in names]
        self._before: float | None = None

    def publish(self, report: "Report", processing_time: float) -> None:
        """processing_time: receipt to publication [s]."""
        now = time.monotonic()
        cyclic, self._before = now - self._before if self._before is not None else 0.0, now
        latency = (self._node.get_clock().now().nanoseconds - to_ns(report.message.header.stamp)) / 1e6
        for publisher, value in zip(self._publishers, (cyclic * 1e3, processing_time * 1e3, latency), strict=True):
            if publisher.get_subscription_count():
                publisher.publish(Float64(data=value))

    def destroy(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)


class CameraOutputs:
    """The publishers of one camera. `publish` is called by the worker thread."""

    def __init__(self, node: Node, camera: str) -> None:
        self._node, self._camera = node, camera
        options: dict[str, Any] = {"qos_overriding_options": QoSOverridingOptions.with_default_policies()}
        self._instances = node.create_publisher(InstanceArray, f"~/{camera}/instances", reliable(5), **options)
        self._label_map = node.create_publisher(Image, f"~/{camera}/label_map", reliable(1), **options)
        self._overlay = node.create_publisher(Image, f"~/{camera}/overlay", reliable(1), **options)
        self._optional = OptionalOutputs(node, camera)
        self._debug = DebugTimes(node)
        self._overlay_limit = RateLimit()

    def publish(self, report: "Report", settings: Settings) -> None:
        """Publishes one processed image, the instances first."""
        message = to_instance_array(report, self._camera, 0.0)
        processing_time = time.monotonic() - report.received
        message.processing_time = to_duration(processing_time)
        self._instances.publish(message)
        self._debug.publish(report, processing_time)
        if self._label_map.get_subscription_count():
            self._label_map.publish(to_label_map(report))
        if self._overlay.get_subscription_count() and self._overlay_limit.allows(
            time.monotonic(), settings.overlay_max_rate
        ):
            drawn = draw_tracks(report.image, report.output.tracks)
            self._overlay.publish(to_image(report.message.header, drawn))
        self._optional.publish(report, settings.score_threshold)

    def destroy(self) -> None:
        for publisher in (self._instances, self._label_map, self._overlay):
            self._node.destroy_publisher(publisher)
        self._debug.destroy()
        self._optional.destroy()
