"""What a camera publishes: instances for every image; label map and overlay only while somebody listens."""

import time

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from ausm.visualize import draw_tracks
from ausm_ros.messages import to_duration, to_image, to_instance_array, to_label_map
from ausm_ros.msg import InstanceArray
from ausm_ros.timing import RateLimit
from ausm_ros.worker import Report


def reliable(depth: int) -> QoSProfile:
    """A subscriber that asks for best effort hears a reliable publisher too, not the other way round."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


class CameraOutputs:
    """The publishers of one camera. `publish` is called by the worker thread."""

    def __init__(self, node: Node, camera: str) -> None:
        self._node, self._camera = node, camera
        options = {"qos_overriding_options": QoSOverridingOptions.with_default_policies()}
        self._instances = node.create_publisher(InstanceArray, f"~/{camera}/instances", reliable(5), **options)
        self._label_map = node.create_publisher(Image, f"~/{camera}/label_map", reliable(1), **options)
        self._overlay = node.create_publisher(Image, f"~/{camera}/overlay", reliable(1), **options)
        self._overlay_limit = RateLimit()

    def publish(self, report: Report, overlay_rate: float) -> float:
        """Publishes one processed image; returns receipt to publication of the instances [s]."""
        message = to_instance_array(report, self._camera, 0.0)
        processing_time = time.monotonic() - report.received
        message.processing_time = to_duration(processing_time)
        self._instances.publish(message)
        if self._label_map.get_subscription_count():
            self._label_map.publish(to_label_map(report))
        if self._overlay.get_subscription_count() and self._overlay_limit.allows(time.monotonic(), overlay_rate):
            drawn = draw_tracks(report.image, report.output.tracks)
            self._overlay.publish(to_image(report.message.header, drawn))
        return processing_time

    def destroy(self) -> None:
        for publisher in (self._instances, self._label_map, self._overlay):
            self._node.destroy_publisher(publisher)
