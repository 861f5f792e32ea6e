"""A simulated robot camera as a rosbag2: image, calibration, exact label maps and what the labels mean."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from training.sim_camera import Lens
from training.sim_classes import SIM_CLASS_ID
from training.sim_render import SimFrame

IMAGE_TOPIC = "/camera/image_raw"
INFO_TOPIC = "/camera/camera_info"
TRUTH_TOPIC = "/camera/truth/label_map"
LABELS_TOPIC = "/camera/truth/labels"
FRAME_ID = "camera_optical_frame"
FIRST_STAMP_NS = 1_000_000_000  # a zero stamp means "no stamp" to most nodes


def write_bag(
    path: Path, frames: Iterable[SimFrame], classes: dict[int, str], lens: Lens, rate: float, storage: str = "sqlite3"
) -> int:
    """Write frames at `rate` Hz to a new bag folder; returns how many.

    classes: instance id -> class name. storage: "sqlite3" or "mcap". Label maps are mono16, the value is the instance
    id; the meaning of the ids is one std_msgs/String of JSON {"id": {"class_id": int, "class_name": str}} at the first
    stamp.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    image_type, info_type, text_type = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo", "std_msgs/msg/String"
    plugin = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}[storage]
    k = lens.matrix()
    count = 0
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        image_out, truth_out, info_out, labels_out = (
            writer.add_connection(topic, kind, typestore=store)
            for topic, kind in (
                (IMAGE_TOPIC, image_type),
                (TRUTH_TOPIC, image_type),
                (INFO_TOPIC, info_type),
                (LABELS_TOPIC, text_type),
            )
        )

        def image(header: Any, data: NDArray[np.uint8], encoding: str, pixel_bytes: int) -> Any:
            return types[image_type](
                header=header, height=lens.height, width=lens.width, encoding=encoding, is_bigendian=0,
                step=lens.width * pixel_bytes, data=data.reshape(-1),
            )  # fmt: skip

        for frame in frames:
            stamp = FIRST_STAMP_NS + round(count * 1e9 / rate)
            time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
            header = types["std_msgs/msg/Header"](stamp=time, frame_id=FRAME_ID)
            if count == 0:
                meaning = {str(i): {"class_id": SIM_CLASS_ID[c], "class_name": c} for i, c in sorted(classes.items())}
                message = types[text_type](data=json.dumps(meaning))
                writer.write(labels_out, stamp, store.serialize_cdr(message, text_type))
            info = types[info_type](
                header=header, height=lens.height, width=lens.width, distortion_model="plumb_bob", d=np.zeros(5),
                k=k.reshape(-1), r=np.eye(3).reshape(-1), p=np.hstack([k, np.zeros((3, 1))]).reshape(-1),
                binning_x=0, binning_y=0,
                roi=types["sensor_msgs/msg/RegionOfInterest"](
                    x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
                ),
            )  # fmt: skip
            writer.write(info_out, stamp, store.serialize_cdr(info, info_type))
            rgb = image(header, np.ascontiguousarray(frame.image), "rgb8", 3)
            writer.write(image_out, stamp, store.serialize_cdr(rgb, image_type))
            truth = image(header, frame.labels.astype("<u2").view(np.uint8), "mono16", 2)
            writer.write(truth_out, stamp, store.serialize_cdr(truth, image_type))
            count += 1
    return count
