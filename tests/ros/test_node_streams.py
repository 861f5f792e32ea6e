"""What comes in over DDS: encodings, JPEG and PNG, QoS, two cameras, jumps in time, sizes, parameters at run time."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from harness import (
    SIZE,
    Process,
    Robot,
    image_message,
    mask_prompt,
    next_stamp,
    perception,
    robot,
    scenery,
    square,
    wait_until,
)
from rcl_interfaces.msg import ParameterType
from sensor_msgs.msg import CompressedImage, Image

from ausm.image_encodings import SUPPORTED_ENCODINGS
from ausm_ros.messages import to_mask, to_ns, to_time
from ausm_ros.parameters import SPECS
from ausm_ros.prompts import Code

NODE: list[Process] = []
CAMERAS = ("front", "rear", "wire", "slow")


@pytest.fixture(scope="module")
def streams() -> Iterator[Robot]:
    """Four cameras: a reliable one, a best-effort one, a compressed one, one of large images."""
    parameters = (f"cameras:=[{','.join(CAMERAS)}]", "wire.transport:=compressed", "discovery:=false")
    with perception(*parameters) as node, robot(cameras=CAMERAS) as friend:
        NODE[:] = [node]
        friend.wait_for_state("active")
        friend.publisher("front", reliable=True)
        friend.publisher("rear", reliable=False)
        yield friend
        assert "Traceback" not in node.output, node.output


def raw_message(encoding: str, stamp: int) -> Image:
    """An image of any encoding with the right number of bytes."""
    height, width = SIZE
    depth = 2 if encoding.endswith("16") or encoding.startswith("16") else 1
    channels = 4 if "a8" in encoding or "a16" in encoding or encoding == "8UC4" else 3
    if encoding.startswith(("mono", "bayer", "8UC1", "16UC1", "nv")):
        channels = 1
    elif encoding.startswith("yuv") or encoding == "uyvy":
        channels = 2
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    step = width * channels * depth
    message = image_message(stamp)
    message.encoding, message.step = encoding, step
    message.data = np.random.default_rng(1).integers(0, 256, rows * step, np.uint8).tobytes()
    return message


@pytest.mark.parametrize("encoding", SUPPORTED_ENCODINGS)
def test_every_encoding(streams: Robot, encoding: str) -> None:
    stamp = next_stamp()
    streams.publish(raw_message(encoding, stamp), "front")
    answer = streams.answer("front", stamp, 30)
    assert answer is not None and (answer.height, answer.width) == SIZE


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_camera(streams: Robot, extension: str) -> None:
    publisher = streams.publisher("wire", CompressedImage, "/wire/image/compressed")

    def publish(data: bytes) -> int:
        message = CompressedImage(format=extension[1:], data=data)
        message.header.stamp = to_time(stamp := next_stamp())
        publisher.publish(message)
        return stamp

    def unreadable() -> bool:
        publish(b"not an image")
        return NODE[0].count("neither PNG nor JPEG") > 0 or streams.pause(0.05)

    wait_until(unreadable, "one line about the data")
    answer = streams.answer("wire", publish(cv2.imencode(extension, scenery())[1].tobytes()), 30)
    assert answer is not None and (answer.height, answer.width) == SIZE


def test_best_effort_camera_is_heard(streams: Robot) -> None:
    assert streams.show("rear").camera == "rear"


def test_cameras_share_nothing_but_the_weights(streams: Robot) -> None:
    streams.reset()
    streams.show("front"), streams.show("rear")
    front = streams.add_and_show(mask_prompt(name="cup"), camera="front")
    assert front.success and front.results[0].track_id == 1
    message = streams.show("rear")
    assert list(message.instances) == [] and streams.objects("rear").in_use == 0
    rear = streams.add_and_show(mask_prompt(name="cup"), camera="rear")  # a name is unique per camera only
    assert rear.success and rear.results[0].track_id == 1
    epochs = {camera: streams.show(camera).epoch for camera in ("front", "rear")}
    assert streams.reset("front").epoch == epochs["front"] + 1
    assert streams.show("rear").epoch == epochs["rear"] and streams.objects("rear").in_use == 1
    assert streams.objects("").message.startswith("UNKNOWN_CAMERA")  # which of the four?
    assert streams.reset("").success and streams.objects("rear").in_use == 0


def test_cameras_in_one_pass_keep_their_objects_apart(streams: Robot) -> None:
    """Images that arrive together: both answers have the time of the one pass, to the nanosecond."""
    streams.reset()
    for camera, x in (("front", 10), ("rear", 50)):
        streams.show(camera)
        assert streams.add_and_show(mask_prompt(square(x), name=camera), camera=camera).success
    slow = (900, 1200)  # an image that takes a while to copy and resize: meanwhile the others come to wait

    def together() -> bool:
        streams.publish(image_message(next_stamp(), slow), "slow")
        stamps = {camera: next_stamp() for camera in ("front", "rear")}
        for camera, stamp in stamps.items():
            streams.publish(image_message(stamp), camera)
        times = set()
        for camera, stamp in stamps.items():
            answer = streams.answer(camera, stamp, 3)
            if answer is None:  # best effort: lost
                return False
            assert answer.camera == camera and [instance.name for instance in answer.instances] == [camera]
            times.add((answer.inference_time.sec, answer.inference_time.nanosec))
        return len(times) == 1

    assert any(together() for _ in range(20))
    assert [streams.objects(camera).in_use for camera in ("front", "rear")] == [1, 1]
    streams.reset()


def test_bag_that_loops_starts_an_epoch(streams: Robot) -> None:
    before = streams.show("front")
    prompted = streams.add_and_show(mask_prompt(), camera="front")
    assert prompted.success
    after = streams.show("front", stamp=to_ns(before.header.stamp) - 30 * 10**9)
    assert after.epoch == before.epoch + 1 and after.frame_index == 0 and list(after.instances) == []
    onwards = streams.show("front", stamp=to_ns(after.header.stamp) + 10**8)
    assert onwards.epoch == after.epoch and onwards.frame_index == 1
    assert streams.set_parameter("on_time_jump", "continue") == (True, "")
    back = streams.show("front", stamp=to_ns(after.header.stamp) - 30 * 10**9)
    assert back.epoch == after.epoch and back.frame_index == 2
    assert streams.set_parameter("on_time_jump", "reset") == (True, "")


def test_gap_keeps_the_objects(streams: Robot) -> None:
    """A camera that was silent and is back: same epoch, same ids."""
    before = streams.show("front")
    after = streams.show("front", stamp=to_ns(before.header.stamp) + 40_000 * 10**9)
    assert after.epoch == before.epoch and after.frame_index == before.frame_index + 1
    streams.reset("front")


def test_size_change_starts_an_epoch_or_is_rejected(streams: Robot) -> None:
    before = streams.show("rear")
    other = streams.show("rear", size=(80, 64))
    assert other.epoch == before.epoch + 1 and (other.height, other.width) == (80, 64)
    stale = streams.add(mask_prompt(), camera="rear")  # the box fits, but so would not a mask with a size
    assert stale.results[0].code == Code.OK
    assert to_mask(streams.show("rear", size=(80, 64)).instances[0].mask, 80, 64).any()
    assert streams.set_parameter("on_size_change", "reject") == (True, "")

    def rejected() -> bool:
        streams.publish(image_message(next_stamp()), "rear")
        return NODE[0].count("image of 64x96 rejected, the stream has 80x64") > 0 or streams.pause(0.05)

    wait_until(rejected, "one line about the size")
    assert streams.show("rear", size=(80, 64)).epoch == other.epoch
    assert streams.set_parameter("on_size_change", "reset") == (True, "")
    assert streams.show("rear").epoch == other.epoch + 1


def test_discovery_is_one_switch(streams: Robot) -> None:
    assert streams.switch("discovery", True).success and streams.get_parameter("discovery") is True
    assert streams.set_parameter("discovery", False) == (True, "")
    assert streams.switch("discovery", False).success and streams.get_parameter("discovery") is False


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("score_threshold", 2.0, "score_threshold"),
        ("score_threshold", "much", "float"),
        ("birth_hits", 0, "birth_hits"),
        ("on_time_jump", "explode", "reset, continue"),
        ("checkpoint", "other", "unconfigured"),
        ("capacity", 3, "unconfigured"),
        ("front.reliability", "reliable", "unconfigured"),
    ],
)
def test_refused_parameters_say_why(streams: Robot, name: str, value: object, words: str) -> None:
    before = streams.get_parameter(name)
    done, reason = streams.set_parameter(name, value)
    assert not done and words in reason, reason
    assert streams.get_parameter(name) == before


def test_dynamic_parameters_and_their_descriptors(streams: Robot) -> None:
    changes = {"score_threshold": 0.25, "prompt.threshold": 0.3, "max_missed": 7, "dedupe_iou": 1.0, "birth_hits": 2}
    changes |= {"part_gap": 24}
    for name, value in changes.items():
        assert streams.set_parameter(name, value) == (True, ""), name
    assert streams.show("front").height == SIZE[0]
    assert streams.set_parameter("max_rate", 5) == (True, "")  # a whole number does
    assert streams.set_parameter("max_rate", 0.0) == (True, "")
    descriptors = streams.describe(*[spec.name for spec in SPECS])
    assert all(d.description for d in descriptors)
    ranges = {d.name: d.floating_point_range for d in descriptors}
    assert ranges["score_threshold"][0].to_value == 1.0
    assert {d.name: d.type for d in descriptors}["capacity"] == ParameterType.PARAMETER_INTEGER


def test_label_map_and_overlay_only_for_listeners(streams: Robot) -> None:
    streams.reset("front")
    streams.show("front")
    prompted = streams.add_and_show(mask_prompt(), camera="front")
    received: dict[str, list[Image]] = {"label_map": [], "overlay": []}
    subscriptions = [
        streams.listen(Image, f"/perception/front/{name}", images.append) for name, images in received.items()
    ]
    label = prompted.results[0].track_id

    def drawn() -> bool:
        streams.show("front")
        return all(received.values())

    wait_until(drawn, "label map and overlay")
    for subscription in subscriptions:
        streams.node.destroy_subscription(subscription)
    labels, overlay = received["label_map"][0], received["overlay"][0]
    assert labels.encoding == "mono16" and overlay.encoding == "rgb8"
    assert (labels.height, labels.width) == (overlay.height, overlay.width) == SIZE
    [message] = [m for m in streams.received["front"] if m.header.stamp == labels.header.stamp]
    pixels = np.frombuffer(labels.data, np.uint16).reshape(SIZE)
    mask = to_mask(message.instances[0].mask, *SIZE) if message.instances[0].area else np.zeros(SIZE, bool)
    np.testing.assert_array_equal(pixels == label, mask)


def test_diagnostics_tell_rates_drops_and_memory(streams: Robot) -> None:
    arrays: list[DiagnosticArray] = []
    subscription = streams.listen(DiagnosticArray, "/diagnostics", arrays.append)
    streams.show("front")
    wait_until(lambda: arrays, "diagnostics")
    streams.node.destroy_subscription(subscription)
    found = {s.name.split("ausm: ")[1]: s for s in arrays[-1].status}
    kinds = [f"{camera} {kind}" for camera in CAMERAS for kind in ("stream", "inference", "objects")]
    assert set(found) == {*kinds, "memory", "model"}
    stream = {v.key: v.value for v in found["front stream"].values}
    assert int(stream["received"]) > 20 and int(stream["zero_stamp"]) == 0 and stream["topic"] == "/front/image"
    assert {v.key: v.value for v in found["rear stream"].values}["reliability"] == "best_effort"
    memory = {v.key: int(v.value) for v in found["memory"].values}
    assert memory["rss_bytes"] > 10**7 and memory["state_bytes"] > 0
    assert found["wire inference"].level == DiagnosticStatus.OK
    model = {v.key: v.value for v in found["model"].values}
    assert model["checkpoint"] == "random:nano" and model["device"] == "cpu"
