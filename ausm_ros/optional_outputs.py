"""The same results in the messages of other packages: `vision_msgs` and `foxglove_msgs`, where these are installed.

Each output is made only while somebody listens. A package that is missing switches its outputs off, with one log line.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from ausm.tracks import Track
from ausm.visualize import colour_of
from ausm_ros.messages import label_value, to_instances

if TYPE_CHECKING:  # it brings PyTorch
    from ausm_ros.worker import Report

MIN_CONTOUR = 3  # points


def import_messages(package: str) -> Any:
    """The `msg` module of a ROS package, or None where it is not installed."""
    try:
        return importlib.import_module(f"{package}.msg")
    except ImportError:
        return None


def to_detections(vision: Any, report: "Report") -> Any:
    """`vision_msgs/Detection2DArray`: box, class (or name) and score of every visible track; `id` is its track id."""
    message = vision.Detection2DArray(header=report.message.header)
    for instance in to_instances(report.output.tracks, report.snapshot.sightings, with_mask=False):
        if not instance.area:
            continue
        detection = vision.Detection2D(header=report.message.header, id=str(instance.track_id))
        box = instance.box
        detection.bbox.center.position.x = box.x_offset + box.width / 2  # edges, not centres, of the outer pixels
        detection.bbox.center.position.y = box.y_offset + box.height / 2
        detection.bbox.size_x, detection.bbox.size_y = float(box.width), float(box.height)
        result = vision.ObjectHypothesisWithPose()
        result.hypothesis.class_id = instance.name or instance.class_name or "object"
        result.hypothesis.score = float(instance.score)
        detection.results.append(result)
        message.detections.append(detection)
    return message


def to_label_info(vision: Any, report: "Report", threshold: float) -> Any:
    """`vision_msgs/LabelInfo`: what each value of the label map stands for on this image."""
    message = vision.LabelInfo(header=report.message.header, threshold=threshold)
    for track in sorted(report.output.tracks, key=lambda t: t.track_id):
        if value := label_value(track):
            name = track.name or track.class_name or f"object {track.track_id}"
            message.class_map.append(vision.VisionClass(class_id=value, class_name=name))
    return message


def _colour(foxglove: Any, track: Track, opacity: float) -> Any:
    red, green, blue = (v / 255 for v in colour_of(track.track_id))
    return foxglove.Color(r=red, g=green, b=blue, a=opacity)


def to_annotations(foxglove: Any, report: "Report") -> Any:
    """`foxglove_msgs/ImageAnnotations`: the outlines of the masks, and a label at each."""
    message, stamp = foxglove.ImageAnnotations(), report.message.header.stamp
    visible = [t for t in report.output.tracks if label_value(t) and t.mask.any()]
    instances = {i.track_id: i for i in to_instances(visible, {}, with_mask=False)}
    for track in visible:
        outlines, _ = cv2.findContours(track.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for outline in (o.reshape(-1, 2) for o in outlines):
            if len(outline) >= MIN_CONTOUR:
                points = [foxglove.Point2(x=float(x) + 0.5, y=float(y) + 0.5) for x, y in outline]
                message.points.append(
                    foxglove.PointsAnnotation(
                        timestamp=stamp,
                        type=foxglove.PointsAnnotation.LINE_LOOP,
                        points=points,
                        outline_color=_colour(foxglove, track, 1.0),
                        fill_color=_colour(foxglove, track, 0.3),
                        thickness=2.0,
                    )
                )
        box: Any = instances[track.track_id].box
        message.texts.append(
            foxglove.TextAnnotation(
                timestamp=stamp,
                position=foxglove.Point2(x=float(box.x_offset), y=float(box.y_offset)),
                text=f"{track.track_id} {track.name or track.class_name}".strip(),
                font_size=14.0,
                text_color=foxglove.Color(r=1.0, g=1.0, b=1.0, a=1.0),
                background_color=_colour(foxglove, track, 0.7),
            )
        )
    return message


class OptionalOutputs:
    """The publishers of one camera for which the packages are there."""

    def __init__(self, node: Node, camera: str) -> None:
        self._node = node
        self._publishers: list[tuple[Any, Callable[[Report], Any]]] = []
        self._label_info: Any = None
        self._labels: list[tuple[int, str]] = []
        if (vision := import_messages("vision_msgs")) is not None:
            self._add(vision.Detection2DArray, f"~/{camera}/detections", lambda r: to_detections(vision, r))
            kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._label_info = node.create_publisher(vision.LabelInfo, f"~/{camera}/label_info", kept)
            self._vision = vision
        if (foxglove := import_messages("foxglove_msgs")) is not None:
            self._add(foxglove.ImageAnnotations, f"~/{camera}/annotations", lambda r: to_annotations(foxglove, r))
        missing = [n for n, m in (("vision_msgs", vision), ("foxglove_msgs", foxglove)) if m is None]
        if missing:
            outputs = {"vision_msgs": "detections, label_info", "foxglove_msgs": "annotations"}
            words = "; ".join(f"{name} is not installed: no {outputs[name]}" for name in missing)
            node.get_logger().info(words, once=True)

    def _add(self, kind: Any, topic: str, make: Callable[["Report"], Any]) -> None:
        self._publishers.append((self._node.create_publisher(kind, topic, QoSProfile(depth=1)), make))

    def publish(self, report: "Report", threshold: float) -> None:
        """Publishes what somebody listens to; the label info when it changes (late listeners get the last one)."""
        for publisher, make in self._publishers:
            if publisher.get_subscription_count():
                publisher.publish(make(report))
        if self._label_info is not None:
            message = to_label_info(self._vision, report, threshold)
            labels = [(c.class_id, c.class_name) for c in message.class_map]
            if labels != self._labels:
                self._labels = labels
                self._label_info.publish(message)

    def destroy(self) -> None:
        for publisher, _ in self._publishers:
            self._node.destroy_publisher(publisher)
        if self._label_info is not None:
            self._node.destroy_publisher(self._label_info)
