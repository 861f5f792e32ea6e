"""Counts the best-effort images it gets, until it is told to stop."""

from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from ausm_ros.transport import use_large_shared_memory

use_large_shared_memory()
rclpy.init(args=[])
node = rclpy.create_node("image_receiver")
sizes: list[tuple[int, int]] = []
node.create_subscription(Image, "big_image", lambda m: sizes.append((m.width, m.height)), qos_profile_sensor_data)
with suppress(KeyboardInterrupt, ExternalShutdownException):
    rclpy.spin(node)
print(f"received {len(sizes)} images of {set(sizes)}", flush=True)
