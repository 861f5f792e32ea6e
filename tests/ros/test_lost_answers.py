"""A question whose answer is lost is asked again: it may be sent before client and service are connected."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import harness
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState

from ausm_ros import demo_player


class Deaf:
    """A client whose first answers, so many, never come."""

    srv_name = "/perception/get_state"

    def __init__(self, lost: int) -> None:
        self.lost, self.asked = lost, 0

    def service_is_ready(self) -> bool:
        return True

    def wait_for_service(self, timeout_sec: float) -> bool:
        return timeout_sec > 0

    def call_async(self, _: Any) -> Future[Any]:
        self.asked += 1
        future: Future[Any] = Future()
        if self.asked > self.lost:
            future.set_result(GetState.Response(current_state=State(label="active", id=3)))
        return future


def test_the_harness_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ASK_AGAIN", 0.05)
    client = Deaf(2)
    friend = harness.Robot.__new__(harness.Robot)
    friend.target, friend._clients = "/perception", {"/perception/get_state": client}
    assert friend.state() == "active" and client.asked == 3
    client.asked = 0
    with pytest.raises(AssertionError, match="waited 0 s for an answer of get_state"):  # a change is asked for once
        friend.call(GetState, "get_state", GetState.Request(), patience=0.3)
    assert client.asked == 1


def test_the_demo_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_player, "ASK_AGAIN", 0.05)
    player: Any = SimpleNamespace(_state=Deaf(2))
    player.wait_until = lambda ready, *_: harness.wait_until(ready, "the condition", 5.0)
    assert demo_player.Player.ask_state(player).label == "active" and player._state.asked == 3
