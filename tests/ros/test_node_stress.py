"""A flood of requests and a clock that jumps: images are processed as ever, every request is answered."""

import threading
import time
from collections.abc import Iterator

import pytest
from ausm_ros.srv import AddObjects, ListObjects
from diagnostic_msgs.msg import DiagnosticArray
from harness import Process, Robot, image_message, mask_prompt, next_stamp, perception, robot, square, wait_until
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from ausm_ros.messages import to_duration, to_ns, to_time
from ausm_ros.prompts import Code

SECOND = 10**9
NODE: list[Process] = []


@pytest.fixture(scope="module")
def friend() -> Iterator[Robot]:
    """A node on simulated time that keeps two seconds of history."""
    with perception("discovery:=false", "use_sim_time:=true", "prompt.history:=2.0") as node, robot() as made:
        NODE[:] = [node]
        made.wait_for_state("active")
        made.show()
        yield made
        assert "Traceback" not in node.output, node.output


def test_late_prompt_is_applied_at_its_stamp(friend: Robot) -> None:
    """An operator draws on an image that is five images old by the time the request arrives."""
    friend.reset()
    shown = [to_ns(friend.show().header.stamp) for _ in range(6)]
    answer = friend.add(mask_prompt(name="late"), stamp=shown[1], wait=60.0)
    assert answer.success and to_ns(answer.applied_stamp) == shown[1], answer
    [instance] = friend.show().instances
    assert instance.name == "late" and to_ns(instance.first_seen) == shown[1] and instance.age >= 5
    friend.reset()


def test_requests_that_wait_do_not_hold_up_images_or_each_other(friend: Robot) -> None:
    """30 requests wait for an image of the future: 8 may, the others are told so at once, and images go on."""
    client = friend.node.create_client(AddObjects, "/perception/add_objects", qos_profile=QoSProfile(depth=100))
    assert client.wait_for_service(timeout_sec=60)
    friend.settle()
    soon = to_time(to_ns(friend.show().header.stamp) + 2 * SECOND - 1)
    futures = []
    for _ in range(30):
        request = AddObjects.Request(prompts=[mask_prompt()], stamp=soon, wait=to_duration(60.0))
        futures.append(client.call_async(request))
    wait_until(lambda: sum(f.done() for f in futures) >= 22, "the answers to requests that found no place to wait")
    turned_away = [f.result().results[0] for f in futures if f.done()]
    assert {r.code for r in turned_away} == {Code.TOO_MANY}
    assert friend.objects().success  # others are served while eight wait
    before = len(friend.received["camera"])
    for _ in range(3):
        friend.show()
    assert len(friend.received["camera"]) >= before + 3
    assert friend.reset().success  # and this answers those that wait
    wait_until(lambda: all(f.done() for f in futures), "the answers to the others")
    codes = {f.result().results[0].code for f in futures}
    assert codes <= {Code.TOO_MANY, Code.STALE_STAMP}


def test_frames_come_through_a_flood(friend: Robot) -> None:
    """Thousands of requests, good and bad, as fast as they go, while images are shown."""
    client = friend.node.create_client(AddObjects, "/perception/add_objects", qos_profile=QoSProfile(depth=100))
    listing = friend.node.create_client(ListObjects, "/perception/list_objects", qos_profile=QoSProfile(depth=100))
    assert client.wait_for_service(timeout_sec=60) and listing.wait_for_service(timeout_sec=60)
    friend.settle()
    stop, answered = threading.Event(), [0]

    def count(_: object) -> None:
        answered[0] += 1

    def flood() -> None:
        sent = 0
        while not stop.is_set():
            request = AddObjects.Request(prompts=[mask_prompt(square(x=sent % 60), track_id=999)])
            client.call_async(request).add_done_callback(count)
            listing.call_async(ListObjects.Request()).add_done_callback(count)
            sent += 2
            while sent - answered[0] > 50 and not stop.is_set():
                time.sleep(0.001)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        for shown in range(400):
            if shown >= 20 and answered[0] > 50:
                break
            friend.show()
    finally:
        stop.set()
        thread.join()
    assert answered[0] > 50


def test_clock_that_goes_back_starts_an_epoch_once(friend: Robot) -> None:
    clock = friend.node.create_publisher(Clock, "/clock", QoSProfile(depth=10))
    wait_until(clock.get_subscription_count, "the node to listen to /clock")
    now = next_stamp()
    epoch = friend.show().epoch

    def tick(stamp: int) -> None:
        for _ in range(3):
            clock.publish(Clock(clock=to_time(stamp)))
            time.sleep(0.05)

    times: list[int] = []  # on the node's clock
    friend.listen(DiagnosticArray, "/diagnostics", lambda message: times.append(to_ns(message.header.stamp)))
    tick(now)

    def forward() -> bool:
        tick(now + SECOND)
        return now + SECOND in times

    wait_until(forward, "the node to go by /clock")
    assert friend.show().epoch == epoch  # forward is no jump
    tick(now - 50 * SECOND)

    def jumped() -> bool:
        tick(now - 50 * SECOND)
        return friend.objects().success and friend.show().epoch == epoch + 1

    wait_until(jumped, "a new epoch")
    back = now - 49 * SECOND
    friend.publish(image_message(back))  # the images go back too: it is the same jump
    time.sleep(0.2)
    last = friend.show(stamp=to_ns(friend.received["camera"][-1].header.stamp) + SECOND)
    assert last.epoch in (epoch + 1, epoch + 2)
    friend.node.destroy_publisher(clock)
