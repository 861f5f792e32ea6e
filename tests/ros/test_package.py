"""What an installation holds: the documented interfaces, modules, executables, files where ROS tools look for them."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from ausm_ros.msg import Instance, InstanceArray, Prompt, PromptResult, Rle
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import RegionOfInterest

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(sys.prefix)
SITE = Path(sysconfig.get_path("platlib"))
needs_wheel = pytest.mark.skipif(not (SITE / "ausm_ros" / "msg").exists(), reason="ausm_ros was not installed by pip")

TIME, DURATION, ROI = "builtin_interfaces/Time", "builtin_interfaces/Duration", "sensor_msgs/RegionOfInterest"
INTERFACES = [
    (Rle, {"roi": ROI, "runs": "sequence<uint32>"}),
    (
        Instance,
        {
            "track_id": "uint32", "name": "string", "state": "uint8", "source": "uint8", "label_value": "uint16",
            "class_id": "int32", "class_name": "string", "class_score": "float", "score": "float", "box": ROI,
            "area": "uint32", "mask": "ausm_ros/Rle", "first_seen": TIME, "last_seen": TIME, "age": "uint32",
            "frames_since_seen": "uint32",
        },
    ),
    (
        InstanceArray,
        {
            "header": "std_msgs/Header", "camera": "string", "height": "uint32", "width": "uint32", "epoch": "uint32",
            "frame_index": "uint64", "dropped": "uint32", "instances": "sequence<ausm_ros/Instance>",
            "queue_time": DURATION, "inference_time": DURATION, "processing_time": DURATION,
        },
    ),
    (
        Prompt,
        {
            "name": "string", "track_id": "uint32", "type": "uint8", "mask": "sensor_msgs/Image",
            "rle": "ausm_ros/Rle", "png": "sensor_msgs/CompressedImage", "box": ROI, "point_x": "sequence<uint32>",
            "point_y": "sequence<uint32>", "point_labels": "sequence<int8>",
        },
    ),
    (PromptResult, {"code": "uint8", "message": "string", "track_id": "uint32", "iou_with_prompt": "float"}),
    (
        AddObjects.Request,
        {
            "camera": "string", "stamp": TIME, "prompts": "sequence<ausm_ros/Prompt>", "all_or_nothing": "boolean",
            "wait": DURATION,
        },
    ),
    (
        AddObjects.Response,
        {
            "success": "boolean", "message": "string", "applied_stamp": TIME, "epoch": "uint32",
            "results": "sequence<ausm_ros/PromptResult>",
        },
    ),
    (RemoveObjects.Request, {"camera": "string", "track_ids": "sequence<uint32>", "all": "boolean"}),
    (
        RemoveObjects.Response,
        {"success": "boolean", "message": "string", "results": "sequence<ausm_ros/PromptResult>"},
    ),
    (Reset.Request, {"camera": "string"}),
    (Reset.Response, {"success": "boolean", "message": "string", "epoch": "uint32"}),
    (ListObjects.Request, {"camera": "string"}),
    (
        ListObjects.Response,
        {
            "success": "boolean", "message": "string", "capacity": "uint32", "in_use": "uint32",
            "objects": "sequence<ausm_ros/Instance>",
        },
    ),
]  # fmt: skip
CONSTANTS = [
    (Instance, {"STATE_TENTATIVE": 0, "STATE_TRACKED": 1, "STATE_LOST": 2, "STATE_REMOVED": 3}),
    (Instance, {"SOURCE_DISCOVERED": 0, "SOURCE_PROMPT": 1}),
    (Prompt, {"MASK_IMAGE": 0, "MASK_RLE": 1, "MASK_PNG": 2, "BOX": 3, "POINTS": 4}),
    (
        PromptResult,
        {
            "OK": 0, "NOT_ACTIVE": 1, "UNKNOWN_CAMERA": 2, "NO_IMAGE": 3, "WRONG_SIZE": 4, "BAD_ENCODING": 5,
            "EMPTY_MASK": 6, "INVALID_MASK": 7, "CAPACITY_EXCEEDED": 8, "UNKNOWN_ID": 9, "DUPLICATE_NAME": 10,
            "STALE_STAMP": 11, "UNSUPPORTED_TYPE": 12, "TOO_MANY": 13, "TIMEOUT": 14, "INTERNAL_ERROR": 255,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("interface", "fields"), INTERFACES, ids=lambda v: getattr(v, "__name__", ""))
def test_fields_are_the_documented_ones(interface: type, fields: dict[str, str]) -> None:
    assert interface.get_fields_and_field_types() == fields


@pytest.mark.parametrize(("interface", "values"), CONSTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_constants_are_the_documented_ones(interface: type, values: dict[str, int]) -> None:
    assert {name: getattr(interface, name) for name in values} == values


def test_a_message_survives_the_wire() -> None:
    mask = Rle(roi=RegionOfInterest(x_offset=3, y_offset=4, width=5, height=2), runs=[0, 7, 3])
    sent = InstanceArray(camera="front", frame_index=2**40, instances=[Instance(track_id=7, name="kopp ä", mask=mask)])
    assert deserialize_message(serialize_message(sent), InstanceArray) == sent


def _run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that sees the installation only: not the source tree, no activated environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = "/usr/bin:/bin"
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@needs_wheel
@pytest.mark.parametrize("package", ["ausm", "ausm_ros", "training", "bench"])
def test_the_wheel_holds_every_module_and_data_file(package: str) -> None:
    shipped = {".py", ".cpp", ".h", ".safetensors", ".json", ".md"}
    in_tree = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.suffix in shipped}
    missing = [str(path) for path in sorted(in_tree) if not (SITE / path).exists()]
    assert not missing, f"not installed (make venv): {missing}"


@needs_wheel
def test_installed_packages_import_outside_the_source_tree(tmp_path: Path) -> None:
    code = "import ausm, ausm_ros, training, bench; from ausm_ros.srv import AddObjects; print(ausm.__file__)"
    result = _run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(SITE)


@needs_wheel
@pytest.mark.parametrize("module", ["messages", "prompt", "overlay_node", "project3d_node"])
def test_who_only_reads_and_writes_messages_does_not_load_pytorch(module: str) -> None:
    """Seconds, and 300 MB: an operator's box would be on an image long past."""
    result = _run(sys.executable, "-c", f"import sys, ausm_ros.{module}; print('torch' in sys.modules)", cwd=ROOT)
    assert result.stdout.strip() == "False", result.stdout + result.stderr


