"""Results as messages: what a subscriber reads back is what the model said. No node, no DDS."""

import math
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Instance, Prompt, PromptResult, Rle
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ausm.errors import AusmError
from ausm.tracks import Source, Track, TrackState
from ausm_ros.messages import (
    label_value,
    rgb_of,
    to_drawn,
    to_duration,
    to_image,
    to_instance,
    to_instance_array,
    to_label_map,
    to_mask,
    to_ns,
    to_png,
    to_result,
    to_rle,
    to_time,
)
from ausm_ros.optional_outputs import to_annotations, to_detections, to_label_info
from ausm_ros.prompts import Code, ObjectPrompt, Outcome, PromptType
from ausm_ros.session import Session, Sighting
from ausm_ros.worker import Report
from bench.scripted_stream import ScriptedStream

H, W = 40, 60


def masks() -> list[np.ndarray]:
    first, second = np.zeros((2, H, W), np.bool_)
    first[5:20, 10:30] = True
    second[15:30, 25:50] = True
    return [first, second]


def report() -> Report:
    """One processed image with two overlapping prompted objects, the second one surer, and a lost one."""
    session = Session(ScriptedStream)
    session.new_epoch()
    session.see(H, W, 5_000_000_007)
    session.step(np.zeros((H, W, 3), np.uint8), 5_000_000_007)
    session.prompt([ObjectPrompt(m, 0, name) for m, name in zip(masks(), ("cup", ""), strict=True)], atomic=True)
    stream: Any = session.stream
    stream._tracks[2] = stream._tracks[2]._replace(score=0.95)
    lost = stream._tracks[1]._replace(
        track_id=3, mask=masks()[0] & False, state=TrackState.LOST, frames_since_seen=4, source=Source.DISCOVERED
    )
    stream._tracks[3] = lost
    header = Header(stamp=to_time(5_000_000_007), frame_id="lens")
    image = to_image(header, np.zeros((H, W, 3), np.uint8))
    snapshot = session.snapshot._replace(tracks=tuple(stream._tracks.values()))
    return Report(image, rgb_of(image), stream._output(), snapshot, 3, 1.0, 0.25, 0.125)


def test_times() -> None:
    for ns in (0, 1, 999_999_999, 10**9, 1_795_245_962_883_000_184):
        assert to_ns(to_time(ns)) == ns
    assert to_ns(to_duration(1.5)) == 1_500_000_000 and to_time(10**9 + 5) == Time(sec=1, nanosec=5)


def test_instance_array_carries_everything() -> None:
    message = to_instance_array(report(), "front", 0.5)
    assert to_ns(message.header.stamp) == 5_000_000_007 and message.header.frame_id == "lens"
    assert (message.camera, message.height, message.width, message.dropped) == ("front", H, W, 3)
    assert (message.epoch, message.frame_index) == (1, 0)
    durations = [to_ns(d) / 1e9 for d in (message.queue_time, message.inference_time, message.processing_time)]
    assert durations == [0.25, 0.125, 0.5]
    cup, second, lost = message.instances
    assert (cup.track_id, cup.name, cup.source, cup.state) == (1, "cup", Instance.SOURCE_PROMPT, Instance.STATE_TRACKED)
    assert (cup.class_id, cup.label_value, cup.area) == (-1, 1, 300)
    assert (cup.box.x_offset, cup.box.y_offset, cup.box.width, cup.box.height) == (10, 5, 20, 15)
    assert cup.score == pytest.approx(0.9) and to_ns(cup.first_seen) == to_ns(cup.last_seen) == 5_000_000_007
    for instance, mask in zip((cup, second), masks(), strict=True):
        np.testing.assert_array_equal(to_mask(instance.mask, H, W), mask)
    assert lost.state == Instance.STATE_LOST and lost.mask == Rle() and lost.area == 0 and lost.label_value == 0
    assert lost.frames_since_seen == 4


def test_list_form_leaves_the_mask_out_but_not_its_box() -> None:
    track = report().output.tracks[0]
    instance = to_instance(track, Sighting(1, 2), with_mask=False)
    assert instance.mask == Rle() and instance.area == 300 and instance.box.width == 20


