"""InstanceArray messages in a rosbag2 (mcap), written and read without ROS's own bag library, which has no wheels."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ausm.bag import open_reader
from ausm.errors import InputError
from ausm_ros.msg import InstanceArray
from ausm_ros.transport import package_file

MESSAGES = ("Rle", "Instance", "InstanceArray")
TYPE = "ausm_ros/msg/InstanceArray"


class Received(NamedTuple):
    """One message of a bag."""

    topic: str
    received: int  # when the writer got it [ns]
    message: InstanceArray


def type_store() -> Typestore:
    """The standard messages and ours, for `rosbags`."""
    store = get_typestore(Stores.ROS2_JAZZY)  # the messages that ours contain are the same in every distribution
    for name in MESSAGES:
        text = package_file(f"msg/{name}.msg").read_text()
        store.register(get_types_from_msg(text, f"ausm_ros/msg/{name}"))
    return store


class InstanceBagWriter:
    """Appends serialised InstanceArray messages to a new bag. A context manager: leaving it completes the bag."""

    def __init__(self, path: Path, topic: str) -> None:
        """Raises InputError if there is something at `path` already."""
        if path.exists():
            raise InputError(f"{path}: exists already, a bag is not overwritten")
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connection = self._writer.add_connection(topic, TYPE, typestore=type_store())

    def write(self, data: bytes, received: int) -> None:
        """data: CDR bytes as they came from the network; received: time of receipt [ns]."""
        self._writer.write(self._connection, received, data)

    def __enter__(self) -> "InstanceBagWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def read_instances(path: Path) -> Iterator[Received]:
    """The InstanceArray messages of a bag in the order of receipt. Raises InputError when the bag cannot be read."""
    with open_reader(path) as reader:
        yield from _messages(reader)


def _messages(reader: Reader) -> Iterator[Received]:
    connections = [c for c in reader.connections if c.msgtype == TYPE]
    for connection, received, data in reader.messages(connections):
        yield Received(connection.topic, received, deserialize_message(bytes(data), InstanceArray))