@needs_wheel
def test_ros_tools_find_the_package() -> None:
    share = PREFIX / "share" / "ausm_ros"
    assert (PREFIX / "share/ament_index/resource_index/packages/ausm_ros").exists()
    for name in ("package.xml", "config/fastdds_shm.xml", "config/perception.yaml", "launch/perception.launch.py"):
        assert (share / name).read_text() == (ROOT / name).read_text(), f"{name} is not the installed one (make venv)"
    assert (share / "msg" / "InstanceArray.msg").exists()


def _executables() -> list[str]:
    """The names in the loop of CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    return text.split("foreach(node IN ITEMS ")[1].split(")")[0].split()


@needs_wheel
@pytest.mark.parametrize("name", _executables())
def test_executables_of_ros2_run_start_without_an_activated_environment(name: str, tmp_path: Path) -> None:
    assert importlib.util.find_spec(f"ausm_ros.{name}") is not None
    program = PREFIX / "lib" / "ausm_ros" / name
    is_node = name.endswith("_node")  # nodes have no --help: rclpy's refusal shows that they have come to its start
    result = _run(program, *(["--ros-args", "--no-such-option"] if is_node else ["--help"]), cwd=tmp_path)
    if is_node:
        assert result.returncode != 0
        assert "--no-such-option" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout


@needs_wheel
def test_every_console_script_has_its_main() -> None:
    scripts = [e for e in importlib.metadata.distribution("ausm-ros").entry_points if e.group == "console_scripts"]
    assert {e.name for e in scripts} >= {"ausm", "ausm-demo", "ausm-perception-node", "ausm-prompt"}
    for script in scripts:
        assert callable(script.load()), script
        assert (PREFIX / "bin" / script.name).exists()


@needs_wheel
def test_one_version_for_pip_and_ros() -> None:
    declared = ElementTree.parse(ROOT / "package.xml").getroot().findtext("version")
    assert importlib.metadata.version("ausm-ros") == declared
