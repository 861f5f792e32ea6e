"""A question whose answer is lost is asked again: it may be sent before client and service are connected."""

import math
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import harness
from ausm_ros.srv import Reset
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState

from ausm_ros import demo_player, prompt
from ausm_ros.ask import Question


class Deaf:
    """A client whose first answers, so many, never come."""

    srv_name = "/perception/get_state"

    def __init__(self, lost: int, answer: Any = None) -> None:
        self.lost, self.asked = lost, 0
        self.answer = answer or GetState.Response(current_state=State(label="active", id=3))

    def service_is_ready(self) -> bool:
        return True

    def wait_for_service(self, timeout_sec: float) -> bool:
        return timeout_sec > 0

    def call_async(self, _: Any) -> Future[Any]:
        self.asked += 1
        future: Future[Any] = Future()
        if self.asked > self.lost:
            future.set_result(self.answer)
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


def test_a_question_takes_the_first_answer_and_a_change_is_asked_for_once() -> None:
    late: list[Future[Any]] = []

    class Slow(Deaf):
        def call_async(self, _: Any) -> Future[Any]:
            late.append(Future())
            return late[-1]

    question = Question(Slow(0), GetState.Request(), again=0.0)
    assert question.poll() is None and len(late) == 1
    time.sleep(0.001)
    assert question.poll() is None and len(late) == 2
    late[0].set_result("the first")
    late[1].set_result("the second")
    assert question.poll() == question.poll() == "the first" and len(late) == 2
    once = Question(Deaf(5), GetState.Request(), again=math.inf)
    assert [once.poll() for _ in range(3)] == [None] * 3 and once._client.asked == 1


def operator(monkeypatch: pytest.MonkeyPatch, lost: int) -> tuple[prompt.Operator, list[Deaf]]:
    """An operator whose list_objects stays without its first answers, so many; and its clients, as they are made."""
    clients: list[Deaf] = []

    def create_client(kind: Any, name: str) -> Deaf:
        clients.append(Deaf(0 if kind is Reset else lost, kind.Response(success=True)))
        return clients[-1]

    monkeypatch.setattr(prompt, "ASK_AGAIN", 0.01)
    for spin in ("spin_once", "spin_until_future_complete"):
        monkeypatch.setattr(prompt.rclpy, spin, lambda *_, timeout_sec: time.sleep(0.1 * timeout_sec))
    node: Any = SimpleNamespace(create_client=create_client)
    return prompt.Operator(node, "/perception", 0.3), clients


def test_the_operator_asks_for_a_change_once_the_node_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asker, clients = operator(monkeypatch, lost=2)
    assert asker.reset("camera") == 0
    change, question = clients  # in this order: the question's answer says that the client before it is known, too
    assert question.asked == 3 and change.asked == 1
    asker, clients = operator(monkeypatch, lost=10**6)
    with pytest.raises(prompt.NoAnswer, match=r"gave no answer in 0\.3 s"):
        asker.reset("camera")
    assert clients[0].asked == 0  # nothing was changed in silence
