"""Plays a clip to the node as a camera would, at the clip's own rate, and prompts objects on one frame by service.

A process of its own (`ausm_ros.demo` starts it). Stamps are the time of publication, as a camera driver gives them. At
the prompt frame the clip holds until the node has answered: what is drawn on a picture is meant for that picture.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Duration
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ausm.io import Frame, open_frames
from ausm.masks import read_prompt_png
from ausm_ros.ask import Question
from ausm_ros.messages import to_image, to_ns, to_rle, to_time
from ausm_ros.msg import InstanceArray, Prompt
from ausm_ros.srv import AddObjects
from ausm_ros.transport import use_large_shared_memory

START_SECONDS = 120.0  # for the node to load and warm up
ASK_AGAIN = 5.0  # seconds until a question without an answer is put again
DRAIN_SECONDS = 60.0  # for the last image to be processed
PROMPT_SECONDS = 60.0  # for the prompt frame to be processed, then for the answer
FAILED_AFTER = 5.0  # seconds of UNCONFIGURED that mean configuring has failed


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why."""


@dataclass
class PlayerLog:
    """What was sent; stamps in ns."""

    stamps: list[int] = field(default_factory=list)  # of the frames, in order
    frames: list[int] = field(default_factory=list)  # their indices in the input
    late_ms: list[float] = field(default_factory=list)  # behind the clip's own rate
    pause_s: float = 0.0  # the hold at the prompt frame
    prompt: dict[str, Any] | None = None  # the answer of add_objects


