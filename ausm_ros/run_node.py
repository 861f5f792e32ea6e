"""Runs a simple node until it is told to end."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from ausm_ros.parameters import BadParameter
from ausm_ros.start import init_ros
from ausm_ros.transport import use_large_shared_memory

AnyNode = TypeVar("AnyNode", bound=Node)


def make_node(make: Callable[[], AnyNode], name: str) -> AnyNode | None:
    """The node; None, with one line on stderr and ROS shut down, where a parameter is refused."""
    try:
        return make()
    except (BadParameter, ParameterException) as error:  # the latter of rclpy's own, as use_sim_time
        print(f"{name}: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return None


@contextmanager
def until_shutdown() -> Iterator[None]:
    """What is inside ends with ROS, or by Ctrl-C, without a traceback."""
    try:
        yield
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (rclpy_implementation.RCLError, rclpy_implementation.InvalidHandle):
        if rclpy.ok():  # else ROS was shut down under a callback
            raise


def run_node(make: Callable[[], Node], name: str, about: str, remap: str, argv: list[str] | None) -> int:
    """Initialises ROS, spins the node, returns the exit status: 2 with one line for a parameter that is refused.

    name, about, remap: as for `ausm_ros.start.usage`.
    """
    use_large_shared_memory()
    status = init_ros(name, about, remap, argv)
    if status is not None:
        return status
    node = make_node(make, name)
    if node is None:
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with until_shutdown():
        executor.spin()
    rclpy.try_shutdown()
    return 0
