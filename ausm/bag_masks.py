"""Masks in a rosbag2: an InstanceArray topic or an Image topic of label maps, by the stamps of their images.

Object masks come as `ausm_ros/msg/InstanceArray` (run lengths, ids, classes) or as an Image that is a label map (mono8,
mono16 or 16UC1: pixel value = object, 0 = none). A mask belongs to the image of the same header stamp.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ausm.bag import IMAGE, open_reader
from ausm.errors import InputError, SizeError
from ausm.masks import Box, decode_rle

INSTANCES = "ausm_ros/msg/InstanceArray"
LABEL_MAPS = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2}  # bytes a pixel
WAITING = 64  # messages held before old ones are looked through


class Stamped(NamedTuple):
    """One message as stored."""

    stamp: int  # of its header; where that is zero, the time of receipt [ns]
    data: bytes  # CDR
    kind: str  # message type


def header_stamp(data: bytes | memoryview) -> int:
    """Nanoseconds of a CDR message that starts with a Header: they lie in bytes 4..12 behind the preamble."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = np.frombuffer(data[4:12], f"{order}u4").tolist()
    return int(seconds * 10**9 + nanoseconds)


def objects_of(message: Any) -> dict[int, tuple[np.ndarray, int]]:
    """Track id or label value -> ((H, W) bool mask, class id) of an InstanceArray or a label map. Raises AusmError."""
    if hasattr(message, "instances"):
        found = {}
        for instance in message.instances:
            roi, runs = instance.mask.roi, instance.mask.runs.tolist()
            box = Box(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
            mask = decode_rle(box, runs, int(message.height), int(message.width))
            if mask.any():
                found[int(instance.track_id)] = (mask, int(instance.class_id))
        return found
    depth = LABEL_MAPS.get(message.encoding)
    if depth is None:
        raise InputError(f"a label map is one of {', '.join(LABEL_MAPS)}, this is {message.encoding}")
    height, width, step = int(message.height), int(message.width), int(message.step)
    if step < width * depth or len(message.data) < height * step:
        raise InputError(f"label map {height}x{width}, step {step}, {len(message.data)} bytes")
    rows = np.asarray(message.data[: height * step]).reshape(height, step)[:, : width * depth]
    order = ">" if message.is_bigendian else "<"
    labels = np.ascontiguousarray(rows).view(np.dtype(f"{order}u{depth}"))
    return {int(value): (labels == value, -1) for value in np.unique(labels) if value}


def find_truth(path: Path, topic: str | None = None) -> str | None:
    """The topic of true masks. Without a name: the one of masks with "truth" in its name, None if there is none.

    Recordings of a node hold its own results too: those are no truth, so the name decides. Raises InputError for a
    topic that is missing or of another type, and for several candidates.
    """
    with open_reader(path) as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
    usable = sorted(name for name, kind in kinds.items() if kind in (INSTANCES, IMAGE))
    listed = ", ".join(usable) or "none"
    if topic is not None:
        if topic not in kinds:
            raise InputError(f"{path}: no truth topic {topic}. Topics that may hold masks: {listed}")
        if topic not in usable:
            raise InputError(f"{path}: truth topic {topic} is {kinds[topic]}, not {IMAGE} or {INSTANCES}")
        return topic
    candidates = [name for name in usable if "truth" in name]
    if len(candidates) > 1:
        raise InputError(f"{path}: {len(candidates)} truth topics to choose from, name one: {', '.join(candidates)}")
    return candidates[0] if candidates else None


class TruthReader:
    """The true masks of a bag, asked for image by image in the order of the bag.

    Holds the messages that lie in the bag before the one asked for and have not been asked for yet: one or two in a
    recording, whose topics are written in turn.
    """

    def __init__(self, path: Path, topic: str) -> None:
        """Raises InputError when the bag cannot be read."""
        self.path, self.topic = path, topic
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.stamps: set[int] = {m.stamp for m in self._read()}
        self._messages = self._read()
        self._waiting: dict[int, Stamped] = {}

    def _read(self) -> Iterator[Stamped]:
        with open_reader(self.path) as reader:
            connections = [c for c in reader.connections if c.topic == self.topic]
            for connection in connections:
                if connection.msgtype == INSTANCES and INSTANCES not in self.store.types:
                    self.store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
            for connection, received, data in reader.messages(connections):
                yield Stamped(header_stamp(data) or received, bytes(data), connection.msgtype)

    def at(self, stamp: int, height: int, width: int) -> dict[int, np.ndarray] | None:
        """Object -> (H, W) bool mask of the image of this stamp; None where the bag has no truth for it.

        Raises SizeError for masks that are not (height, width), InputError for a malformed message.
        """
        if stamp not in self.stamps:
            return None
        while stamp not in self._waiting:
            following = next(self._messages, None)
            if following is None:  # an image far out of order: its truth was given up below
                return None
            if len(self._waiting) >= WAITING:  # a truth at twice the rate of the images: half of it is never asked for
                self._waiting = {s: m for s, m in self._waiting.items() if s > stamp}
            self._waiting.setdefault(following.stamp, following)
        stored = self._waiting.pop(stamp)
        self.stamps.discard(stamp)  # not to look for it again at a second image of this stamp
        message: Any = self.store.deserialize_cdr(stored.data, stored.kind)
        if (message.height, message.width) != (height, width):
            sizes = f"{message.height}x{message.width}, the images are {height}x{width}"
            raise SizeError(f"{self.path}: truth {self.topic} at {stamp / 1e9:.3f} s is {sizes}")
        try:
            return {i: mask for i, (mask, _) in objects_of(message).items()}
        except ValueError as error:
            raise InputError(f"{self.path}: truth {self.topic} at {stamp / 1e9:.3f} s: {error}") from error
