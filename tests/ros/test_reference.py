"""The reference page is what its generator makes of messages and parameters; the guide names only what exists."""

import re
from pathlib import Path

import pytest

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
