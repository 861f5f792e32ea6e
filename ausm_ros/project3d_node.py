"""Instances, depth and camera info to points with instance ids, and boxes, in the frame of the camera.

For each camera: `<camera>/instances`, `<camera>/depth` (registered to the image that perception_node sees; 32FC1 metres
or 16UC1 millimetres) and `<camera>/camera_info` in; `~/<camera>/points` (PointCloud2: x y z rgb track_id score) and,
where visualization_msgs is installed, `~/<camera>/boxes` (MarkerArray) out, each only while somebody listens.

Both images are rectified (image_rect: camera_info's P holds), or with `-p rectified:=false` both as the lens made them
(image_raw: K and the distortion D, plumb_bob or rational_polynomial, hold).

    python -m ausm_ros.perception_node --ros-args -r camera/image:=/camera/image_rect_color
    python -m ausm_ros.project3d_node --ros-args -r camera/instances:=/perception/camera/instances \\
        -r camera/depth:=/camera/depth/image_rect -r camera/camera_info:=/camera/camera_info
"""

import array
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from ausm.errors import AusmError
from ausm.visualize import colour_of
from ausm_ros.messages import to_mask, to_ns
from ausm_ros.msg import Instance, InstanceArray
from ausm_ros.node_parameters import declare_checked
from ausm_ros.on_demand import Held, OnDemand
from ausm_ros.outputs import reliable
from ausm_ros.parameters import PROJECT_SPECS, check_depths
from ausm_ros.project3d import Box3D, box_of_points, decode_depth, lens, project, rays
from ausm_ros.run_node import run_node

REMAP = "camera/depth:=/camera/depth/image_rect"
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("track_id", "<u4"), ("score", "<f4")])


def to_cloud(header: Any, objects: Sequence[tuple[Instance, np.ndarray]]) -> PointCloud2:
    """One cloud of all objects, (instance, (n, 3) points) each; rgb as RViz reads it (a float's bits)."""
    parts = []
    for instance, points in objects:
        part = np.zeros(len(points), POINT)
        part["x"], part["y"], part["z"] = points.T
        red, green, blue = colour_of(instance.track_id)
        part["rgb"], part["track_id"], part["score"] = red << 16 | green << 8 | blue, instance.track_id, instance.score
        parts.append(part)
    rows = np.concatenate(parts) if parts else np.zeros(0, POINT)
    fields = [
        PointField(
            name=name, offset=4 * k, datatype=PointField.UINT32 if name == "track_id" else PointField.FLOAT32, count=1
        )
        for k, name in enumerate(POINT.names or ())
    ]
    return PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=fields,
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * len(rows),
        data=array.array("B", rows.tobytes()),
        is_dense=True,
    )


def to_markers(visualization: Any, header: Any, boxes: Sequence[tuple[Instance, Box3D]]) -> Any:
    """A MarkerArray: all former boxes away, then a translucent box and a label for each object."""
    markers = [visualization.Marker(header=header, action=visualization.Marker.DELETEALL)]
    for instance, box in boxes:
        red, green, blue = (v / 255 for v in colour_of(instance.track_id))
        cube = visualization.Marker(header=header, ns="boxes", id=instance.track_id, type=visualization.Marker.CUBE)
        label = visualization.Marker(
            header=header, ns="labels", id=instance.track_id, type=visualization.Marker.TEXT_VIEW_FACING
        )
        label.text = f"{instance.track_id} {instance.name or instance.class_name}".strip()
        for marker, opacity in ((cube, 0.35), (label, 1.0)):
            marker.pose.position.x, marker.pose.position.y, marker.pose.position.z = box.centre
            marker.pose.orientation.w = 1.0
            marker.color.r, marker.color.g, marker.color.b, marker.color.a = red, green, blue, opacity
        cube.scale.x, cube.scale.y, cube.scale.z = (max(v, 0.005) for v in box.size)
        label.pose.position.y -= box.size[1] / 2 + 0.05  # above: y points down
        label.scale.z = 0.05
        markers += [cube, label]
    return visualization.MarkerArray(markers=markers)


