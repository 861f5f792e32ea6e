"""ros2 launch ausm_ros perception.launch.py image_topic:=/camera/image_raw

The node in a process of its own that starts again when it dies, and on request the overlay, RViz and a bag to play.
`--show-args` lists every argument. Values of `params_file` hold unless the argument is given as something else than its
default here; the overlay and the remappings follow them.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, RegisterEventHandler
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from ausm_ros.params_file import given_to, load_tree
from launch import LaunchContext, LaunchDescription

ON_OFF = ["true", "false"]
# name: (default, accepted values, what it is)
ARGUMENTS: dict[str, tuple[str, list[str] | None, str]] = {
    "namespace": ("", None, "Namespace of the nodes."),
    "image_topic": ("/camera/image_raw", None, "Topic of the images; one per camera, separated by commas."),
    "cameras": ("camera", None, "Names of the cameras, separated by commas."),
    "transport": ("raw", ["raw", "compressed"], "Form of the images; image_topic is given without /compressed."),
    "checkpoint": ("nano", None, "A released name or the path of a .safetensors file; nothing is downloaded."),
    "device": ("auto", None, "auto, cpu or cuda:N."),
    "precision": ("auto", ["auto", "fp32", "bf16", "fp16"], "Arithmetic of the model."),
    "discovery": ("true", ON_OFF, "Find objects that were not prompted."),
    "overlay": ("true", ON_OFF, "Start the overlay node: overlay/<camera>/image, drawn while somebody looks."),
    "rviz": ("false", ON_OFF, "Start RViz with the layout of this package."),
    "bag": ("", None, "A rosbag2 to play once the node is active; its clock is used."),
    "bag_rate": ("1.0", None, "Speed of the bag."),
    "policy": ("latest", ["latest", "every"], "Always the newest image, or every image in order."),
    "use_sim_time": ("false", ON_OFF, "Take the time from /clock."),
    "autostart": ("true", ON_OFF, "Configure and activate the node by itself."),
    "params_file": ("", None, "A YAML file of parameters; config/perception.yaml of this package shows all."),
    "log_level": ("info", ["debug", "info", "warn", "error", "fatal"], "Least severity that is logged."),
    "respawn": ("true", ON_OFF, "Start the node again 2 s after it died."),
}  # fmt: skip
BAG_DELAY = "1"  # seconds for the nodes to find the player's topics: what it sends before is lost
PARAMETERS = ("checkpoint", "device", "precision", "discovery", "policy", "autostart")


def typed(value: str) -> Any:
    return value == "true" if value in ON_OFF else value


def listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [name.strip() for name in value.split(",")]


def make_nodes(context: LaunchContext) -> list[Any]:
    """The actions for the given values."""
    values = {name: context.launch_configurations[name] for name in ARGUMENTS}
    namespace = prefix_namespace(context.launch_configurations.get("ros_namespace"), values["namespace"])
    full_name = prefix_namespace(make_namespace_absolute(namespace), "perception")
    files = [values["params_file"]] if values["params_file"] else []
    in_file = given_to(full_name, load_tree(Path(files[0]))) if files else {}
    default = {name: values[name] == ARGUMENTS[name][0] for name in ARGUMENTS}

    def holds(argument: str, name: str) -> Any:
        """The parameter's value in the perception node, which the other nodes and the remappings must agree with."""
        return in_file[name] if default[argument] and name in in_file else typed(values[argument])

    cameras, topics = listed(holds("cameras", "cameras")), listed(values["image_topic"])
    if len(topics) != len(cameras):
        raise RuntimeError(f"{len(cameras)} cameras {cameras}, but {len(topics)} topics {topics} (image_topic)")
    remappings = [
        (f"{camera}/image{form}", f"{topic}{form}")
        for camera, topic in zip(cameras, topics, strict=True)
        for form in ("", "/compressed")
    ]
    transports = {f"{camera}.transport": holds("transport", f"{camera}.transport") for camera in cameras}
    sim_time = bool(values["bag"]) or holds("use_sim_time", "use_sim_time")

    given = {"cameras": cameras, **transports, "use_sim_time": sim_time}
    given |= {name: typed(values[name]) for name in PARAMETERS if not files or not default[name]}
    common = {
        "package": "ausm_ros",
        "namespace": values["namespace"],
        "output": "screen",
        "respawn": typed(values["respawn"]),
        "respawn_delay": 2.0,
        "ros_arguments": ["--log-level", values["log_level"]],
    }
    perception = LifecycleNode(
        executable="perception_node",
        name="perception",
        parameters=[*files, given],
        remappings=remappings,
        **common,
    )
    actions: list[Any] = [perception]
    if typed(values["overlay"]):
        drawn = {"cameras": cameras, **transports, "use_sim_time": sim_time}
        instances = [(f"{camera}/instances", f"perception/{camera}/instances") for camera in cameras]
        both = remappings + instances
        actions.append(Node(executable="overlay_node", name="overlay", parameters=[drawn], remappings=both, **common))
    if typed(values["rviz"]):
        layout = Path(get_package_share_directory("ausm_ros")) / "config" / "perception.rviz"
        actions.append(Node(package="rviz2", executable="rviz2", arguments=["-d", str(layout)], output="screen"))
    if values["bag"]:
        rate = ["--clock", "--rate", values["bag_rate"], "--delay", BAG_DELAY]
        player = ExecuteProcess(cmd=["ros2", "bag", "play", values["bag"], *rate], output="screen")
        # Before it is active the node hears nothing. Once: a node that was started again goes on in the same bag.
        ready = OnStateTransition(
            target_lifecycle_node=perception, goal_state="active", entities=[player], handle_once=True
        )
        actions.insert(0, RegisterEventHandler(ready))
    return actions


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, choices=choices, description=words)
        for name, (default, choices, words) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=make_nodes)])