class Player(Node):
    """One image publisher, one service client, and an ear for what the node has processed."""

    def __init__(self, camera: str, node: str) -> None:
        super().__init__("demo_player")
        reliable = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._images = self.create_publisher(Image, f"{camera}/image", reliable)
        self._state = self.create_client(GetState, f"{node}/get_state")
        self._add = self.create_client(AddObjects, f"{node}/add_objects")
        self.create_subscription(InstanceArray, f"{node}/{camera}/instances", self._processed, reliable)
        self._camera = camera
        self.processed = 0  # stamp of the newest processed image [ns]

    def _processed(self, message: InstanceArray) -> None:
        self.processed = to_ns(message.header.stamp)

    def wait_until(self, ready: Callable[[], object], seconds: float, what: str) -> None:
        """Raises DemoError naming `what` after that many seconds."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise DemoError(f"{what}: not within {seconds:.0f} s")
            rclpy.spin_once(self, timeout_sec=0.02)

    def call(self, client: Any, request: Any, seconds: float, what: str) -> Any:
        """The response of a service. Raises DemoError when there is none in time."""
        self.wait_until(client.service_is_ready, seconds, f"service {client.srv_name}")
        future = client.call_async(request)
        self.wait_until(future.done, seconds, what)
        return future.result()

    def ask_state(self) -> State:
        """The state of the node. Raises DemoError."""
        self.wait_until(self._state.service_is_ready, START_SECONDS, f"service {self._state.srv_name}")
        question = Question(self._state, GetState.Request(), ASK_AGAIN)
        self.wait_until(question.poll, START_SECONDS, "state of the node")
        return question.poll().current_state

    def wait_active(self) -> None:
        """Until the node is ACTIVE. Raises DemoError when it gives up configuring."""
        end, idle_since = time.monotonic() + START_SECONDS, None
        while True:
            state = self.ask_state()
            if state.id == State.PRIMARY_STATE_ACTIVE:
                return
            idle = state.id == State.PRIMARY_STATE_UNCONFIGURED
            idle_since = (idle_since or time.monotonic()) if idle else None
            if idle_since and time.monotonic() - idle_since > FAILED_AFTER:
                raise DemoError("the node could not be configured: see its message above")
            if time.monotonic() > end:
                raise DemoError(f"the node is {state.label} after {START_SECONDS:.0f} s, not active")
            time.sleep(0.1)

    def wait_listeners(self, names: set[str]) -> None:
        """Until the nodes of these names receive our images over the reliable connection that we offer."""

        def ready() -> bool:
            known = self.get_subscriptions_info_by_topic(self._images.topic_name)
            reliable = {i.node_name for i in known if i.qos_profile.reliability == ReliabilityPolicy.RELIABLE}
            return reliable >= names and self._images.get_subscription_count() >= len(names)

        self.wait_until(ready, 30.0, f"subscriptions of {', '.join(sorted(names))} to {self._images.topic_name}")

    def publish(self, frame: Frame) -> int:
        """Sends a frame; returns its stamp [ns]."""
        stamp = self.get_clock().now().nanoseconds
        self._images.publish(to_image(Header(stamp=to_time(stamp), frame_id=self._camera), frame.image))
        return stamp

    def prompt(self, prompts: list[Prompt], stamp: int) -> AddObjects.Response:
        """Once the image of that stamp is processed, shows its objects; returns the node's answer."""
        self.wait_until(lambda: self.processed >= stamp, PROMPT_SECONDS, "the prompt frame processed")
        request = AddObjects.Request(camera=self._camera, stamp=to_time(stamp), prompts=prompts, all_or_nothing=True)
        request.wait = Duration(sec=int(PROMPT_SECONDS))
        return self.call(self._add, request, PROMPT_SECONDS + 5, "answer to add_objects")


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt for each object of a mask PNG, named after the file. Raises AusmError."""
    masks, ids = read_prompt_png(path)
    names = [path.stem if len(ids) == 1 else f"{path.stem} {i}" for i in ids]
    return [Prompt(name=n, type=Prompt.MASK_RLE, rle=to_rle(m)) for n, m in zip(names, masks, strict=True)]


def play(player: Player, frames: Iterable[Frame], prompts: list[Prompt], prompt_frame: int, speed: float) -> PlayerLog:
    """Publishes the frames at their own rate times `speed`; prompts at the frame of that index."""
    log, start, first = PlayerLog(), 0.0, 0
    for frame in frames:
        if not log.stamps:
            start, first = time.monotonic(), frame.stamp_ns
        due = start + log.pause_s + (frame.stamp_ns - first) / 1e9 / speed
        while (left := due - time.monotonic()) > 0:
            rclpy.spin_once(player, timeout_sec=left)
        log.late_ms.append(1e3 * (time.monotonic() - due))
        log.stamps.append(player.publish(frame))
        log.frames.append(frame.index)
        if prompts and frame.index == prompt_frame:
            held = time.monotonic()
            answer = player.prompt(prompts, log.stamps[-1])
            log.pause_s += time.monotonic() - held
            results = [{"code": r.code, "message": r.message, "track_id": r.track_id} for r in answer.results]
            log.prompt = {"frame": frame.index, "stamp_ns": log.stamps[-1], "success": answer.success}
            log.prompt |= {
                "message": answer.message,
                "applied_stamp_ns": to_ns(answer.applied_stamp),
                "results": results,
            }
            if not answer.success:
                break
    return log


def main(argv: list[str] | None = None) -> int:
    """Plays, writes the log as JSON to --log; 1 when the node does not take part."""
    parser = argparse.ArgumentParser("demo_player", description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="video, folder of images or rosbag2")
    parser.add_argument("--topic", help="image topic of a rosbag2 that holds several")
    parser.add_argument("--start", type=int, default=0, help="index of the first frame")
    parser.add_argument("--frames", type=int, help="number of frames; all without")
    parser.add_argument("--speed", type=float, default=1.0, help="times the clip's own rate")
    parser.add_argument("--prompt", type=Path, help="mask PNG, of the size of the frames")
    parser.add_argument("--prompt-frame", type=int, default=0, help="index of the frame the mask is drawn on")
    parser.add_argument("--camera", default="camera")
    parser.add_argument("--node", default="/perception", help="full name of the perception node")
    parser.add_argument("--listeners", nargs="+", default=["perception"], help="nodes to wait for before playing")
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(argv)
    use_large_shared_memory()
    rclpy.init(args=[])
    try:
        player = Player(options.camera, options.node)
        player.wait_active()
        player.wait_listeners(set(options.listeners))
        stop = None if options.frames is None else options.start + options.frames
        frames = islice(open_frames(options.input, options.topic), options.start, stop)
        prompts = read_prompts(options.prompt) if options.prompt else []
        log = play(player, frames, prompts, options.prompt_frame, options.speed)
        if log.stamps:
            player.wait_until(lambda: player.processed >= log.stamps[-1], DRAIN_SECONDS, "the last image processed")
        options.log.write_text(json.dumps(dataclasses.asdict(log)))
    except (DemoError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
