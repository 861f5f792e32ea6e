"""The launch file: every argument is there and described; where `launch_ros` is installed it makes the right nodes."""

import ast
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "perception.launch.py"
ARGUMENTS = (
    "namespace", "image_topic", "cameras", "transport", "checkpoint", "device", "precision", "discovery", "overlay",
    "rviz", "bag", "bag_rate", "policy", "use_sim_time", "autostart", "params_file", "log_level", "respawn",
)  # fmt: skip


def declared() -> dict[str, tuple[str, list[str] | None, str]]:
    """The table of arguments, read without executing the file: `launch` is on no package index."""
    tree = ast.parse(FILE.read_text())
    names: dict[str, Any] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in ("ON_OFF", "ARGUMENTS"):
            code = compile(ast.Expression(node.value), str(FILE), "eval")  # type: ignore[attr-defined]
            names[target.id] = eval(code, dict(names))
    return names["ARGUMENTS"]


def test_every_argument_is_described() -> None:
    arguments = declared()
    assert tuple(arguments) == ARGUMENTS
    for name, (default, choices, words) in arguments.items():
        assert len(words) > 10 and words.endswith("."), name
        assert choices is None or default in choices, name


def test_file_compiles() -> None:
    compile(FILE.read_text(), str(FILE), "exec")


def test_layouts_show_topics_the_nodes_publish() -> None:
    rviz = yaml.safe_load((ROOT / "config" / "perception.rviz").read_text())
    topics = [d["Topic"]["Value"] for d in rviz["Visualization Manager"]["Displays"] if "Topic" in d]
    assert "/overlay/camera/image" in topics and "/project3d/camera/points" in topics
    foxglove = (ROOT / "config" / "perception.foxglove.json").read_text()
    for topic in ("/camera/image_raw", "/perception/camera/annotations", "/perception/debug/processing_time_ms"):
        assert topic in foxglove


def made(**given: str) -> list[Any]:
    """The actions of the launch file with these arguments."""
    launch = pytest.importorskip("launch", reason="ROS 2's launch is not installed")
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    context = launch.LaunchContext()
    description = PythonLaunchDescriptionSource(str(FILE)).get_launch_description(context)
    actions: list[Any] = []
    context.launch_configurations.update(given)
    for entity in description.entities:
        actions += entity.execute(context) or []
    return actions


def handed(action: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters (those of a later file win, as in ROS) and the remappings that a node is started with."""
    from launch import LaunchContext

    action._perform_substitutions(LaunchContext())
    words = [getattr(part, "text", "") for parts in action.cmd for part in parts]
    values: dict[str, Any] = {}
    for before, word in pairwise(words):
        if before == "--params-file":
            # launch writes lists as tuples of Python
            for entry in yaml.full_load(Path(word).read_text()).values():
                values |= flat(entry["ros__parameters"])
    return values, dict(action.expanded_remapping_rules)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return values


def test_default_is_the_node_and_its_overlay() -> None:
    actions = made()
    assert [a.node_executable for a in actions] == ["perception_node", "overlay_node"]
    assert [a.node_executable for a in made(overlay="false")] == ["perception_node"]


def test_cameras_and_topics_must_be_of_one_number() -> None:
    made(cameras="front,rear", image_topic="/f/image_raw,/r/image_raw")
    with pytest.raises(RuntimeError, match="2 cameras"):
        made(cameras="front,rear")


def test_every_form_of_the_images_is_remapped() -> None:
    """Whichever the node listens to in the end: its transport may come from a file."""
    for node in made(image_topic="/f/image_raw"):
        remapped = handed(node)[1]
        assert remapped["camera/image"] == "/f/image_raw", node.node_executable
        assert remapped["camera/image/compressed"] == "/f/image_raw/compressed", node.node_executable


def test_both_nodes_agree_on_what_the_parameter_file_says(tmp_path: Path) -> None:
    file = tmp_path / "perception.yaml"
    values = """
      cameras: [front, rear]
      front: {transport: compressed}
      use_sim_time: true
      score_threshold: 0.6"""
    for key in ("/**", "perception", "/perception"):
        file.write_text(f"{key}:\n  ros__parameters:{values}\n")
        for node in made(params_file=str(file), image_topic="/f/image_raw,/r/image_raw"):
            parameters, remapped = handed(node)
            assert parameters["cameras"] == ("front", "rear") and parameters["use_sim_time"] is True
            assert (parameters["front.transport"], parameters["rear.transport"]) == ("compressed", "raw")
            assert remapped["front/image/compressed"] == "/f/image_raw/compressed"
            assert remapped["rear/image"] == "/r/image_raw"
    given = made(params_file=str(file), cameras="left", transport="compressed", discovery="false")
    parameters, _ = handed(given[0])
    assert parameters["cameras"] == ("left",) and parameters["left.transport"] == "compressed"
    assert parameters["discovery"] is False and parameters["score_threshold"] == 0.6 and "device" not in parameters
    with pytest.raises(RuntimeError, match=r"2 cameras .*1 topics .*image_topic"):
        made(params_file=str(file))


def test_a_file_for_another_node_says_nothing_of_this_one(tmp_path: Path) -> None:
    file = tmp_path / "perception.yaml"
    file.write_text("/left/*: {ros__parameters: {cameras: [front]}}\nright: {detector: {ros__parameters: {}}}\n")
    parameters, _ = handed(made(params_file=str(file), namespace="left")[1])
    assert parameters["cameras"] == ("front",) and parameters["use_sim_time"] is False
    assert handed(made(params_file=str(file), namespace="right")[1])[0]["cameras"] == ("camera",)


def test_a_bag_is_played_once_from_when_the_node_is_active() -> None:
    handler, node, overlay = made(bag="/data/run1", bag_rate="0.5")
    from launch_ros.events.lifecycle import StateTransition
    from lifecycle_msgs.msg import State, TransitionEvent

    def event(goal: str, of: Any) -> Any:
        message = TransitionEvent(goal_state=State(label=goal), start_state=State(label="activating"))
        return StateTransition(action=of, msg=message)

    played = handler.event_handler
    assert not played.matches(event("inactive", node)) and played.matches(event("active", node))
    assert played.handle_once
    [player] = played.entities
    words = [part[0].text for part in player.cmd]
    assert words[:4] == ["ros2", "bag", "play", "/data/run1"] and "--clock" in words
    assert words[words.index("--rate") + 1] == "0.5" and float(words[words.index("--delay") + 1]) > 0.5
    for each in (node, overlay):
        assert handed(each)[0]["use_sim_time"] is True
