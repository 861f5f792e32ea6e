"""Recordings with masks as training data: both kinds of labels, both storages, and what can be wrong with a bag."""

from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ausm.masks import encode_rle
from training.clips import ClipDataError
from training.data_config import load_data_config
from training.readers import get_object
from training.readers_bag import BagReader

ROOT = Path(__file__).parents[2]
SIZE = (20, 30)


def typestore():
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for name in ("Rle", "Instance", "InstanceArray"):
        types |= get_types_from_msg((ROOT / "msg" / f"{name}.msg").read_text(), f"ausm_ros/msg/{name}")
    store.register(types)
    return store


STORE = typestore()
TYPES = STORE.types


def mask_at(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[3:9, number : number + 8] = True
    return mask


def header(number: int):
    stamp = TYPES["builtin_interfaces/msg/Time"](5, 1000 * number)
    return TYPES["std_msgs/msg/Header"](stamp, "camera")


def image(number: int):
    data = np.full((*SIZE, 3), 10 * number, np.uint8)
    return TYPES["sensor_msgs/msg/Image"](header(number), *SIZE, "rgb8", 0, SIZE[1] * 3, data.ravel())


def label_map(number: int, encoding: str = "mono16"):
    kind = np.uint16 if encoding == "mono16" else np.uint8
    padded = np.zeros((SIZE[0], SIZE[1] + 2), kind)  # rows longer than the picture
    padded[:, : SIZE[1]] = np.where(mask_at(number), 9, 0)
    data = padded.view(np.uint8).ravel()
    return TYPES["sensor_msgs/msg/Image"](header(number), *SIZE, encoding, 0, padded.strides[0], data)


def instances(number: int):
    roi, time = TYPES["sensor_msgs/msg/RegionOfInterest"], TYPES["builtin_interfaces/msg/Time"]
    duration = TYPES["builtin_interfaces/msg/Duration"](0, 0)

    def instance(track_id: int, class_id: int, mask: np.ndarray):
        box, runs = encode_rle(mask)
        place = roi(box.x, box.y, box.height, box.width, False)
        rle = TYPES["ausm_ros/msg/Rle"](place, np.array(runs, np.uint32))
        rest = (place, int(mask.sum()), rle, time(0, 0), time(0, 0), 0, 0)
        return TYPES["ausm_ros/msg/Instance"](track_id, "", 1, 0, 0, class_id, "", 0.0, 1.0, *rest)

    objects = [instance(4, 2, mask_at(number))]
    if number != 2:
        objects.append(instance(11, 0, mask_at(number + 10)))
    else:
        objects.append(instance(11, 0, np.zeros(SIZE, bool)))  # lost on this frame
    rest = (duration, duration, duration)
    return TYPES["ausm_ros/msg/InstanceArray"](header(number), "cam", *SIZE, 0, number, 0, objects, *rest)


def write_bag(path: Path, labels: str, storage: StoragePlugin, skip_labels: tuple[int, ...] = (1,)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, version=9, storage_plugin=storage) as writer:
        kind = "ausm_ros/msg/InstanceArray" if labels == "instances" else "sensor_msgs/msg/Image"
        camera = writer.add_connection("/camera/image", "sensor_msgs/msg/Image", typestore=STORE)
        truth = writer.add_connection(f"/truth/{labels}", kind, typestore=STORE)
        for number in range(6):
            message = image(number)
            writer.write(camera, 10**9 + number, STORE.serialize_cdr(message, message.__msgtype__))
            if number not in skip_labels:
                message = instances(number) if labels == "instances" else label_map(number)
                writer.write(truth, 10**9 + 50 + number, STORE.serialize_cdr(message, kind))


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_instance_arrays_are_matched_by_stamp(tmp_path: Path, storage: StoragePlugin) -> None:
    write_bag(tmp_path / "bags" / "run1", "instances", storage)
    reader = BagReader(tmp_path / "bags", head="sim", exhaustive=True)
    assert len(reader) == 1 and reader.item_name(0) == "run1"
    assert reader.length(0) == 5  # frame 1 has no labels
    raw = reader.load(0, [4, 1, 0])
    assert [int(picture.mean()) for picture in raw.images] == [50, 20, 0]
    assert raw.class_ids.tolist() == [2, 0]
    for bits, number in zip(raw.bits, (5, 2, 0), strict=True):
        assert np.array_equal(get_object(bits, 0), mask_at(number))
        assert np.array_equal(get_object(bits, 1), mask_at(number + 10) & (number != 2))


def test_label_maps_keep_values_above_255_apart(tmp_path: Path) -> None:
    write_bag(tmp_path / "run", "labels", StoragePlugin.MCAP, skip_labels=())
    raw = BagReader(tmp_path / "run").load(0, [3, 3])
    assert raw.class_ids.tolist() == [-1] and len(raw.images) == 2
    assert np.array_equal(get_object(raw.bits[1], 0), mask_at(3))


def test_bags_without_labels_are_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "run", "depth", StoragePlugin.MCAP)
    with pytest.raises(ClipDataError, match="0 topics of masks"):
        BagReader(tmp_path, topic="/camera/image").length(0)
    write_bag(tmp_path / "other", "labels", StoragePlugin.MCAP, skip_labels=tuple(range(6)))
    with pytest.raises(ClipDataError, match="/camera/image is also one of /truth/labels"):
        BagReader(tmp_path / "other", topic="/camera/image", labels="/truth/labels").length(0)
    with pytest.raises(ClipDataError, match=r"no rosbag2"):
        BagReader(tmp_path / "nowhere")


def test_bags_without_stamps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be read as one still. One stamp of 0 is the start of a simulated clock."""
    clock = TYPES["builtin_interfaces/msg/Time"]
    monkeypatch.setitem(globals(), "header", lambda number: TYPES["std_msgs/msg/Header"](clock(0, number), "camera"))
    write_bag(tmp_path / "clock", "labels", StoragePlugin.MCAP, skip_labels=())
    assert BagReader(tmp_path / "clock").length(0) == 6
    monkeypatch.setitem(globals(), "header", lambda number: TYPES["std_msgs/msg/Header"](clock(0, 0), "camera"))
    write_bag(tmp_path / "none", "labels", StoragePlugin.MCAP, skip_labels=())
    with pytest.raises(ClipDataError, match="6 messages of /camera/image have no header stamp"):
        BagReader(tmp_path / "none").length(0)


def test_broken_bags_are_named(tmp_path: Path) -> None:
    write_bag(tmp_path / "run", "labels", StoragePlugin.MCAP)
    file = next((tmp_path / "run").glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ClipDataError, match="run"):
        BagReader(tmp_path).load(0, [0])


def test_bags_as_a_source_of_a_configuration(tmp_path: Path) -> None:
    write_bag(tmp_path / "sim" / "a", "instances", StoragePlugin.MCAP)
    write_bag(tmp_path / "sim" / "b", "instances", StoragePlugin.MCAP)
    (tmp_path / "data.toml").write_text(
        '[[source]]\nkind = "bag"\nroot = "sim"\nhead = "sim"\nexhaustive = true\nexclude = ["b"]\n'
    )
    (source,) = load_data_config(tmp_path / "data.toml")
    assert len(source.reader) == 1 and (source.reader.head, source.reader.exhaustive) == ("sim", True)
    assert source.reader.load(0, [0]).class_ids.tolist() == [2, 0]
