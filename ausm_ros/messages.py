"""Results of the model as ROS messages, and back. The only place that knows the fields of `msg/`."""

import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from ausm.image_encodings import decode_compressed, decode_image
from ausm.masks import Box, decode_rle, encode_rle, label_map
from ausm.tracks import Track, TrackState
from ausm.visualize import Drawn, name_of
from ausm_ros.msg import Instance, InstanceArray, PromptResult, Rle
from ausm_ros.prompts import Outcome

if TYPE_CHECKING:  # they bring PyTorch, which who only reads or writes messages does not need
    from ausm_ros.session import Sighting
    from ausm_ros.worker import Report

SECOND = 10**9
LABELS = 65535  # values of a 16-bit label map


def to_ns(stamp: Time | Duration) -> int:
    """Nanoseconds as a Python integer; a Duration may be negative."""
    return int(stamp.sec) * SECOND + int(stamp.nanosec)


def to_time(ns: int) -> Time:
    return Time(sec=ns // SECOND, nanosec=ns % SECOND)


def to_duration(seconds: float) -> Duration:
    ns = round(seconds * SECOND)
    return Duration(sec=ns // SECOND, nanosec=ns % SECOND)


def to_roi(box: Box) -> RegionOfInterest:
    return RegionOfInterest(x_offset=box.x, y_offset=box.y, width=box.width, height=box.height)


def to_rle(mask: np.ndarray) -> Rle:
    """(H, W) bool to run lengths inside its own box."""
    box, runs = encode_rle(mask)
    return Rle(roi=to_roi(box), runs=array.array("I", runs))  # rclpy assigns an array at once, a list value by value


def to_png(mask: np.ndarray) -> CompressedImage:
    """(H, W) bool as a PNG: unlike run lengths it carries the size of its image, which the node then checks."""
    data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    return CompressedImage(format="png", data=array.array("B", data.tobytes()))


def to_mask(rle: Rle, height: int, width: int) -> np.ndarray:
    """(H, W) bool of an `Rle`. Raises AusmError when it does not fit."""
    roi = rle.roi
    return decode_rle((roi.x_offset, roi.y_offset, roi.width, roi.height), rle.runs, height, width)


def rgb_of(message: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage. Raises ImageError."""
    if hasattr(message, "format"):
        return decode_compressed(message.data, message.format)
    return decode_image(
        message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian)
    )


def to_image(header: Header, pixels: np.ndarray) -> Image:
    """(H, W, 3) uint8 RGB, or (H, W) uint8 or uint16, as rgb8, mono8 or mono16."""
    encoding = "rgb8" if pixels.ndim == 3 else "mono8" if pixels.dtype == np.uint8 else "mono16"
    height, width = pixels.shape[:2]
    data = array.array("B", pixels.tobytes())  # the fast form on every distribution
    step = width * pixels.itemsize * (3 if pixels.ndim == 3 else 1)
    return Image(header=header, height=height, width=width, encoding=encoding, step=step, data=data)


def label_value(track: Track) -> int:
    """The pixel value of a track in the label map; 0 when not drawn. Two live ids 65535 apart would share one."""
    drawn = track.state in (TrackState.TENTATIVE, TrackState.TRACKED)
    return (track.track_id - 1) % LABELS + 1 if drawn else 0


def to_instance(track: Track, sighting: "Sighting | None", with_mask: bool = True) -> Instance:
    """One track; sighting: stamps of its first and last sight. On request without its mask."""
    message = Instance(
        track_id=track.track_id,
        name=track.name,
        state=int(track.state),
        source=int(track.source),
        label_value=label_value(track),
        class_id=track.class_id,
        class_name=track.class_name,
        class_score=float(track.class_score),
        score=float(track.score),
        age=track.age,
        frames_since_seen=track.frames_since_seen,
    )
    if message.label_value:
        message.mask = to_rle(track.mask)
        message.box = message.mask.roi
        message.area = int(np.count_nonzero(track.mask))
        if not with_mask:
            message.mask = Rle()
    if sighting is not None:
        message.first_seen, message.last_seen = to_time(sighting.first), to_time(sighting.last)
    return message


def to_instances(
    tracks: Iterable[Track], sightings: "Mapping[int, Sighting]", with_mask: bool = True
) -> list[Instance]:
    """All tracks in order of their id."""
    ordered = sorted(tracks, key=lambda t: t.track_id)
    return [to_instance(t, sightings.get(t.track_id), with_mask) for t in ordered]


def to_instance_array(report: "Report", camera: str, processing_time: float) -> InstanceArray:
    """The message of one processed image; processing_time: receipt to publication [s]."""
    output, snapshot = report.output, report.snapshot
    return InstanceArray(
        header=report.message.header,
        camera=camera,
        height=output.height,
        width=output.width,
        epoch=snapshot.epoch,
        frame_index=output.frame_index,
        dropped=report.dropped,
        instances=to_instances(output.tracks, snapshot.sightings),
        queue_time=to_duration(report.queue_time),
        inference_time=to_duration(report.inference_time),
        processing_time=to_duration(processing_time),
    )


def to_label_map(report: "Report") -> Image:
    """mono16: the `label_value` of each pixel's object; where masks overlap the higher score wins."""
    output = report.output
    drawn = [t for t in output.tracks if label_value(t)]
    values, scores = [label_value(t) for t in drawn], [t.score for t in drawn]
    labels = label_map([t.mask for t in drawn], values, scores, size=(output.height, output.width))
    return to_image(report.message.header, labels)


def to_result(outcome: Outcome) -> PromptResult:
    return PromptResult(
        code=int(outcome.code),
        message=outcome.message,
        track_id=outcome.track_id,
        iou_with_prompt=outcome.iou_with_prompt,
    )


def to_drawn(instances: Sequence[Instance], height: int, width: int) -> list[Drawn]:
    """What can be drawn of received instances. Raises AusmError for masks that do not fit the image."""
    return [
        Drawn(
            i.track_id,
            to_mask(i.mask, height, width),
            name_of(i.name, i.class_name, i.class_score),
            i.score,
            i.source,
        )
        for i in instances
        if len(i.mask.runs)
    ]
