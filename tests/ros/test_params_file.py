"""A node's parameters read from its file without the node: the values that the node itself has."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy

from ausm_ros.node_parameters import plain
from ausm_ros.parameters import SPECS, BadParameter
from ausm_ros.params_file import given_to, load_tree, read_params_file

ROOT = Path(__file__).parents[2]


def test_the_file_of_the_package_has_every_parameter_at_its_default() -> None:
    found = read_params_file(ROOT / "config" / "perception.yaml")
    for spec in SPECS:
        assert found[spec.name] == spec.default and type(found[spec.name]) is type(spec.default), spec.name
    assert found["camera.transport"] == "raw"


def of_the_node(path: Path, full_name: str) -> dict[str, Any]:
    """What rcl gives to a node that is started with the file."""
    namespace, _, name = full_name.rpartition("/")
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context, domain_id=98)
    try:
        node = rclpy.create_node(name, namespace=namespace, context=context)
        try:
            return {name: plain(p.value) for name, p in node._parameter_overrides.items()}
        finally:
            node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


@pytest.mark.parametrize(
    ("text", "full_name"),
    [
        ("/**: {K: {prompt: {min_area: 7}}}\nperception: {K: {prompt: {threshold: 0.2}}}", "/perception"),
        ("/robot/perception: {K: {seed: 4}}\n/**: {K: {seed: 3, max_missed: 9}}", "/robot/perception"),
        ("/**: {K: {seed: 3}}\nperception: {K: {seed: 4}}\noverlay: {K: {seed: 5}}", "/perception"),
        ("robot: {perception: {K: {seed: 2}}}", "/robot/perception"),
        ("/*: {K: {seed: 2}}", "/perception"),
        ("perception: {K: {seed: 2}}\n/perception: {K: {seed: 3}}", "/perception"),
        ("/**/perception: {K: {seed: 2, capacity: 9}}\n/r/perception: {K: {seed: 3}}", "/r/perception"),
        ("perception: {K: {prompt.min_area: 7, prompt: {threshold: 0.9}}}", "/perception"),
        ("perception: {K: {a: 1e-3, b: 0.00001, c: 1., d: .5, e: -2, f: 010, g: 0x1f}}", "/perception"),
        ("perception: {K: {a: 1_000, b: 2020-01-01, c: 1.5.2}}", "/perception"),
        ("perception: {K: {a: yes, b: Off, c: y, d: n, e: 'yes', f: '12', g: '1.5', h: null}}", "/perception"),
        ("perception: {K: {a: /data/w.safetensors, b: '/w #2', c: '/w: 2', d: '[x', e: 'größe'}}", "/perception"),
        ("perception: {K: {a: [480, 640], b: [a, b], c: ['1', '2'], d: [true, false], e: [0.5, 1.0]}}", "/perception"),
    ],
)  # fmt: skip
def test_the_values_are_those_of_the_node(text: str, full_name: str, tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(text.replace("K:", "ros__parameters:"), encoding="utf-8")
    found = read_params_file(path)
    expected = of_the_node(path, full_name)
    assert found == expected and len(expected) >= 1
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}
    assert given_to("/somebody/else", load_tree(path)) == of_the_node(path, "/somebody/else")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"overlay: {ros__parameters: {max_rate: 1.0}}", "has nothing for perception, only for /overlay"),
        (
            b"{a/perception: {ros__parameters: {}}, b/perception: {ros__parameters: {}}}",
            "nodes: /a/perception, /b/perception",
        ),
        (b"perception: {seed: 3}", "no parameter file"),
        (b"perception: {ros__parameters: abc}", "ros__parameters of /perception are not names with values"),
        (b"perception: {ros__parameters: [1, 2]}", "ros__parameters of /perception are not names with values"),
        (b"perception: &a {ros__parameters: *a}", "a node takes no aliases"),
        (b"perception: {ros__parameters: {checkpoint: gewicht\xe9}}", "no parameter file .UnicodeDecodeError"),
        (b"seed", "no parameter file"),
        (b"", "no parameter file"),
        (b"[", "no parameter file"),
        (None, "no parameter file .FileNotFoundError"),
    ],
)
def test_what_is_no_parameter_file(text: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(BadParameter, match=words) as refused:
        read_params_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
