"""The values that a ROS 2 parameter file has for `perception_node`, for tools that run its session without the node."""

from pathlib import Path
from typing import Any

import yaml
from rclpy.parameter import parameter_dict_from_yaml_file, parameter_value_to_python

from ausm.errors import InputError
from ausm_ros.node_parameters import plain

NODE, ALL = "perception", "/**"


def read_params_file(path: Path) -> dict[str, Any]:
    """Parameter name -> value, those of `/**` below those of the node, whatever its namespace.

    Raises InputError for a file that cannot be read, has nothing for the node or is for several of them.
    """
    try:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict):
            raise InputError(f"{path}: no parameter file (no names of nodes)")
        keys = [str(key) for key in tree if str(key).strip("/").split("/")[-1] == NODE]
        if len(keys) > 1:
            raise InputError(f"{path}: is for several nodes: {', '.join(keys)}")
        if not keys and ALL not in tree:
            raise InputError(f"{path}: has nothing for {NODE}, only for {', '.join(map(str, tree)) or 'no node'}")
        # without a target the function takes every node's
        found = parameter_dict_from_yaml_file(str(path), use_wildcard=True, target_nodes=keys or [ALL])
    except (OSError, yaml.YAMLError, TypeError, AttributeError, RuntimeError) as error:
        words = " ".join(str(error).split())  # YAML's take several lines
        raise InputError(f"{path}: no parameter file ({type(error).__name__}: {words})") from error
    return {name: plain(parameter_value_to_python(message.value)) for name, message in found.items()}
