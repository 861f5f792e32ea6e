"""The reference page is what its generator makes of messages and parameters; the guide names only what exists."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.parameters import CAMERA_SPECS, SPECS
from ausm_ros.prompts import Code
from ausm_ros.reference import PAGE, page

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m ausm_ros.reference"


def test_guide_names_real_parameters_and_every_code() -> None:
    guide = (DOCS / "ros.md").read_text()
    for code in Code:
        assert f"`{code.name}`" in guide, code
    known = {spec.name for spec in (*SPECS, *CAMERA_SPECS)}
    named = set(re.findall(r"`((?:prompt|overlay|diagnostics)\.[a-z_]+)`", guide))
    assert named and named <= known


def names_in(*files: str) -> set[str]:
    """Names under "~/" that modules of the node create, for a camera called camera."""
    text = "".join((DOCS.parent / "ausm_ros" / f"{name}.py").read_text() for name in files)
    names = {name.replace("{camera}", "camera") for name in re.findall(r'"~/([a-z_/{}]+)"', text)}
    debug = {f"debug/{name}" for name in ("cyclic_time_ms", "processing_time_ms", "pipeline_latency_ms")}
    return {name for name in names if not name.startswith("debug/")} | (debug if "outputs" in files else set())


def test_security_policy_allows_what_the_node_does() -> None:
    [policy] = re.findall(r"```xml\n(.*?)```", (DOCS / "security.md").read_text(), re.DOTALL)
    node, operator = ElementTree.fromstring(policy).iter("profile")
    published = {t.text.strip() for part in node.findall("topics[@publish]") for t in part}
    replied = {t.text.strip() for part in node.findall("services[@reply]") for t in part}
    assert names_in("outputs", "optional_outputs") <= {name.removeprefix("~/") for name in published}
    assert names_in("services") <= {name.removeprefix("~/") for name in replied}
    requested = {t.text.strip() for part in operator.findall("services[@request]") for t in part}
    assert requested == {f"perception/{name}" for name in ("add_objects", "remove_objects", "reset", "list_objects")}


def test_layouts_show_topics_that_exist() -> None:
    config = DOCS.parent / "config"
    published = {f"/perception/{name}" for name in names_in("outputs", "optional_outputs")}
    published |= {f"/overlay/{name}" for name in names_in("overlay_node")}
    published |= {f"/project3d/{name}" for name in names_in("project3d_node")}
    published |= {"/camera/image_raw", "/diagnostics"}
    displays = yaml.safe_load((config / "perception.rviz").read_text())["Visualization Manager"]["Displays"]
    shown = {d["Topic"]["Value"] for d in displays if "Topic" in d}
    foxglove = json.dumps(json.loads((config / "perception.foxglove.json").read_text())["configById"])
    shown |= {t.removesuffix(".data") for t in re.findall(r'"(/[a-z_/.0-9]+)"', foxglove)}
    assert len(shown) >= 8 and shown <= published, shown - published
