"""What the executables of the nodes do first: answer --help, and tell wrong ROS arguments in one line."""

import sys
from collections.abc import Sequence

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.utilities import remove_ros_args

# rclpy's errors for arguments, then for its own parameters (use_sim_time), which a node meets when it is made
WRONG_ARGUMENTS = (rclpy_implementation.UnknownROSArgsError, rclpy_implementation.RCLError, ParameterException)
HELP = ("-h", "--help")
OPTIONS = """\
ROS arguments, all after --ros-args:
  -p NAME:=VALUE       a parameter, as -p use_sim_time:=true
  -r FROM:=TO          another name of a topic, as -r {remap}
  --params-file FILE   parameters from a YAML file (config/perception.yaml has those of perception_node)
  --log-level LEVEL    debug, info, warn, error or fatal

Topics, services and parameters: docs/ros.md and docs/interface.md
"""


def usage(name: str, about: str, remap: str) -> str:
    """The help text of an executable. about: what it does; remap: an example of FROM:=TO."""
    command = f"ausm-{name.replace('_', '-')}"
    first = f"usage: {command} --ros-args [-p NAME:=VALUE ...] [-r {remap.split(':=')[0]}:=TOPIC] [--params-file FILE]"
    also = f"       ros2 run ausm_ros {name} --ros-args ..."
    return f"{first}\n{also}\n\n{about.strip()}\n\n{OPTIONS.format(remap=remap)}"


def reason_of(error: Exception) -> str:
    """What ROS says of arguments that it refuses (`WRONG_ARGUMENTS`), without the places in its sources."""
    if isinstance(error, rclpy_implementation.UnknownROSArgsError):
        return f"unknown ROS arguments {error}"
    return str(error).partition(", at ")[0].removeprefix("failed to initialize rcl: ")


def init_ros(name: str, about: str, remap: str, argv: Sequence[str] | None) -> int | None:
    """`rclpy.init`; else the exit status: 0 after --help, 2 with a line on stderr for arguments that ROS refuses.

    name, about, remap: as for `usage`; argv: without the program's name, None for the process's own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word in HELP for word in words):
        print(usage(name, about, remap), end="")
        return 0
    try:
        rclpy.init(args=None if argv is None else list(argv))
        left = remove_ros_args(args=[name, *words])[1:]
    except WRONG_ARGUMENTS as error:
        print(f"{name}: {reason_of(error)}", file=sys.stderr)
        return 2
    if left:
        print(f"{name}: not read, as ROS arguments begin after --ros-args: {' '.join(left)}", file=sys.stderr)
    return None