def test_label_map_gives_overlap_to_the_higher_score() -> None:
    message = to_label_map(report())
    assert message.encoding == "mono16" and message.step == 2 * W
    labels = np.frombuffer(message.data, np.uint16).reshape(H, W)
    first, second = masks()
    np.testing.assert_array_equal(labels == 2, second)
    np.testing.assert_array_equal(labels == 1, first & ~second)


def test_label_values_stay_within_16_bits() -> None:
    track = report().output.tracks[0]
    assert label_value(track._replace(track_id=65535)) == 65535 and label_value(track._replace(track_id=65536)) == 1


def test_images_and_masks_round_trip() -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (H, W, 3), np.uint8),
        rng.integers(0, 256, (H, W), np.uint8),
        rng.integers(0, 65536, (H, W), np.uint16),
    ):
        message = to_image(Header(), pixels)
        assert len(message.data) == message.step * H
        np.testing.assert_array_equal(np.frombuffer(message.data, pixels.dtype).reshape(pixels.shape), pixels)
    np.testing.assert_array_equal(rgb_of(to_image(Header(), rng.integers(0, 256, (H, W), np.uint8))).shape, (H, W, 3))
    mask = rng.random((H, W)) > 0.5
    np.testing.assert_array_equal(to_mask(to_rle(mask), H, W), mask)
    png = cv2.imdecode(np.frombuffer(to_png(mask).data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(png > 0, mask)


def test_drawn_objects_of_a_received_message() -> None:
    message = to_instance_array(report(), "front", 0.5)
    drawn = to_drawn(message.instances, H, W)
    assert [d.track_id for d in drawn] == [1, 2] and drawn[0].name == "cup"
    with pytest.raises(AusmError):
        to_drawn(message.instances, H // 4, W // 4)  # an image of another size


def test_constants_agree_with_the_message_files() -> None:
    for code in Code:
        assert getattr(PromptResult, code.name) == code
    for kind in PromptType:
        assert getattr(Prompt, kind.name) == kind
    for state in TrackState:
        assert getattr(Instance, f"STATE_{state.name}") == state
    for source in Source:
        assert getattr(Instance, f"SOURCE_{source.name}") == source
    result = to_result(Outcome(Code.TIMEOUT, "late"))
    assert (result.code, result.message, result.track_id) == (14, "late", 0) and math.isnan(result.iou_with_prompt)


def test_vision_msgs() -> None:
    vision = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")
    message = to_detections(vision, report())
    assert [d.id for d in message.detections] == ["1", "2"] and message.header.frame_id == "lens"
    box = message.detections[0].bbox
    assert (box.center.position.x, box.center.position.y, box.size_x, box.size_y) == (20.0, 12.5, 20.0, 15.0)
    [result] = message.detections[0].results
    assert result.hypothesis.class_id == "cup" and result.hypothesis.score == pytest.approx(0.9)
    info = to_label_info(vision, report(), 0.5)
    assert [(c.class_id, c.class_name) for c in info.class_map] == [(1, "cup"), (2, "object 2")]


def test_foxglove_msgs() -> None:
    foxglove = pytest.importorskip("foxglove_msgs.msg", reason="foxglove_msgs is not installed")
    message = to_annotations(foxglove, report())
    assert [t.text for t in message.texts] == ["1 cup", "2"]
    first = message.points[0]
    assert first.type == foxglove.PointsAnnotation.LINE_LOOP and first.timestamp == to_time(5_000_000_007)
    corners = {(p.x, p.y) for p in first.points}
    assert corners == {(10.5, 5.5), (10.5, 19.5), (29.5, 19.5), (29.5, 5.5)}


def test_unused_track_fields_do_not_break_a_message() -> None:
    track = Track(9, np.zeros((H, W), bool), 0.1, 3, "dog", 0.7, TrackState.REMOVED, Source.DISCOVERED, "", 0, 5, 9, 4)
    instance = to_instance(track, None)
    assert (instance.class_id, instance.class_name, instance.state) == (3, "dog", Instance.STATE_REMOVED)
    assert isinstance(instance.mask, Rle) and isinstance(to_image(Header(), np.zeros((2, 2), np.uint8)), Image)
