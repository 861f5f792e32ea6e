"""What a user meets first: --help, wrong arguments, misspelt parameters, a topic on which nothing comes."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
import rclpy.utilities
from harness import DOMAIN
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.parameter import Parameter

from ausm_ros import camera as camera_module
from ausm_ros.camera import Camera
from ausm_ros.counts import CameraCounts
from ausm_ros.overlay_node import OverlayNode
from ausm_ros.parameters import CameraSettings
from ausm_ros.perception_node import PerceptionNode
from ausm_ros.project3d_node import Project3dNode
from ausm_ros.run_node import until_shutdown
from ausm_ros.start import init_ros


@pytest.fixture(autouse=True)
def own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rclpy.init` as in a new process: tests of other files may have left the default context in use."""
    monkeypatch.setattr(rclpy.utilities, "g_default_context", None)


@pytest.mark.parametrize("error", [rclpy_implementation.RCLError, rclpy_implementation.InvalidHandle])
def test_an_error_of_ros_ends_quietly_only_after_its_shutdown(error: type[Exception], monkeypatch) -> None:
    monkeypatch.setattr(rclpy, "ok", lambda: True)
    with pytest.raises(error), until_shutdown():
        raise error("the handle is gone")
    monkeypatch.setattr(rclpy, "ok", lambda: False)
    with until_shutdown():
        raise error("the handle is gone")
    with pytest.raises(RuntimeError, match="another"), until_shutdown():
        raise RuntimeError("another")


