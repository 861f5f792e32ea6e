"""The tables of `ausm_ros.parameters` as parameters of a node: every node declares and refuses in the same way."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from ausm_ros.parameters import BadParameter, Spec, check_value


def descriptor(spec: Spec, when_fixed: str) -> ParameterDescriptor:
    """What `ros2 param describe` shows. Types are checked by `check_value`, which takes 10 where 10.0 is meant.

    when_fixed: the sentence for one that is not dynamic.
    """
    words = spec.description if spec.dynamic else f"{spec.description} {when_fixed}"
    result = ParameterDescriptor(name=spec.name, description=words, dynamic_typing=True)
    if spec.choices:
        result.additional_constraints = f"one of: {', '.join(spec.choices)}"
    if spec.low is not None and spec.high is not None and isinstance(spec.default, float):
        result.floating_point_range = [FloatingPointRange(from_value=float(spec.low), to_value=float(spec.high))]
    elif spec.low is not None and spec.high is not None:
        result.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high))]
    return result


def plain(value: Any) -> Any:
    """rclpy's value of a parameter; lists of numbers come as arrays."""
    return list(value) if hasattr(value, "typecode") else value


def declare(node: Node, spec: Spec, when_fixed: str) -> None:
    """As `declare_parameter`. Raises `BadParameter` for a value given at the start that is out of range."""
    try:
        node.declare_parameter(spec.name, spec.default, descriptor(spec, when_fixed))
    except InvalidParameterValueException as error:
        check_value(spec, node._parameter_overrides[spec.name].value)  # says it in fewer words
        raise BadParameter(f"{spec.name}: {error}") from error


def declare_checked(
    node: Node, specs: Iterable[Spec], together: Callable[[dict[str, Any]], None] = lambda values: None
) -> dict[str, Any]:
    """Declares the parameters of a node without lifecycle; returns their values, in the types of the specs.

    From then on those that are dynamic may change, within their ranges. together: raises `BadParameter` for values that
    do not go with each other. Raises `BadParameter`.
    """
    by_name = {spec.name: spec for spec in specs}
    values = {}
    for name, spec in by_name.items():
        declare(node, spec, "Read when the node starts.")
        values[name] = check_value(spec, plain(node.get_parameter(name).value))
    together(values)
    node.add_on_set_parameters_callback(partial(_check_changes, node, by_name, together))
    return values


def _check_changes(
    node: Node, specs: dict[str, Spec], together: Callable[[dict[str, Any]], None], parameters: list[Parameter]
) -> SetParametersResult:
    values = {name: plain(node.get_parameter(name).value) for name in specs}
    try:
        for parameter in parameters:
            if spec := specs.get(parameter.name):
                if not spec.dynamic:
                    raise BadParameter(f"{spec.name} is read when the node starts, start it anew to change it")
                values[spec.name] = check_value(spec, plain(parameter.value))
        together(values)
    except BadParameter as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)
