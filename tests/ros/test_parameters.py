"""The table of parameters: defaults are good, every bad value is refused with its name, and the YAML file agrees."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ausm_ros.parameters import (
    CAMERA_SPECS,
    SPECS,
    BadParameter,
    Settings,
    camera_specs,
    check_change,
    check_value,
    make_camera_settings,
    make_settings,
)

DEFAULTS: dict[str, Any] = {spec.name: spec.default for spec in SPECS}
BY_NAME = {spec.name: spec for spec in (*SPECS, *CAMERA_SPECS)}


def test_defaults_make_settings() -> None:
    settings = make_settings(DEFAULTS)
    assert settings.cameras == ("camera",) and settings.prompt_history == 0.0
    assert {f.name for f in fields(Settings)} == {spec.field for spec in SPECS}


def test_every_parameter_is_described() -> None:
    for spec in (*SPECS, *CAMERA_SPECS):
        assert len(spec.description) > 10 and spec.description.endswith("."), spec.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", 1.01), ("score_threshold", -0.1), ("score_threshold", "high"), ("score_threshold", True),
        ("capacity", 0), ("capacity", 2.5), ("birth_hits", 0), ("max_missed", 0), ("dedupe_iou", 2.0),
        ("part_gap", -1), ("part_gap", 4097), ("part_gap", 2.5),
        ("device", "gpu"), ("device", "cuda:x"), ("precision", "int8"), ("policy", "oldest"), ("on_time_jump", "die"),
        ("on_size_change", ""), ("max_rate", -1.0), ("input_short_side", 8), ("input_short_side", 5000),
        ("warmup_size", [480]), ("warmup_size", [480, 0]), ("warmup_size", "480x640"), ("discovery", 1),
        ("cameras", []), ("cameras", ["a", "a"]), ("cameras", ["a/b"]), ("cameras", ["1st"]), ("cameras", ["prompt"]),
        ("cameras", "front"), ("cameras", ["debug"]), ("transport", "theora"), ("reliability", "maybe"),
        ("score_threshold", float("nan")), ("prompt.history", -1.0), ("compile", "magic"),
        ("compile", "torch_compile"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadParameter, match=name):
        check_value(BY_NAME[name], value)


def test_whole_numbers_do_for_floats() -> None:
    value = check_value(BY_NAME["max_rate"], 10)
    assert value == 10.0 and isinstance(value, float)


def test_only_dynamic_parameters_change_while_configured() -> None:
    assert check_change(BY_NAME["score_threshold"], 0.7, configured=True) == 0.7
    assert check_change(BY_NAME["checkpoint"], "x", configured=False) == "x"
    with pytest.raises(BadParameter, match="unconfigured"):
        check_change(BY_NAME["checkpoint"], "x", configured=True)


def test_camera_settings() -> None:
    values = {spec.name: spec.default for spec in camera_specs("front")}
    assert make_camera_settings("front", values).topic == "front/image"
    values["front.transport"] = "compressed"
    assert make_camera_settings("front", values).topic == "front/image/compressed"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def test_yaml_file_lists_every_parameter_at_its_default() -> None:
    text = (Path(__file__).parents[2] / "config" / "perception.yaml").read_text()
    listed = flat(yaml.safe_load(text)["/**"]["ros__parameters"])
    camera = {spec.name: spec.default for spec in camera_specs("camera")}
    assert listed == DEFAULTS | camera
    for line in text.splitlines():  # the D marks tell the truth
        name = line.split("#")[0].split(":")[0].strip()
        if (spec := BY_NAME.get(name)) and "#" in line:
            assert (line.split("#")[1].strip()[:2] == "D ") == spec.dynamic, name
