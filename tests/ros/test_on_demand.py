"""Subscriptions that follow their viewers and publishers, on a node that only notes what it is asked for."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from rclpy.qos import QoSProfile, ReliabilityPolicy

from ausm_ros.on_demand import OnDemand

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
