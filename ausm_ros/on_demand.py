"""Subscriptions that live only while the outputs made from them are listened to; messages joined by their stamps."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

HELD = 30  # messages kept until their counterparts come: a second of a camera


def as_offered(node: Node, topic: str, depth: int = 2) -> QoSProfile:
    """Reliable, unless a publisher of the topic offers only best effort."""
    offered = node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    best_effort = any(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in offered)
    policy = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
    return QoSProfile(depth=depth, reliability=policy)


class OnDemand:
    """`check` is to be called now and then; it subscribes when somebody listens, and lets go when nobody does."""

    def __init__(self, node: Node, publishers: Sequence[Any], subscribe: Callable[[], list[Any]]) -> None:
        """subscribe: makes the subscriptions."""
        self._node, self._publishers, self._subscribe = node, list(publishers), subscribe
        self._subscriptions: list[Any] = []

    def check(self) -> None:
        wanted = any(publisher.get_subscription_count() for publisher in self._publishers)
        if wanted and not self._subscriptions:
            self._subscriptions = self._subscribe()
        elif not wanted and self._subscriptions:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []


class Held:
    """The last `HELD` messages of a topic by their stamp [ns]."""

    def __init__(self) -> None:
        self._messages: OrderedDict[int, Any] = OrderedDict()

    def put(self, stamp: int, message: Any) -> None:
        self._messages[stamp] = message
        while len(self._messages) > HELD:
            self._messages.popitem(last=False)

    def at(self, stamp: int, tolerance: int = 0) -> Any:
        """The message nearest to a stamp, None if it is further away than `tolerance`."""
        if not self._messages:
            return None
        nearest = min(self._messages, key=lambda s: abs(s - stamp))
        return self._messages[nearest] if abs(nearest - stamp) <= tolerance else None
