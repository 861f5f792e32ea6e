"""Frames from videos, folders and bags, good and bad."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from ausm.errors import AusmError, ImageError, InputError, SizeError
from ausm.io import natural_key, open_frames, read_image
from ausm.visualize import VideoWriter

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def header(stamp_ns: int):
    time = TYPES["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return TYPES["std_msgs/msg/Header"](stamp=time, frame_id="camera")


def raw_message(image: np.ndarray, stamp_ns: int, encoding: str = "rgb8"):
    height, width = image.shape[:2]
    data = np.ascontiguousarray(image).view(np.uint8).ravel()
    return TYPES["sensor_msgs/msg/Image"](header(stamp_ns), height, width, encoding, 0, data.size // height, data)


def png_message(image: np.ndarray, stamp_ns: int):
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].ravel()
    return TYPES["sensor_msgs/msg/CompressedImage"](header(stamp_ns), "rgb8; png compressed bgr8", data)


def write_bag(path: Path, topics: dict[str, list], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic, messages in topics.items():
            connection = writer.add_connection(topic, messages[0].__msgtype__, typestore=STORE)
            for i, message in enumerate(messages):
                writer.write(connection, (i + 1) * 10**8, STORE.serialize_cdr(message, message.__msgtype__))
    return path


def write_folder(path: Path, images: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    for name, image in images.items():
        cv2.imwrite(str(path / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path


def test_natural_order() -> None:
    assert sorted(["f10", "f2", "f²", "10", "a", "9b"], key=natural_key) == ["9b", "10", "a", "f2", "f10", "f²"]


def test_folder_keeps_names_in_natural_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {f"frame{i}.png": picture(i) for i in (10, 9, 1)})
    (folder / "notes.txt").write_text("not an image")
    source = open_frames(folder)
    assert (source.kind, source.name, len(source), source.rate) == ("folder", "f", 3, None)
    assert (source.height, source.width) == (24, 32)
    frames = list(source)
    assert [f.name for f in frames] == ["frame1", "frame9", "frame10"]
    assert [f.index for f in frames] == [0, 1, 2]
    assert all(np.array_equal(f.image, picture(i)) for f, i in zip(frames, (1, 9, 10), strict=True))
    assert len(list(source)) == 3  # a second pass


def test_folder_faults(tmp_path: Path) -> None:
    mixed = write_folder(tmp_path / "mixed", {"a.png": picture(0), "b.png": picture(0, 20, 30)})
    with pytest.raises(SizeError, match=r"a\.png is 24x32, b\.png is 20x30"):
        open_frames(mixed)
    twins = write_folder(tmp_path / "twins", {"a.png": picture(0), "a.jpg": picture(0)})
    with pytest.raises(InputError, match="one name"):
        open_frames(twins)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        open_frames(tmp_path / "empty")
    broken = write_folder(tmp_path / "broken", {"a.png": picture(0)})
    (broken / "b.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.png"):
        open_frames(broken)
    cut = write_folder(tmp_path / "cut", {"a.jpg": picture(0), "b.jpg": picture(1)})
    (cut / "b.jpg").write_bytes((cut / "b.jpg").read_bytes()[:300])  # its header is whole
    with pytest.raises(InputError, match=r"b\.jpg"):
        list(open_frames(cut))
    with pytest.raises(InputError, match="no such file"):
        open_frames(tmp_path / "missing")


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_cut_jpeg_is_no_image_and_one_with_more_behind_it_is(tmp_path: Path, progressive: int) -> None:
    image = cv2.GaussianBlur(picture(0, 200, 300), (0, 0), 5)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    preview = cv2.imencode(".jpg", image[:80, :80])[1].tobytes()
    exif = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview  # a whole image within the header
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    whole = read_image(path)
    for start, end in ((data[:2], b""), (data[:2], b"\0" * 9000), (data[:2], preview), (data[:2] + exif, b"\r\n")):
        path.write_bytes(start + data[2:] + end)
        assert np.array_equal(read_image(path), whole)
    for length in (len(data) // 2, len(data) - 2):
        path.write_bytes(data[:2] + exif + data[2:length])
        with pytest.raises(InputError, match=rf"a\.jpg: its {len(exif) + length} bytes end before the image does"):
            read_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded"):
        read_image(path)
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "b.jpg")


def test_video(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", rate=10.0, ffmpeg=False) as writer:
        for i in range(12):
            writer.write(np.full((32, 48, 3), 20 * i, np.uint8))
    source = open_frames(tmp_path / "v.mp4")
    assert (source.kind, source.name, source.rate, len(source)) == ("video", "v", 10.0, 12)
    frames = list(source)
    assert [f.stamp_ns for f in frames] == [i * 10**8 for i in range(12)]
    assert [f.name for f in frames][-1] == "00011"
    assert all(abs(float(f.image.mean()) - 20 * f.index) < 4 for f in frames)
    with pytest.raises(AusmError, match="not a rosbag2"):
        open_frames(tmp_path / "v.mp4", topic="/camera")


def test_video_faults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\x00" * 500)
    with pytest.raises(InputError, match=r"bad\.mp4: cannot be decoded"):
        open_frames(tmp_path / "bad.mp4")
    with VideoWriter(tmp_path / "v.avi", rate=10.0, ffmpeg=False) as writer:
        for i in range(60):
            writer.write(picture(i, 64, 64))
    data = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    decoded = len(list(open_frames(tmp_path / "half.avi")))
    assert 0 < decoded < 50 and f"half.avi: {decoded} frames decoded, its header announces about 60" in caplog.text


@pytest.mark.parametrize(("missing", "whole"), [(2, True), (3, False)])
def test_a_header_that_counts_wrong_costs_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: int, whole: bool
) -> None:
    """Sound that goes on for longer, a varying rate and a cut without encoding make it too large. Two is usual."""

    class Short:
        """200 frames announced."""

        def __init__(self, *_: object) -> None:
            self.left = 200 - missing

        def isOpened(self) -> bool:
            return True

        def get(self, what: int) -> float:
            return 200.0 if what == cv2.CAP_PROP_FRAME_COUNT else 30.0

        def read(self):
            self.left -= 1
            return self.left >= 0, picture(0)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Short)
    (tmp_path / "v.mp4").touch()
    source = open_frames(tmp_path / "v.mp4")
    assert len(list(source)) == 200 - missing
    assert ("v.mp4: 197 frames decoded, its header announces about 200" in caplog.text) is not whole


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("make", [raw_message, png_message])
def test_bag(tmp_path: Path, storage: StoragePlugin, make) -> None:
    images = [picture(i) for i in range(3)]
    stamps = [5_000_000_001, 0, 5_200_000_000]
    messages = [make(image, stamp) for image, stamp in zip(images, stamps, strict=True)]
    bag = write_bag(tmp_path / "bag", {"/camera": messages}, storage)
    source = open_frames(bag)
    assert (source.kind, source.name, source.topic, len(source)) == ("rosbag2", "bag", "/camera", 3)
    assert source.rate == pytest.approx(10.0)
    frames = list(source)
    assert [f.stamp_ns for f in frames] == [5_000_000_001, 200_000_000, 5_200_000_000]  # zero: time of receipt
    assert all(np.array_equal(f.image, image) for f, image in zip(frames, images, strict=True))
    file = next(p for p in bag.iterdir() if p.suffix in (".mcap", ".db3"))
    assert len(list(open_frames(file))) == 3  # the storage file alone


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_the_rate_of_a_topic_is_its_own(tmp_path: Path, storage: StoragePlugin) -> None:
    """Whatever else the bag holds for longer, before and after it."""
    text = [TYPES["std_msgs/msg/String"]("on")] * 400  # one every 0.1 s
    images = [raw_message(picture(0), i + 1) for i in range(3)]
    with Writer(tmp_path / "bag", version=9, storage_plugin=storage) as writer:
        camera = writer.add_connection("/c", images[0].__msgtype__, typestore=STORE)
        other = writer.add_connection("/text", text[0].__msgtype__, typestore=STORE)
        for i, message in enumerate(text):
            writer.write(other, (i + 1) * 10**8, STORE.serialize_cdr(message, message.__msgtype__))
            if 20 <= i < 23:
                writer.write(camera, (i + 1) * 10**8 + 1, STORE.serialize_cdr(images[i - 20], images[0].__msgtype__))
    assert open_frames(tmp_path / "bag").rate == pytest.approx(10.0)


def test_bag_topic_is_chosen_among_colour_images(tmp_path: Path) -> None:
    colour = [raw_message(picture(i), i + 1) for i in range(2)]
    depth = [raw_message(np.zeros((24, 32), np.uint16), i + 1, "16UC1") for i in range(2)]
    packed = [png_message(picture(9), i + 1) for i in range(2)]
    one = write_bag(tmp_path / "one", {"/cam/depth": depth, "/cam/image": colour, "/cam/image/compressed": packed})
    assert open_frames(one).topic == "/cam/image"
    assert open_frames(one, "/cam/image/compressed").topic == "/cam/image/compressed"
    two = write_bag(tmp_path / "two", {"/left": colour, "/right": colour})
    with pytest.raises(InputError, match=r"/left \(2 of Image\), /right \(2 of Image\)"):
        open_frames(two)
    with pytest.raises(InputError, match=r"no image topic /up.*/left"):
        open_frames(two, "/up")


def test_bag_faults(tmp_path: Path) -> None:
    text = write_bag(tmp_path / "text", {"/text": [TYPES["std_msgs/msg/String"]("hello")]})
    with pytest.raises(InputError, match="Image topics: none"):
        open_frames(text)
    sizes = write_bag(tmp_path / "sizes", {"/c": [raw_message(picture(0), 1), raw_message(picture(1, 20, 30), 2)]})
    with pytest.raises(SizeError, match=r"frame 1 .* is 20x30, the first 24x32"):
        list(open_frames(sizes))
    unknown = write_bag(tmp_path / "unknown", {"/c": [raw_message(picture(0), 1), raw_message(picture(0), 2, "rgb9")]})
    with pytest.raises(ImageError, match=r"/c, frame 1: .*rgb9"):
        list(open_frames(unknown))
    for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        messages = [raw_message(picture(i), i + 1) for i in range(40)]
        bag = write_bag(tmp_path / storage.name, {"/c": messages}, storage)
        file = next(p for p in bag.iterdir() if p.suffix != ".yaml")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(InputError, match=str(bag)):
            list(open_frames(bag))
        file.unlink()
        with pytest.raises(InputError, match=str(bag)):
            open_frames(bag)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: 3")
    with pytest.raises(InputError, match="not a readable rosbag2"):
        open_frames(bag)