@pytest.mark.parametrize("name", ["perception_node", "overlay_node", "project3d_node"])
def test_help_starts_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"ausm_ros.{name}").main
    assert main(["--help"]) == 0 and not rclpy.ok()
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ausm-{name.replace('_', '-')} --ros-args [-p NAME:=VALUE ...] [-r camera/")
    assert "--params-file FILE" in printed and "docs/interface.md" in printed and "/camera/" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--params-file", "nope.yaml"], "params file: '--params-file nope.yaml'. Error: Error opening YAML file"),
        (["-p", "x"], "-p x"),
        (["--no-such"], "unknown ROS arguments ['--no-such']"),
    ],
)
def test_wrong_ros_arguments_are_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init_ros("perception_node", "", "camera/image:=/x", ["--ros-args", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("perception_node: ") and part in printed and printed.count("\n") == 1


def test_arguments_before_ros_args_are_not_read_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert init_ros("overlay_node", "", "camera/image:=/x", ["-p", "a:=1", "--ros-args", "-p", "b:=2"]) is None
        assert capsys.readouterr().err == "overlay_node: not read, as ROS arguments begin after --ros-args: -p a:=1\n"
    finally:
        rclpy.shutdown()


def test_a_misspelt_parameter_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    rclpy.init(domain_id=DOMAIN)
    given = {"scor_threshold": 0.6, "camera.transport": "raw", "use_sim_time": False, "zzz": 1}
    try:
        node = PerceptionNode(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
        node.destroy_node()
    finally:
        rclpy.shutdown()
    printed = capfd.readouterr().err
    assert printed.count("is not known") == 2
    assert "parameter scor_threshold is not known; is score_threshold meant?" in printed
    assert "parameter zzz is not known\n" in printed


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("overlay_node", "max_rate:=fast", "max_rate: float is needed, not 'fast'"),
        ("overlay_node", "max_rate:=-1", "max_rate: -1.0 is outside 0 .. 1000"),
        ("overlay_node", "cameras:=front", "cameras: a list of str is needed, not 'front'"),
        ("overlay_node", "cameras:=[1, 2]", "cameras: a list of str is needed, not [1, 2]"),
        ("overlay_node", "transport:=compresed", "transport: 'compresed' is not one of raw, compressed"),
        ("overlay_node", "camera.transport:=jpeg", "camera.transport: 'jpeg' is not one of raw, compressed"),
        ("project3d_node", "nearest:=-1", "nearest: -1.0 is outside 0 .. 1000"),
        ("project3d_node", "nearest:=10", "nearest 10 m is not below farthest 10 m"),
        ("project3d_node", "rectified:=1", "rectified: bool is needed, not 1"),
        ("project3d_node", "cameras:=front", "cameras: a list of str is needed, not 'front'"),
        ("project3d_node", "use_sim_time:=1", "use_sim_time"),
        ("perception_node", "max_rate:=fast", "max_rate: float is needed, not 'fast'"),
        ("perception_node", "use_sim_time:=1", "use_sim_time"),
    ],
)
def test_a_bad_parameter_ends_the_start_with_one_line(
    name: str, given: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"ausm_ros.{name}").main
    assert main(["--ros-args", "-p", given]) == 2 and not rclpy.ok()
    printed = capsys.readouterr().err
    assert printed.startswith(f"{name}: ") and reason in printed and printed.count("\n") == 1


def test_whole_numbers_will_do_and_later_changes_are_checked_as_well() -> None:
    words = ["max_rate:=5", "nearest:=1", "cameras:=[front, rear]", "rear.transport:=compressed"]
    rclpy.init(args=["--ros-args", *(word for given in words for word in ("-p", given))], domain_id=DOMAIN)
    try:
        overlay, project = OverlayNode(), Project3dNode()
        assert [o._topic for o in overlay._overlays] == ["front/image", "rear/image/compressed"]
        assert overlay.get_parameter("max_rate").value == 5 and project.get_parameter("nearest").value == 1

        def change(node: Any, name: str, value: Any) -> tuple[bool, str]:
            answer = node.set_parameters([Parameter(name, value=value)])[0]
            return answer.successful, answer.reason

        assert change(overlay, "max_rate", 0) == change(project, "farthest", 20.5) == (True, "")
        assert change(overlay, "max_rate", "x") == (False, "max_rate: float is needed, not 'x'")
        assert change(overlay, "rear.transport", "raw")[1].startswith("rear.transport is read when the node starts")
        assert change(project, "nearest", 30.0) == (False, "nearest 30 m is not below farthest 20.5 m")
        assert change(project, "cameras", ["front"])[1].startswith("cameras is read when the node starts")
        assert overlay.get_parameter("max_rate").value == 0 and project.get_parameter("farthest").value == 20.5
        for node in (overlay, project):
            node.destroy_node()
    finally:
        rclpy.shutdown()


def test_silence_is_told_after_a_while_and_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = [1000.0]
    monkeypatch.setattr(camera_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    node: Any = SimpleNamespace(
        resolve_topic_name=lambda name: "/camera/image_raw",
        get_publishers_info_by_topic=lambda topic: [],
        create_subscription=lambda *args, **options: object(),
        destroy_subscription=lambda subscription: None,
        count_publishers=lambda topic: 0,
        get_logger=lambda: SimpleNamespace(warning=told.append),
    )
    counts, settings = CameraCounts(), SimpleNamespace(policy="latest")
    watched: Any = (node, CameraSettings("camera", "raw", "auto"), None, counts, lambda: None, lambda: settings, None)
    camera = Camera(*watched)

    def wait(seconds: float) -> int:
        now[0] += seconds
        camera.tell_silence()
        return len(told)

    assert wait(100) == 0  # not subscribed
    camera.subscribe()
    assert [wait(4.9), wait(0.2), wait(59), wait(2)] == [0, 1, 1, 2]
    assert told[0].startswith("no image on /camera/image_raw yet; it has 0 publishers (-r camera/image:=TOPIC")
    monkeypatch.setattr(node, "count_publishers", lambda topic: 2)
    assert wait(60) == 3 and "it has 2 publishers (see 'When images do not arrive'" in told[2]
    counts.last_received = now[0]
    assert wait(600) == 3
    camera.unsubscribe()
    camera.subscribe()  # activated again: what came before does not count
    counts.last_received = now[0] - 1
    assert wait(5.1) == 4
