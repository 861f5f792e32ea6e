"""A node's parameters read from its file without the node."""

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm.errors import InputError
from ausm_ros.parameters import SPECS
from ausm_ros.params_file import read_params_file

ROOT = Path(__file__).parents[2]


def test_the_file_of_the_package_has_every_parameter_at_its_default() -> None:
    found = read_params_file(ROOT / "config" / "perception.yaml")
    for spec in SPECS:
        assert found[spec.name] == spec.default and type(found[spec.name]) is type(spec.default), spec.name
    assert found["camera.transport"] == "raw"


def test_the_node_comes_before_the_wildcard_whatever_its_namespace(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(
        "/robot/perception: {ros__parameters: {seed: 4, prompt: {threshold: 0.25}}}\n"
        "/**: {ros__parameters: {seed: 3, max_missed: 9}}\n"
        "overlay: {ros__parameters: {max_rate: 1.0}}\n"
    )
    assert read_params_file(path) == {"seed": 4, "prompt.threshold": 0.25, "max_missed": 9}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("overlay: {ros__parameters: {max_rate: 1.0}}", "has nothing for perception, only for overlay"),
        (
            "{a/perception: {ros__parameters: {}}, b/perception: {ros__parameters: {}}}",
            "nodes: a/perception, b/perception",
        ),
        ("perception: {seed: 3}", "no parameter file"),
        ("seed", "no parameter file"),
        ("", "no parameter file"),
        ("[", "no parameter file"),
        (None, "no parameter file .FileNotFoundError"),
    ],
)
def test_what_is_no_parameter_file(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        read_params_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
