"""Subscriptions that live only while the outputs made from them are listened to; messages joined by their stamps."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from ausm_ros.mailbox import QUEUE

HELD = 2 * QUEUE  # messages kept for results to come: policy "every" has a queue, and more come while one is processed


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
    """The messages of a topic by their stamp [ns], at most `HELD`; those before one that was asked for are let go."""

    def __init__(self) -> None:
        self._messages: OrderedDict[int, Any] = OrderedDict()
        self.missed = 0  # in a row

    def put(self, stamp: int, message: Any) -> None:
        self._messages.pop(stamp, None)  # so that the order is that of arrival
        self._messages[stamp] = message
        while len(self._messages) > HELD:
            self._messages.popitem(last=False)

    def at(self, stamp: int, tolerance: int = 0) -> Any:
        """The message nearest to a stamp, None if it is further away than `tolerance`. Results come in order."""
        nearest = min(self._messages, key=lambda s: abs(s - stamp), default=None)
        if nearest is None or abs(nearest - stamp) > tolerance:
            self.missed += 1
            return None
        self.missed = 0
        while next(iter(self._messages)) != nearest:
            self._messages.popitem(last=False)
        return self._messages[nearest]

    def complaint(self, what: str) -> str:
        """What to tell of results that do not find their message; "" at first: a new viewer missed some images."""
        if self.missed <= HELD:
            return ""
        has = f"the last {len(self._messages)} are kept" if self._messages else "none has come"
        return f"{self.missed} results in a row without {what} of their stamp ({has})"
