"""Publishes N best-effort images of 1920x1080 at 5 Hz once somebody listens: at a pace that a busy machine keeps."""

import array
import sys
import time

import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from ausm_ros.transport import use_large_shared_memory

use_large_shared_memory()
rclpy.init(args=[])
node = rclpy.create_node("image_sender")
publisher = node.create_publisher(Image, "big_image", qos_profile_sensor_data)
message = Image(height=1080, width=1920, step=5760, encoding="rgb8", data=array.array("B", bytes(1080 * 1920 * 3)))
while publisher.get_subscription_count() == 0:
    time.sleep(0.05)
time.sleep(0.5)  # the other side has to know us too
for _ in range(int(sys.argv[1])):
    publisher.publish(message)
    time.sleep(0.2)
print("all sent", flush=True)
rclpy.spin_once(node, timeout_sec=2.0)  # the last ones are still under way
