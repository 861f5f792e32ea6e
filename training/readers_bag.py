"""rosbag2 recordings as training data: a camera topic, its masks on another topic (`ausm.bag_masks`)."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ausm.bag import COMPRESSED, IMAGE, choose_topic, decode_message, open_reader
from ausm.bag_masks import INSTANCES, header_stamp, objects_of
from ausm.errors import AusmError
from training.clips import ClipDataError
from training.readers import MAX_OBJECTS, RawClip, channels, check_frames, set_object


class _Index(NamedTuple):
    """Where the frames of one bag are."""

    images: str  # topic
    labels: str  # topic
    times: list[tuple[int, int]]  # (receipt of the image, receipt of its labels) of each labelled frame, ns


class BagReader:
    """Every rosbag2 under `root` (or `root` itself) as one video.

    topic, labels: names of the two topics; needed only where a bag holds several candidates. With head "" classes are
    dropped; otherwise `Instance.class_id` counts in the label space of `head`. exhaustive: as the recording was made,
    true for simulated bags. Raises ClipDataError.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "bag",
        head: str = "",
        exhaustive: bool = False,
        topic: str | None = None,
        labels: str | None = None,
        exclude: Collection[str] = (),
    ) -> None:
        self.name, self.head, self.exhaustive = name, head, exhaustive
        self._topic, self._labels = topic, labels
        found = sorted(path.parent for path in Path(root).rglob("metadata.yaml"))
        self._items = [path for path in found if path.name not in exclude]
        if not self._items:
            raise ClipDataError(f"{root}: no rosbag2 (metadata.yaml) is left to train on")
        self._indices: OrderedDict[int, _Index] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, item: int) -> str:
        return self._items[item].name

    def length(self, item: int) -> int:
        return len(self._index(item).times)

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Frames in the given order; an object keeps its index over the clip. Raises ClipDataError."""
        check_frames(self, item, frames)
        index, path = self._index(item), self._items[item]
        wanted = sorted({index.times[frame] for frame in frames})
        images: dict[int, np.ndarray] = {}
        masks: dict[int, dict[int, tuple[np.ndarray, int]]] = {}
        try:
            for received, message in _window(path, index.images, {image for image, _ in wanted}):
                images[received] = decode_message(message)
            for received, message in _window(path, index.labels, {label for _, label in wanted}):
                masks[received] = objects_of(message)
        except AusmError as error:
            raise ClipDataError(f"{path}: {error}") from error
        ids = sorted({track for found in masks.values() for track in found})[:MAX_OBJECTS]
        class_of = {track: class_id for found in masks.values() for track, (_, class_id) in found.items()}
        bits = {}
        for image_time, label_time in wanted:
            labels = np.zeros((*images[image_time].shape[:2], channels(len(ids))), np.int32)
            for row, track in enumerate(ids):
                mask, _ = masks[label_time].get(track, (None, -1))
                if mask is None:
                    continue
                if mask.shape != labels.shape[:2]:
                    raise ClipDataError(f"{path}: mask {mask.shape}, image {labels.shape[:2]}")
                set_object(labels, row, mask)
            bits[label_time] = labels
        chosen = [index.times[frame] for frame in frames]
        class_ids = np.array([class_of[track] if self.head else -1 for track in ids], np.int64)
        return RawClip([images[image] for image, _ in chosen], [bits[label] for _, label in chosen], class_ids)

    def _index(self, item: int) -> _Index:
        """Reads the stamps of a bag once; the latest 32 indices are kept."""
        if item in self._indices:
            self._indices.move_to_end(item)
            return self._indices[item]
        path = self._items[item]
        try:
            images, _, _ = choose_topic(path, self._topic)
            labels = self._labels or _label_topic(path, images)
            times = list(_pairs(path, images, labels))
        except AusmError as error:
            raise ClipDataError(str(error)) from error
        if not times:
            raise ClipDataError(f"{path}: no stamp of {images} is also one of {labels}")
        self._indices[item] = _Index(images, labels, times)
        if len(self._indices) > 32:
            self._indices.popitem(last=False)
        return self._indices[item]


def _label_topic(path: Path, images: str) -> str:
    """The one topic of masks: InstanceArray if there is one, else a label map. Raises ClipDataError."""
    with open_reader(path) as reader:
        arrays = sorted({c.topic for c in reader.connections if c.msgtype == INSTANCES and c.msgcount})
        others = sorted(
            {c.topic for c in reader.connections if c.msgtype == IMAGE and c.msgcount and c.topic != images}
        )
    maps = [topic for topic in others if "label" in topic.rpartition("/")[2] or "mask" in topic.rpartition("/")[2]]
    found = arrays or maps
    if len(found) != 1:
        raise ClipDataError(f"{path}: {len(found)} topics of masks to choose from, name one: {found or others}")
    return found[0]


def _pairs(path: Path, images: str, labels: str) -> Iterator[tuple[int, int]]:
    """Times of receipt of images and labels with equal header stamps, in the order of the images.

    Raises ClipDataError where stamps are missing (0): which labels an image has cannot be told then.
    """
    received: dict[str, dict[int, int]] = {images: {}, labels: {}}
    unstamped = dict.fromkeys(received, 0)
    with open_reader(path) as reader:
        connections = [c for c in reader.connections if c.topic in received]
        for connection, time, data in reader.messages(connections):
            stamp = header_stamp(data)
            unstamped[connection.topic] += stamp == 0
            received[connection.topic].setdefault(stamp, time)
    for topic, count in unstamped.items():
        if count > 1:  # one may be the start of a simulated clock
            raise ClipDataError(
                f"{path}: {count} messages of {topic} have no header stamp (0), images and labels need one"
            )
    for stamp, time in received[images].items():
        if stamp in received[labels]:
            yield time, received[labels][stamp]


def _window(path: Path, topic: str, times: set[int]) -> Iterator[tuple[int, Any]]:
    """The deserialised messages of a topic that were received at these times."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    found: set[int] = set()
    with open_reader(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        for connection in connections:
            if connection.msgtype not in (IMAGE, COMPRESSED):
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        for connection, time, data in reader.messages(connections, start=min(times), stop=max(times) + 1):
            if time in times and time not in found:
                found.add(time)
                yield time, store.deserialize_cdr(data, connection.msgtype)
    if found != times:
        raise ClipDataError(f"{path}: {len(times) - len(found)} of {len(times)} messages of {topic} are gone")
