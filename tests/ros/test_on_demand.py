"""Subscriptions that follow their viewers and publishers, on a node that only notes what it is asked for."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from rclpy.qos import QoSProfile, ReliabilityPolicy

from ausm_ros.mailbox import QUEUE, Mailbox, Pending
from ausm_ros.on_demand import HELD, Held, OnDemand

BEST_EFFORT, RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE


class Graph:
    """A node that knows publishers by topic, and remembers the reliability of its subscriptions."""

    def __init__(self) -> None:
        self.publishers: dict[str, list[ReliabilityPolicy]] = {}
        self.viewers = 0
        self.live: list[Any] = []
        self.made = 0
        viewed: Any = SimpleNamespace(get_subscription_count=lambda: self.viewers)
        node: Any = self
        self.demand = OnDemand(node, [viewed], self._subscribe, ["camera/depth", "camera/camera_info"])

    def resolve_topic_name(self, topic: str) -> str:
        return f"/{topic}"

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        kinds = self.publishers.get(topic, [])
        return [SimpleNamespace(qos_profile=QoSProfile(depth=1, reliability=kind)) for kind in kinds]

    def destroy_subscription(self, subscription: Any) -> None:
        self.live.remove(subscription)

    def _subscribe(self, depth: QoSProfile, info: QoSProfile) -> list[Any]:
        self.made += 1
        self.live += [("depth", depth.reliability), ("info", info.reliability)]
        return list(self.live)


def test_a_camera_that_comes_after_the_viewer_is_heard() -> None:
    graph = Graph()
    graph.demand.check()
    assert graph.live == []  # nobody looks
    graph.viewers = 1
    graph.demand.check()
    assert graph.live == [("depth", BEST_EFFORT), ("info", BEST_EFFORT)]  # hears a camera of either kind
    graph.publishers["/camera/depth"] = [RELIABLE]
    graph.demand.check()
    assert graph.live == [("depth", RELIABLE), ("info", BEST_EFFORT)]
    graph.publishers["/camera/depth"] = []  # the driver starts again, with other settings
    graph.demand.check()
    assert graph.live == [("depth", RELIABLE), ("info", BEST_EFFORT)] and graph.made == 2
    graph.publishers["/camera/depth"] = [BEST_EFFORT]
    graph.demand.check()
    assert graph.live == [("depth", BEST_EFFORT), ("info", BEST_EFFORT)] and graph.made == 3


def test_one_best_effort_publisher_of_several_decides_and_nobody_looking_ends_it() -> None:
    graph = Graph()
    graph.viewers = 1
    graph.publishers["/camera/depth"] = [RELIABLE, BEST_EFFORT, ReliabilityPolicy.UNKNOWN]
    graph.publishers["/camera/camera_info"] = [RELIABLE, ReliabilityPolicy.UNKNOWN]
    for _ in range(3):
        graph.demand.check()
    assert graph.live == [("depth", BEST_EFFORT), ("info", RELIABLE)] and graph.made == 1
    graph.viewers = 0
    graph.demand.check()
    assert graph.live == []


@pytest.mark.parametrize(("size", "per_result"), [(QUEUE, 10), (QUEUE, 30), (1, 10)])
def test_a_model_slower_than_its_camera_still_finds_its_images(size: int, per_result: int) -> None:
    """Policies every and latest: `per_result` images come while one is processed."""
    mailbox, held, found, result = Mailbox(size), Held(), [], Pending("", 0, 0.0)
    for image in range(1, 400):
        held.put(image, f"image {image}")
        mailbox.put(Pending(f"image {image}", image, 0.0))
        if image % per_result == 0:
            if image > per_result:
                found.append(held.at(result.stamp) == result.message)
            taken = mailbox.take()
            assert taken is not None
            result = taken
    assert len(found) >= 12 and all(found)
    assert held.missed == 0 and held.complaint("an image") == ""


def test_what_no_later_result_can_ask_for_is_let_go() -> None:
    held = Held()
    for stamp in (100, 200, 300, 10, 20):  # time goes back
        held.put(stamp, str(stamp))
    assert held.at(205, tolerance=10) == "200" and held.at(200) == "200"  # asked for again
    assert held.at(100) is None and held.at(300) == "300"
    assert held.at(20) == "20" and held.at(10) is None
    for stamp in range(1000, 1000 + 2 * HELD):
        held.put(stamp, "")
    assert len(held._messages) == HELD


def test_results_that_find_no_image_are_told_of() -> None:
    held = Held()
    for stamp in range(HELD):
        assert held.at(stamp) is None
    assert held.complaint("an image on /a") == ""  # they may be of the time before the viewer came
    held.at(HELD)
    words = f"{HELD + 1} results in a row without an image on /a of their stamp (none has come)"
    assert held.complaint("an image on /a") == words
    held.put(HELD + 1, "image")
    held.at(HELD)
    assert "(the last 1 are kept)" in held.complaint("an image on /a")
    held.at(HELD + 1)
    assert held.complaint("an image on /a") == ""
