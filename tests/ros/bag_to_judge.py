"""Small recordings with a truth, made here, and the bag evaluator run on them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

import ausm
from ausm.masks import encode_rle
from ausm_ros import evaluate_bag
from ausm_ros.instance_bag import type_store

SIZE = (64, 96)
IMAGES, TRUTH = "/front/image", "/front/truth/label_map"
STORE = type_store()
TYPES = STORE.types
FAST = ["--checkpoint", "random:nano", "--device", "cpu", "--threads", "1", "--short-side", "64"]
START, PERIOD = 7_000_000_123, 100_000_000  # ns


@pytest.fixture(scope="module")
def one_model():
    """Random weights are the same for every call; building them takes most of the time."""
    torch.manual_seed(9)  # with some other weights nothing is found in these images, or nothing kept
    model = ausm.load("nano", device="cpu", weights=False)
    patch = pytest.MonkeyPatch()
    values = {"checkpoint": "random:nano", "sha256": "none: random weights", "device": "cpu", "precision": "auto"}
    patch.setattr(evaluate_bag, "load_model", lambda settings: (model, dict(values)))
    yield
    patch.undo()


def square(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[10:30, 5 + 4 * number : 30 + 4 * number] = True
    return mask


def header(number: int):
    stamp = START + number * PERIOD
    time = TYPES["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9)
    return TYPES["std_msgs/msg/Header"](time, "front_optical")


def picture(number: int) -> np.ndarray:
    image = np.random.default_rng(5).integers(0, 60, (*SIZE, 3)).astype(np.uint8)
    image[square(number)] = (230, 60, 20)
    return image


def raw(number: int):
    return TYPES["sensor_msgs/msg/Image"](header(number), *SIZE, "rgb8", 0, SIZE[1] * 3, picture(number).ravel())


def jpeg(number: int):
    data = cv2.imencode(".jpg", picture(number)[:, :, ::-1])[1].ravel()
    return TYPES["sensor_msgs/msg/CompressedImage"](header(number), "jpeg", data)


def label_map(number: int, size: tuple[int, int] = SIZE):
    labels = np.where(square(number, size), 3, 0).astype("<u2")
    if number >= 2:
        labels[40:52, 60:80] = 9  # a second object enters
    return TYPES["sensor_msgs/msg/Image"](
        header(number), *size, "mono16", 0, size[1] * 2, labels.view(np.uint8).ravel()
    )


def instance_array(number: int):
    box, runs = encode_rle(square(number))
    roi, time = TYPES["sensor_msgs/msg/RegionOfInterest"], TYPES["builtin_interfaces/msg/Time"]
    place = roi(box.x, box.y, box.height, box.width, False)
    rle = TYPES["ausm_ros/msg/Rle"](place, np.array(runs, np.uint32))
    rest = (place, 500, rle, time(0, 0), time(0, 0), 0, 0)
    instance = TYPES["ausm_ros/msg/Instance"](4, "", 1, 0, 0, -1, "", 0.0, 1.0, *rest)
    times = [TYPES["builtin_interfaces/msg/Duration"](0, 0)] * 3
    return TYPES["ausm_ros/msg/InstanceArray"](header(number), "front", *SIZE, 0, number, 0, [instance], *times)


def write_bag(
    path: Path,
    frames: int = 5,
    image=raw,
    truth=label_map,
    storage: StoragePlugin = StoragePlugin.SQLITE3,
    late: int = 0,
    zipped: bool = False,
) -> Path:
    """late: images by which each truth comes after its own."""
    writer = Writer(path, version=9, storage_plugin=storage)
    if zipped:
        writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        name = IMAGES if image is raw else f"{IMAGES}/compressed"
        pictures = writer.add_connection(name, image(0).__msgtype__, typestore=STORE)
        masks = writer.add_connection(TRUTH, truth(0).__msgtype__, typestore=STORE) if truth else None
        for number in range(frames + late):
            received = START + number * PERIOD + 40
            if number < frames:
                message = image(number)
                writer.write(pictures, received, STORE.serialize_cdr(message, message.__msgtype__))
            if masks and number >= late:
                message = truth(number - late)
                writer.write(masks, received, STORE.serialize_cdr(message, message.__msgtype__))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = evaluate_bag.main([*map(str, arguments), *FAST])
    out, err = capsys.readouterr()
    return code, out, err
