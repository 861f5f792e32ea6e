"""A camera for the tests, as a program. Arguments: topic, images per second, height, width, reliable | best_effort."""

import sys
from contextlib import suppress

import numpy as np

from ausm_ros.transport import use_large_shared_memory

use_large_shared_memory()

import rclpy  # noqa: E402
from rclpy.executors import ExternalShutdownException  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ausm_ros.messages import to_image  # noqa: E402


def main() -> None:
    topic, rate, height, width, reliability = sys.argv[1:6]
    rclpy.init()
    node = rclpy.create_node("camera_process")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
    publisher = node.create_publisher(Image, topic, qos)
    pixels = np.random.default_rng(2).integers(0, 256, (int(height), int(width), 3), np.uint8)

    def publish() -> None:
        header = Header(stamp=node.get_clock().now().to_msg(), frame_id="lens")
        publisher.publish(to_image(header, pixels))

    node.create_timer(1.0 / float(rate), publish)
    with suppress(ExternalShutdownException, KeyboardInterrupt):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
