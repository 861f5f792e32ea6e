"""The values that a ROS 2 parameter file has for one node, read as the node reads them. No ROS import, no `ausm`.

For what runs the node's session without the node, and for the launch file, whose other nodes must agree with it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ausm_ros.parameters import BadParameter

KEY = "ros__parameters"
WILD = {"*": "/[^/]+", "**": "(/[^/]+)*"}  # one step of a node's name, any number of them


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain scalars as rcl takes them: 1e-3 is a float, 2020-01-01 and 1_000 are strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: a node takes no aliases")
        return super().compose_node(parent, index)


for _tag, _pattern in {
    "bool": "[yYnN]|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "int": "[-+]?(0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)",
    "float": r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "null": "~?",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)
_Loader.bool_values = yaml.SafeLoader.bool_values | {"y": True, "n": False}


def load_tree(path: Path) -> dict[str, Any]:
    """The file as nested dicts. Raises BadParameter with one line for one that cannot be read or names no nodes."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())  # YAML's take several lines
        raise BadParameter(f"{path}: no parameter file ({type(error).__name__}: {words})") from error
    entries = list(_entries(tree)) if isinstance(tree, dict) else []
    if not entries:
        raise BadParameter(f"{path}: no parameter file (no node's name with {KEY})")
    if wrong := [name for name, values in entries if not isinstance(values, dict)]:
        raise BadParameter(f"{path}: {KEY} of {', '.join(wrong)} are not names with values")
    return dict(tree)


def _entries(tree: dict[Any, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Full name of a node, maybe with wildcards, and its values, in the order of the file."""
    for key, entry in tree.items():
        name = f"{at}/{str(key).strip('/')}"
        if isinstance(entry, dict) and KEY in entry:
            yield name, {} if entry[KEY] is None else entry[KEY]
        elif isinstance(entry, dict):
            yield from _entries(entry, name)


def given_to(node: str, tree: dict[str, Any]) -> dict[str, Any]:
    """The values of a file, from `load_tree`, for a node (its full name), nested names joined by dots.

    Of two entries the later one wins, also where it is a wildcard.
    """
    values: dict[str, Any] = {}
    for name, entry in _entries(tree):
        if _means(name, node):
            values |= _flat(entry)
    return values


def _means(name: str, node: str) -> bool:
    """Whether a name with wildcards is that of a node."""
    steps = [WILD.get(step, "/" + re.escape(step)) for step in name.split("/")[1:]]
    return re.fullmatch("".join(steps), node) is not None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def read_params_file(path: Path, node: str = "perception") -> dict[str, Any]:
    """Parameter name -> value for the node of this name, in the namespace that the file itself has for it.

    Raises BadParameter for a file that cannot be read, has nothing for the node or is for several of them.
    """
    tree = load_tree(path)
    names = [name for name, _ in _entries(tree)]
    plain = list(dict.fromkeys(name for name in names if name.endswith(f"/{node}") and "*" not in name))
    if len(plain) > 1:
        raise BadParameter(f"{path}: is for several nodes: {', '.join(plain)}")
    full_name = plain[0] if plain else f"/{node}"
    if not any(_means(name, full_name) for name in names):
        raise BadParameter(f"{path}: has nothing for {node}, only for {', '.join(names)}")
    return given_to(full_name, tree)
