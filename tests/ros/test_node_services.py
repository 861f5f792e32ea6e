"""The node over DDS: what the services answer, and that the stream goes on after every bad request."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ausm_ros.msg import Instance, Prompt, Rle
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
from sensor_msgs.msg import Image, RegionOfInterest

from ausm_ros.messages import to_image, to_mask, to_ns, to_time
from ausm_ros.prompts import Code


@dataclass
class Running:
    node: Process
    robot: Robot


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with perception("discovery:=false", "capacity:=4") as node, robot() as friend:
        friend.wait_for_state("active")
        yield Running(node, friend)


@pytest.fixture
def camera(running: Running) -> Iterator[Robot]:
    """The running node with no objects, which has seen an image; afterwards it must still answer to the next one."""
    assert running.robot.reset().success
    running.robot.show()
    yield running.robot
    running.robot.show()
    assert "Traceback" not in running.node.output, running.node.output


def test_one_answer_per_image_at_its_stamp(camera: Robot) -> None:
    first, second = camera.show(), camera.show()
    for message in (first, second):
        assert message.header.frame_id == "camera_frame" and message.camera == "camera"
        assert (message.height, message.width) == SIZE
        assert list(message.instances) == []  # published although there is nothing
        assert to_ns(message.processing_time) >= to_ns(message.inference_time) > 0
    assert second.frame_index == first.frame_index + 1 and second.epoch == first.epoch


@pytest.mark.parametrize("kind", ["image", "rle", "png"])
def test_prompted_mask_is_there_at_the_applied_stamp(camera: Robot, kind: str) -> None:
    import cv2

    mask = square()
    if kind == "image":
        prompt = Prompt(type=Prompt.MASK_IMAGE, mask=to_image(image_message(1).header, mask.astype("uint8") * 255))
    elif kind == "rle":
        prompt = mask_prompt(mask)
    else:
        prompt = Prompt(type=Prompt.MASK_PNG)
        prompt.png.data = cv2.imencode(".png", mask.astype("uint8"))[1].tobytes()
    prompt.name = "cup"
    answer = camera.add_and_show(prompt)
    assert answer.success and answer.results[0].code == Code.OK, answer
    assert answer.results[0].iou_with_prompt == pytest.approx(1.0)
    message = camera.answer("camera", to_ns(answer.applied_stamp), 10)
    assert message is not None and message.epoch == answer.epoch
    [instance] = message.instances
    assert instance.track_id == answer.results[0].track_id and instance.name == "cup"
    assert instance.source == Instance.SOURCE_PROMPT and instance.state == Instance.STATE_TRACKED
    assert (to_mask(instance.mask, *SIZE) == mask).all()
    assert (instance.box.x_offset, instance.box.y_offset, instance.box.width, instance.area) == (20, 10, 30, 900)
    assert instance.first_seen == answer.applied_stamp == instance.last_seen


def test_id_lives_on_and_is_never_used_again(camera: Robot) -> None:
    first = camera.add_and_show(mask_prompt()).results[0].track_id
    for _ in range(3):
        assert [i.track_id for i in camera.show().instances] == [first]
    assert camera.remove(first).success
    [instance] = camera.show().instances
    assert (instance.track_id, instance.state, instance.area) == (first, Instance.STATE_REMOVED, 0)
    assert list(camera.show().instances) == []  # sent once
    second = camera.add_and_show(mask_prompt()).results[0].track_id
    assert second > first


def test_prompting_again_keeps_the_id(camera: Robot) -> None:
    track_id = camera.add_and_show(mask_prompt(name="cup")).results[0].track_id
    answer = camera.add_and_show(mask_prompt(square(x=5), track_id=track_id))
    assert answer.success and answer.results[0].track_id == track_id
    message = camera.answer("camera", to_ns(answer.applied_stamp), 10)
    assert message is not None
    [instance] = message.instances
    assert instance.name == "cup" and (to_mask(instance.mask, *SIZE) == square(x=5)).all()


def test_queued_prompt_is_applied_to_the_next_image(camera: Robot) -> None:
    answer = camera.add(mask_prompt(name="later"), wait=0.0)
    assert answer.success and answer.results[0].message == "queued" and to_ns(answer.applied_stamp) == 0
    assert [i.name for i in camera.show().instances] == ["later"]


def test_prompt_on_the_newest_image_needs_no_other(camera: Robot) -> None:
    stamp = to_ns(camera.show().header.stamp)
    answer = camera.add(mask_prompt(), stamp=stamp, wait=20.0)
    assert answer.success and to_ns(answer.applied_stamp) == stamp


def test_reset_starts_an_epoch_and_ids_from_one(camera: Robot) -> None:
    camera.add_and_show(mask_prompt())
    before = camera.show().epoch
    answer = camera.reset("camera")
    assert answer.success and answer.epoch == before + 1
    message = camera.show()
    assert message.epoch == before + 1 and message.frame_index == 0 and list(message.instances) == []
    assert camera.add_and_show(mask_prompt()).results[0].track_id == 1


def test_list_and_remove_all(camera: Robot) -> None:
    camera.add_and_show(mask_prompt(name="a"), mask_prompt(square(x=60), name="b"))
    camera.show()
    listed = camera.objects()
    assert listed.success and listed.capacity == 4 and listed.in_use == 2
    assert [o.name for o in listed.objects] == ["a", "b"] and all(o.mask == Rle() for o in listed.objects)
    answer = camera.remove(everything=True)
    assert answer.success and [r.code for r in answer.results] == [Code.OK] * 2
    assert camera.objects().in_use == 0


# --- refusals ---------------------------------------------------------------------------------------------------


def bad_size() -> Prompt:
    return Prompt(type=Prompt.MASK_IMAGE, mask=to_image(image_message(1).header, square(size=(32, 48)).astype("uint8")))


def short_data() -> Prompt:
    message = to_image(image_message(1).header, square().astype("uint8"))
    message.data = message.data[:-5]
    return Prompt(type=Prompt.MASK_IMAGE, mask=message)


def rle(width: int, height: int, runs: list[int], x: int = 0) -> Prompt:
    roi = RegionOfInterest(x_offset=x, width=width, height=height)
    return Prompt(type=Prompt.MASK_RLE, rle=Rle(roi=roi, runs=runs))


def png(data: bytes) -> Prompt:
    prompt = Prompt(type=Prompt.MASK_PNG)
    prompt.png.data = data
    return prompt


HUGE_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\0\0\0\0"

REFUSED = {
    "wrong size": (bad_size(), Code.WRONG_SIZE, ["32x48", "64x96"]),
    "size of a bomb": (png(HUGE_PNG), Code.WRONG_SIZE, ["2147483647x2147483647", "64x96"]),
    "encoding": (
        Prompt(mask=Image(height=64, width=96, step=288, encoding="rgb8", data=bytes(64 * 288))),
        Code.BAD_ENCODING,
        ["'rgb8'"],
    ),
    "file format": (png(b"not a picture"), Code.BAD_ENCODING, ["13 bytes"]),
    "empty mask": (mask_prompt(square() & False), Code.EMPTY_MASK, ["0 pixels"]),
    "short data": (short_data(), Code.INVALID_MASK, ["6139 bytes", "6144 expected"]),
    "runs that overflow": (rle(96, 64, [2**32 - 1] * 5), Code.INVALID_MASK, ["4294967295", "6144"]),
    "runs that do not fill": (rle(10, 10, [50, 49]), Code.INVALID_MASK, ["99", "100"]),
    "roi outside": (rle(2**32 - 1, 2**32 - 1, [1], x=5), Code.INVALID_MASK, ["96"]),
    "box outside": (
        Prompt(type=Prompt.BOX, box=RegionOfInterest(x_offset=90, width=10, height=10)),
        Code.INVALID_MASK,
        ["x=90 y=0", "64x96"],
    ),
    "point outside": (
        Prompt(type=Prompt.POINTS, point_x=[200], point_y=[5], point_labels=[1]),
        Code.INVALID_MASK,
        ["x=200 y=5"],
    ),
    "points of unequal number": (
        Prompt(type=Prompt.POINTS, point_x=[1, 2], point_y=[1]),
        Code.INVALID_MASK,
        ["2", "1"],
    ),
    "no point on the object": (
        Prompt(type=Prompt.POINTS, point_x=[20], point_y=[20], point_labels=[0]),
        Code.EMPTY_MASK,
        ["0 pixels"],
    ),
    "unknown type": (Prompt(type=77), Code.UNSUPPORTED_TYPE, ["77"]),
    "unknown id": (mask_prompt(track_id=999), Code.UNKNOWN_ID, ["999"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_prompt(camera: Robot, case: str) -> None:
    prompt, code, words = REFUSED[case]
    answer = camera.add(prompt)
    assert not answer.success
    [result] = answer.results
    assert result.code == code, result
    assert all(word in result.message for word in words), result.message
    assert result.track_id == 0 and result.iou_with_prompt != result.iou_with_prompt
    assert list(camera.show().instances) == []


def test_box_and_points_are_prompts_too(camera: Robot) -> None:
    box = Prompt(type=Prompt.BOX, name="box", box=RegionOfInterest(x_offset=4, y_offset=4, width=20, height=20))
    points = Prompt(type=Prompt.POINTS, name="dot", point_x=[70, 75], point_y=[40, 44], point_labels=[1, 1])
    answer = camera.add_and_show(box, points)
    assert answer.success, answer
    message = camera.answer("camera", to_ns(answer.applied_stamp), 10)
    assert message is not None
    found = {i.name: i for i in message.instances}
    assert found["box"].area and found["dot"].area  # of what shape is the model's affair


def test_unknown_camera(camera: Robot) -> None:
    for answer in (
        camera.add(mask_prompt(), camera="rear"),
        camera.remove(1, camera="rear"),
        camera.objects("rear"),
        camera.reset("rear"),
    ):
        assert not answer.success and answer.message.startswith("UNKNOWN_CAMERA") and "rear" in answer.message
    assert camera.add(mask_prompt(), camera="rear").results[0].code == Code.UNKNOWN_CAMERA


def test_no_image_yet(camera: Robot) -> None:
    camera.reset()
    answer = camera.add(mask_prompt())
    assert [r.code for r in answer.results] == [Code.NO_IMAGE]


def test_names_are_unique(camera: Robot) -> None:
    assert camera.add_and_show(mask_prompt(name="cup")).success
    camera.show()
    answer = camera.add(mask_prompt(square(x=60), name="cup"))
    assert answer.results[0].code == Code.DUPLICATE_NAME and "cup" in answer.results[0].message
    twice = camera.add(mask_prompt(name="dish"), mask_prompt(square(x=60), name="dish"))
    assert [r.code for r in twice.results] == [Code.OK, Code.DUPLICATE_NAME]


def test_capacity_and_too_many(camera: Robot) -> None:
    boxes = [
        Prompt(type=Prompt.BOX, box=RegionOfInterest(x_offset=20 * k, y_offset=5, width=15, height=40))
        for k in range(4)
    ]
    assert camera.add_and_show(*boxes).success
    camera.show()
    answer = camera.add(mask_prompt())
    assert answer.results[0].code == Code.CAPACITY_EXCEEDED and "capacity 4" in answer.results[0].message
    many = camera.add(*[mask_prompt()] * 3000)
    assert {r.code for r in many.results} == {Code.TOO_MANY} and "3000" in many.message


def test_all_or_nothing(camera: Robot) -> None:
    answer = camera.add(mask_prompt(), mask_prompt(track_id=44), atomic=True)
    assert [r.code for r in answer.results] == [Code.UNKNOWN_ID] * 2
    assert "results[1] was refused: no live object has id 44" in answer.results[0].message
    assert list(camera.show().instances) == []
    answer = camera.add_and_show(mask_prompt(), mask_prompt(track_id=44))
    assert [r.code for r in answer.results] == [Code.OK, Code.UNKNOWN_ID] and not answer.success
    assert len(camera.show().instances) == 1


def test_stale_stamps(camera: Robot) -> None:
    stamp = to_ns(camera.show().header.stamp)
    for away in (-60, 60):
        answer = camera.add(mask_prompt(), stamp=stamp + away * 10**9)
        assert answer.results[0].code == Code.STALE_STAMP and "60.000 s" in answer.results[0].message


def test_timeout_withdraws_the_prompt(camera: Robot) -> None:
    answer = camera.add(mask_prompt(), wait=0.2)
    assert answer.results[0].code == Code.TIMEOUT
    assert "0.20 s, withdrawn; camera camera: the last image came" in answer.results[0].message
    assert list(camera.show().instances) == []


def test_remove_unknown_id(camera: Robot) -> None:
    answer = camera.remove(5, 6)
    assert not answer.success and [r.code for r in answer.results] == [Code.UNKNOWN_ID] * 2


def test_disable_and_enable(camera: Robot) -> None:
    assert camera.switch("enable", False).success
    try:
        assert camera.add(mask_prompt()).results[0].code == Code.NOT_ACTIVE
        stamp = next_stamp()
        camera.publish(image_message(stamp))
        assert camera.answer("camera", stamp, 1.0) is None
    finally:
        assert camera.switch("enable", True).success
    assert camera.show().dropped >= 1


def test_unreadable_images_are_counted_once_logged(camera: Robot, running: Running) -> None:
    before = running.node.count("'h265'")

    def show_unreadable() -> bool:
        message = image_message(next_stamp())
        message.encoding = "h265"
        camera.publish(message)
        camera.pause(0.05)
        return running.node.count("'h265'") > 0

    wait_until(show_unreadable, "one line about the encoding")
    show_unreadable()
    short = image_message(next_stamp())
    short.data = short.data[:100]
    camera.publish(short)
    message = camera.show()
    assert message.dropped >= 1
    assert running.node.count("'h265'") == max(before, 1)


def test_stamp_zero_and_duplicates_are_dropped(camera: Robot, running: Running) -> None:
    stamp = to_ns(camera.show().header.stamp)
    seen = len(camera.received["camera"])

    def show_bad_stamps() -> bool:
        for bad in (stamp, stamp - 10**8, 0):  # only the newest waits in a queue, so each gets its time
            camera.publish(to_image(image_message(bad).header, scenery()))
            camera.pause(0.05)
        return running.node.count("stamp 0") > 0

    wait_until(show_bad_stamps, "one line about stamp 0")
    message = camera.show()
    assert len(camera.received["camera"]) == seen + 1 and message.dropped >= 1
    assert to_time(0) not in [m.header.stamp for m in camera.received["camera"]]
    assert running.node.count("stamp 0") == 1
