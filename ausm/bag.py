"""Images of a rosbag2 (sqlite3 or mcap) without ROS, through the `rosbags` package."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ausm.errors import AusmError, InputError
from ausm.image_encodings import decode_compressed, decode_image
from ausm.io import Frame, FrameSource

try:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Reader
    from rosbags.typesys import Stores, get_typestore
except ImportError as error:
    raise InputError("reading a rosbag2 needs the package rosbags: pip install rosbags") from error

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
NOT_COLOUR = ("16UC1", "mono16", "32FC1", "32SC1", "64FC1")  # depth and label maps, when a bag holds colour too


@contextmanager
def open_reader(path: Path) -> Iterator[Reader]:
    """A rosbags reader; every way in which a broken bag can fail becomes an InputError that names it."""
    try:
        with Reader(path) as reader:
            yield reader
    except AusmError:
        raise
    except Exception as error:  # the parsers raise struct, sqlite3, zstd, yaml, assertion and other errors
        raise InputError(f"{path}: not a readable rosbag2 ({type(error).__name__}: {error})") from error


def _messages(path: Path, topic: str) -> Iterator[tuple[int, Any]]:
    """Time of receipt (ns) and message of each message of a topic, in the order of the bag."""
    store = get_typestore(Stores.ROS2_JAZZY)  # image messages are the same in every distribution
    with open_reader(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, received, data in reader.messages(connections):
            yield received, store.deserialize_cdr(data, connection.msgtype)


def decode_message(message: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a deserialised Image or CompressedImage. Raises ImageError."""
    if hasattr(message, "format"):
        return decode_compressed(message.data, message.format)
    fields = message.height, message.width, message.step, message.encoding, bool(message.is_bigendian)
    return decode_image(message.data, *fields)


def _is_colour(path: Path, connection: Connection) -> bool:
    """False for topics whose first message is a depth image or a label map."""
    for _, message in islice(_messages(path, connection.topic), 1):
        if connection.msgtype == COMPRESSED:
            return "compressedDepth" not in message.format
        return message.encoding not in NOT_COLOUR
    return False


def choose_topic(path: Path, topic: str | None = None) -> tuple[str, int, float | None]:
    """The image topic of a bag, its number of messages and its rate in Hz (None for one message).

    Without `topic` the bag must hold one image topic; where it holds several, depth images, label maps and the
    compressed twin of a raw topic do not count. Raises InputError with the list of image topics.
    """
    with open_reader(path) as reader:
        found = {c.topic: c for c in reader.connections if c.msgtype in (IMAGE, COMPRESSED)}
        counts = {name: sum(c.msgcount for c in reader.connections if c.topic == name) for name in found}
    listed = ", ".join(f"{name} ({counts[name]} of {c.msgtype.split('/')[-1]})" for name, c in sorted(found.items()))
    if topic is None:
        names = [name for name in found if counts[name]]
        if len(names) > 1:
            names = [name for name in names if _is_colour(path, found[name])]
            names = [name for name in names if name.rpartition("/")[0] not in names]
        if len(names) != 1:
            raise InputError(
                f"{path}: {len(names)} image topics to choose from, name one. Image topics: {listed or 'none'}"
            )
        topic = names[0]
    if topic not in found:
        raise InputError(f"{path}: no image topic {topic}. Image topics: {listed or 'none'}")
    seconds = _span(path, topic) / 1e9  # of the topic: others may begin earlier or go on for longer
    count = counts[topic]
    return topic, count, (count - 1) / seconds if count > 1 and seconds > 0 else None


def _span(path: Path, topic: str) -> int:
    """Nanoseconds between the receipt of the first and the last message of a topic.

    The last one is looked for from the end of the bag backwards: reading a large bag as a whole takes minutes.
    """
    with open_reader(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        first = next((time for _, time, _ in reader.messages(connections)), None)
        window = 10**9
        while first is not None:
            start = max(first, reader.end_time - window)
            if times := [time for _, time, _ in reader.messages(connections, start=start)]:
                return int(times[-1] - first)
            window *= 4
    return 0


def open_bag(path: Path, topic: str | None = None) -> FrameSource:
    """The frames of one image topic, in the order of the bag, at the stamps of their headers.

    A zero header stamp is replaced by the time of receipt. Raises InputError and ImageError (naming the frame).
    """
    chosen, count, rate = choose_topic(path, topic)

    def read() -> Iterator[Frame]:
        index = -1
        for index, (received, message) in enumerate(_messages(path, chosen)):
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            try:
                image = decode_message(message)
            except AusmError as error:
                raise type(error)(f"{path} {chosen}, frame {index}: {error}") from error
            yield Frame(index, f"{index:05d}", stamp or received, image, message.header.frame_id)
        if index + 1 < count:
            raise InputError(f"{path}: only {index + 1} of {count} images of {chosen} could be read")

    return FrameSource("rosbag2", path, read, rate=rate, count=count, topic=chosen)
