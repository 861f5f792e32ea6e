"""Subscriptions that live only while the outputs made from them are listened to; messages joined by their stamps."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

HELD = 30  # messages kept until their counterparts come: a second of a camera


def offered(node: Node, topic: str) -> ReliabilityPolicy | None:
    """What every publisher of the topic can be heard with; None while it has none."""
    found = {info.qos_profile.reliability for info in node.get_publishers_info_by_topic(node.resolve_topic_name(topic))}
    found -= {ReliabilityPolicy.UNKNOWN}
    if not found:
        return None
    reliable = found == {ReliabilityPolicy.RELIABLE}  # a reliable subscription hears no best-effort publisher
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


class OnDemand:
    """`check` is to be called now and then; it subscribes when somebody listens, and lets go when nobody does.

    A viewer may come before the camera: when publishers turn out to offer another reliability, it subscribes anew.
    """

    def __init__(
        self, node: Node, publishers: Sequence[Any], subscribe: Callable[..., list[Any]], sources: Sequence[str]
    ) -> None:
        """subscribe: makes the subscriptions, given a QoS for each of the `sources`, topics of other people's nodes."""
        self._node, self._publishers, self._subscribe = node, list(publishers), subscribe
        self._reliability = dict.fromkeys(sources, ReliabilityPolicy.BEST_EFFORT)  # which hears any publisher
        self._subscriptions: list[Any] = []

    def check(self) -> None:
        wanted = any(publisher.get_subscription_count() for publisher in self._publishers)
        reliability = self._reliability
        if wanted:
            reliability = {topic: offered(self._node, topic) or known for topic, known in reliability.items()}
        if self._subscriptions and (not wanted or reliability != self._reliability):
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []
        self._reliability = reliability
        if wanted and not self._subscriptions:
            qos = [QoSProfile(depth=2, reliability=policy) for policy in reliability.values()]
            self._subscriptions = self._subscribe(*qos)


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
