"""The launch file: every argument is there and described; where `launch_ros` is installed it makes the right nodes."""

import ast
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


def commands(actions: list[Any]) -> list[str]:
    """What each action will run, with the executable and its remappings as far as they are plain text."""
    from launch import LaunchContext

    context = LaunchContext()
    return [" ".join(context.perform_substitution(part[0]) for part in a.cmd if part) for a in actions]


def test_default_is_the_node_and_its_overlay() -> None:
    actions = made()
    assert [a.node_executable for a in actions] == ["perception_node", "overlay_node"]
    assert [a.node_executable for a in made(overlay="false")] == ["perception_node"]


def test_cameras_and_topics_must_be_of_one_number() -> None:
    made(cameras="front,rear", image_topic="/f/image_raw,/r/image_raw")
    with pytest.raises(RuntimeError, match="2 cameras"):
        made(cameras="front,rear")
