"""The lifecycle node inside this process: parameters that change while it is configured, and errors on activation."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import harness  # noqa: F401  (chooses the DDS domain)
import pytest
import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from ausm_ros import executor as executor_module
from ausm_ros import perception_node
from ausm_ros.executor import ServiceThreadsExecutor
from ausm_ros.perception_node import PerceptionNode
from ausm_ros.runtime import Runtime


class StandIn:
    """In place of `Runtime`: takes no time but for what the test does while it is made."""

    meanwhile: Callable[[], None]
    active = False

    def __init__(self, node: Any, settings: Any, *_: Any) -> None:
        self.settings, self.changes = settings, 0
        self.model_values: Any = {"configure_s": 0.0, "checkpoint": "none", "device": "cpu"}
        self.cameras: Any = {}
        StandIn.meanwhile()

    def change(self, settings: Any) -> None:
        self.settings = settings
        self.changes += 1

    def close(self) -> None:
        self.active = False

    def start(self) -> None:
        raise ValueError("qos override 'durabilty' is not known\nand more words")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[PerceptionNode]:
    monkeypatch.setattr(perception_node, "Runtime", StandIn)
    StandIn.meanwhile = staticmethod(lambda: None)
    if not rclpy.ok():  # robots of other files may have left the default context in use
        rclpy.init()
    made = PerceptionNode()
    yield made
    made.destroy_node()


def change(node: PerceptionNode, name: str, value: Any) -> tuple[bool, str]:
    result = node.set_parameters([Parameter(name, value=value)])[0]
    return bool(result.successful), str(result.reason)


def test_parameters_that_change_while_the_node_is_configured(node: PerceptionNode) -> None:
    results = []

    def meanwhile() -> None:
        results.append(change(node, "score_threshold", 0.75))
        results.append((not node._set_discovery(False), ""))
        results.append(change(node, "capacity", 7))

    StandIn.meanwhile = staticmethod(meanwhile)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert results[:2] == [(True, "")] * 2 and not results[2][0] and "unconfigured" in results[2][1]
    runtime: Any = node._runtime
    used = runtime.settings
    assert (used.score_threshold, used.discovery, used.capacity) == (0.75, False, 100)
    before = runtime.changes
    assert change(node, "max_missed", 9) == (True, "") and runtime.settings.max_missed == 9
    assert change(node, "max_missed", 0)[0] is False and runtime.changes == before + 1
    assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert change(node, "capacity", 7) == (True, "")


def test_a_capacity_beyond_the_model_is_a_warning_with_both_numbers(
    node: PerceptionNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception_node, "Runtime", Runtime)
    lines: list[str] = []
    log = SimpleNamespace(error=lines.append, warning=lines.append, info=lambda *_, **__: None)
    monkeypatch.setattr(node, "get_logger", lambda: log)
    small = {"checkpoint": "random:nano", "device": "cpu", "input_short_side": 64, "warmup_frames": 0}
    for name, value in (small | {"capacity": 150}).items():
        assert change(node, name, value) == (True, "")
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert lines == ["capacity 150 is more than the model has ID vectors: 100 objects at a time"]
    assert node._runtime is not None and node._runtime.find("").task.session.snapshot.capacity == 100
    assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS


def test_static_parameters_are_free_again_after_a_configure_that_failed(node: PerceptionNode) -> None:
    def fail() -> None:
        raise RuntimeError("no such device")

    StandIn.meanwhile = staticmethod(fail)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert change(node, "capacity", 7) == (True, "")


def test_an_error_on_activation_is_told(node: PerceptionNode, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    log = SimpleNamespace(error=lines.append, info=lambda _: None)
    monkeypatch.setattr(node, "get_logger", lambda: log)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    node.trigger_activate()
    assert lines == ["not activated, the node goes back to unconfigured: qos override 'durabilty' is not known"]
    assert node._runtime is None and node._error == lines[0]
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS  # so it is unconfigured


def test_giving_up_frees_a_node_that_an_operator_has_deactivated(node: PerceptionNode) -> None:
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node._runtime is not None
    node._give_up()  # the transition to inactive is not to be had any more
    assert node._runtime is None
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS  # so it is unconfigured


def test_what_another_thread_destroys_does_not_end_the_node(
    node: PerceptionNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclpy #1142: a transition destroys a subscription while the executor builds its set of what to wait for."""
    monkeypatch.setattr(executor_module, "_spinning", threading.local())  # else this thread would spin for good
    executor = ServiceThreadsExecutor()
    done: list[str] = []
    node.create_timer(0.0, lambda: done.append("timer"))
    executor.add_node(node)
    wait = executor._wait_for_ready_callbacks

    def gone(*arguments: Any, **options: Any) -> Iterator[Any]:
        monkeypatch.setattr(executor, "_wait_for_ready_callbacks", wait)
        raise rclpy_implementation.InvalidHandle("cannot use Destroyable because destruction was requested")
        yield

    monkeypatch.setattr(executor, "_wait_for_ready_callbacks", gone)
    executor.spin_once(1.0)
    assert not done
    for _ in range(20):
        executor.spin_once(1.0)
    assert done
    executor.shutdown()