class Projection:
    """One camera: joins instances and depth by their stamps, while somebody listens."""

    def __init__(self, node: Node, camera: str, visualization: Any) -> None:
        self._node, self._camera, self._visualization = node, camera, visualization
        self._points = node.create_publisher(PointCloud2, f"~/{camera}/points", reliable(1))
        self._boxes: Any = None
        if visualization is not None:
            self._boxes = node.create_publisher(visualization.MarkerArray, f"~/{camera}/boxes", reliable(1))
        self._depths = Held()
        self._info: CameraInfo | None = None
        self._view: tuple[Any, np.ndarray] | None = None  # what it was computed for, and the rays
        outputs = [p for p in (self._points, self._boxes) if p is not None]
        self._depth_topic, self._info_topic = f"{camera}/depth", f"{camera}/camera_info"
        self.demand = OnDemand(node, outputs, self._subscribe, [self._depth_topic, self._info_topic])

    def _subscribe(self, depth: QoSProfile, info: QoSProfile) -> list[Any]:
        self._depths = Held()
        make = self._node.create_subscription
        return [
            make(Image, self._depth_topic, self._on_depth, depth),
            make(CameraInfo, self._info_topic, self._on_info, info),
            make(InstanceArray, f"{self._camera}/instances", self._on_instances, reliable(5)),
        ]

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _on_depth(self, message: Image) -> None:
        self._depths.put(to_ns(message.header.stamp), message)

    def _rays(self, info: CameraInfo, size: tuple[int, int]) -> np.ndarray:
        rectified = self._node.get_parameter("rectified").value
        numbers = tuple(info.k), tuple(info.d), tuple(info.p)
        key = (rectified, info.distortion_model, *numbers, info.height, info.width, size)
        if self._view is None or self._view[0] != key:
            K, D, P = (np.array(values, np.float64) for values in numbers)
            K, D = lens(info.distortion_model, K.reshape(3, 3), D, P.reshape(3, 4), rectified)
            self._view = key, rays(K, D, size, (info.height, info.width))
        return self._view[1]

    def _on_instances(self, message: InstanceArray) -> None:
        tolerance = round(self._node.get_parameter("max_time_difference").value * 1e9)
        depth = self._depths.at(to_ns(message.header.stamp), tolerance)
        if complaint := self._depths.complaint(f"a depth image on {self._node.resolve_topic_name(self._depth_topic)}"):
            self._node.get_logger().warning(f"{self._camera}: {complaint}", throttle_duration_sec=60.0)
        if depth is not None and self._info is None:
            topic = self._node.resolve_topic_name(self._info_topic)
            self._node.get_logger().warning(f"{self._camera}: no camera info on {topic}", throttle_duration_sec=60.0)
        if depth is None or self._info is None:
            return
        try:
            self._publish(message, depth, self._info)
        except AusmError as error:
            self._node.get_logger().error(f"{self._camera}: {error}", throttle_duration_sec=60.0)

    def _publish(self, message: InstanceArray, depth: Image, info: CameraInfo) -> None:
        metres = decode_depth(
            depth.data, depth.height, depth.width, depth.step, depth.encoding, bool(depth.is_bigendian)
        )
        view = self._rays(info, metres.shape)
        limits = [self._node.get_parameter(name).value for name in ("nearest", "farthest")]
        objects = [
            (i, project(to_mask(i.mask, message.height, message.width), metres, view, *limits))
            for i in message.instances
            if len(i.mask.runs)
        ]
        self._points.publish(to_cloud(message.header, objects))
        if self._boxes is not None:
            boxes = [(i, box) for i, points in objects if (box := box_of_points(points)) is not None]
            self._boxes.publish(to_markers(self._visualization, message.header, boxes))


class Project3dNode(Node):
    """Parameters: `PROJECT_SPECS`."""

    def __init__(self) -> None:
        """Raises `BadParameter`."""
        super().__init__("project3d")
        cameras = declare_checked(self, PROJECT_SPECS, check_depths)["cameras"]
        try:
            visualization = importlib.import_module("visualization_msgs.msg")
        except ImportError:
            visualization = None
            self.get_logger().info("visualization_msgs is not installed: no boxes")
        self._projections = [Projection(self, camera, visualization) for camera in cameras]
        self.create_timer(0.25, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _check(self) -> None:
        for projection in self._projections:
            projection.demand.check()


def main(argv: list[str] | None = None) -> int:
    return run_node(Project3dNode, "project3d_node", __doc__ or "", REMAP, argv)


if __name__ == "__main__":
    sys.exit(main())
