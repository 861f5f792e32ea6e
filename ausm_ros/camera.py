"""The ROS side of one camera: a subscription as reliable as its publisher, and a callback that keeps the newest."""

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions, QoSPolicyKind
from sensor_msgs.msg import CompressedImage, Image

from ausm_ros.counts import CameraCounts
from ausm_ros.mailbox import Mailbox, Pending
from ausm_ros.messages import to_ns
from ausm_ros.on_demand import offered
from ausm_ros.parameters import CameraSettings, Settings
from ausm_ros.timing import SECOND, StampGate, Verdict

# Reliability is left to `<camera>.reliability`: an override is fixed at the first subscription, `auto` subscribes anew.
OVERRIDABLE = QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.DURABILITY))

PATIENCE, REPEAT = 5.0, 60.0  # seconds without a first image until that is said, and until it is said again
SAME_JUMP = 2.0  # seconds within which the clock and the stamps tell of one and the same jump


class Camera:
    """Receives one camera's images. The callback only looks at the stamp and stores the message; it never blocks."""

    def __init__(
        self,
        node: Node,
        camera: CameraSettings,
        mailbox: Mailbox,
        counts: CameraCounts,
        notify: Callable[[], None],
        settings: Callable[[], Settings],
        log_error: Callable[[str, str], None],
    ) -> None:
        """notify: wakes the worker; settings: the present values; log_error(kind, text): one line per kind of error."""
        self.camera = camera
        self.enabled = True
        self._node, self._mailbox, self._counts = node, mailbox, counts
        self._notify, self._settings, self._log_error = notify, settings, log_error
        self._gate = StampGate()
        self._subscription: Any = None
        self._changing = threading.RLock()  # transitions come from other threads than `follow_publisher`
        self._jumped = 0.0  # time.monotonic() of the last jump back in time
        self._reliability = ReliabilityPolicy.BEST_EFFORT
        self._zero_told = False
        self._since = self._tell_at = 0.0  # time.monotonic() of `subscribe`, and of the next word about silence

    @property
    def topic(self) -> str:
        """The full name of the topic, remapped."""
        return str(self._node.resolve_topic_name(self.camera.topic))

    @property
    def reliability(self) -> str:
        return self._reliability.name.lower()

    def subscribe(self) -> None:
        """Starts to receive, with a fresh memory of stamps."""
        with self._changing:
            self._gate = StampGate()
            self._since = time.monotonic()
            self._tell_at = self._since + PATIENCE
            self._reliability = self._wanted() or ReliabilityPolicy.BEST_EFFORT
            self._create()

    def unsubscribe(self) -> None:
        with self._changing:
            if self._subscription is not None:
                self._node.destroy_subscription(self._subscription)
                self._subscription = None

    def follow_publisher(self) -> None:
        """Called now and then: subscribes anew when the publisher's reliability turns out to be another."""
        wanted = self._wanted()
        with self._changing:
            if self._subscription is None or wanted is None or wanted == self._reliability:
                return
            self.unsubscribe()
            self._reliability = wanted
            self._create()
            self._node.get_logger().info(f"{self.topic}: subscribed {self.reliability}, as its publisher offers")

    def tell_silence(self) -> None:
        """Called now and then: a warning when not one image has come for some seconds; again after a minute."""
        now = time.monotonic()
        if self._counts.last_received >= self._since or now < self._tell_at or self._subscription is None:
            return
        self._tell_at = now + REPEAT
        number = self._node.count_publishers(self.topic)
        hint = f"-r {self.camera.topic}:=TOPIC names another"
        if number:
            hint = "see 'When images do not arrive' in docs/ros.md"
        self._node.get_logger().warning(f"no image on {self.topic} yet; it has {number} publishers ({hint})")

    def _wanted(self) -> ReliabilityPolicy | None:
        """The reliability to use; None when it depends on a publisher that is not there yet."""
        if self.camera.reliability != "auto":
            return ReliabilityPolicy[self.camera.reliability.upper()]
        return offered(self._node, self.topic)

    def _create(self) -> None:
        every = self._settings().policy == "every"
        self._subscription = self._node.create_subscription(
            CompressedImage if self.camera.transport == "compressed" else Image,
            self.camera.topic,
            self.receive,
            QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=32 if every else 1, reliability=self._reliability),
            callback_group=MutuallyExclusiveCallbackGroup(),  # one that died with an old subscription may stay taken
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=OVERRIDABLE,
        )

    def _on_incompatible(self, event: Any) -> None:
        self._counts.count("incompatible_qos")
        text = f"a publisher of {self.topic} offers an incompatible QoS (policy {event.last_policy_kind})"
        self._log_error("incompatible_qos", text)

    def clock_jumped(self) -> bool:
        """The node's clock went back: forget the stamps. False if the images have told already."""
        now = time.monotonic()
        if now - self._jumped < SAME_JUMP:
            return False
        self._jumped, self._gate = now, StampGate()
        return True

    def _tell_zero_stamp(self) -> None:
        """One warning: a driver that leaves the stamp out does so in every image, and /diagnostics counts them."""
        text = "image with stamp 0 dropped: its masks could not be matched to it"
        self._counts.tell_error(text)
        if not self._zero_told:
            self._zero_told = True
            self._node.get_logger().warning(f"{self.camera.name}: {text} (said once)")

    def receive(self, message: Any) -> None:
        """Stores the message for the worker, or drops and counts it."""
        received = time.monotonic()
        self._counts.receive(message.format if hasattr(message, "format") else message.encoding)
        if not self.enabled:
            self._counts.drop("disabled")
            return
        settings = self._settings()
        now = self._node.get_clock().now().nanoseconds if settings.max_image_age else 0
        period = round(SECOND / settings.max_rate) if settings.max_rate else 0
        stamp = to_ns(message.header.stamp)
        verdict = self._gate.check(stamp, now, round(settings.max_image_age * SECOND), period)
        if verdict is Verdict.ZERO:
            self._tell_zero_stamp()
        if verdict not in (Verdict.ACCEPT, Verdict.JUMP):
            self._counts.drop(verdict.value)
            return
        if verdict is Verdict.JUMP:
            self._jumped = received
        displaced = self._mailbox.put(Pending(message, stamp, received, verdict is Verdict.JUMP))
        if displaced:
            self._counts.drop("replaced", displaced)
        self._notify()
