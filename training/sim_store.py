"""Simulated clips on disk, one file each: compact, quick to read at random, complete or absent (never half written).

`clip_00000012.npz` holds JPEG frames and 8-bit PNG label maps back to back with their offsets, and a JSON text:
size, rate (Hz), kind of scene, seed, and the class of every instance id.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from ausm.errors import InputError
from training.sim_classes import SIM_CLASS_ID

JPEG_QUALITY = 92
PREFIX = "clip_"
PATTERN = f"{PREFIX}*.npz"


def clip_path(root: Path, index: int) -> Path:
    """Where clip `index` of a store lies."""
    return root / f"{PREFIX}{index:08d}.npz"


def _pack(blobs: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.concatenate(blobs), np.cumsum([0] + [len(b) for b in blobs], dtype=np.int64)


def write_clip(
    path: Path, images: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]], meta: dict[str, Any]
) -> int:
    """Write T images (H, W, 3) RGB and label maps (H, W) as one file; returns its size in bytes.

    meta must hold "classes": {instance id: class name}. The file appears under its name only when it is whole.
    """
    frames, maps = [], []
    for image, label in zip(images, labels, strict=True):
        ok, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        done, png = cv2.imencode(".png", label, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        if not (ok and done):
            raise InputError(f"{path}: frame of shape {image.shape} cannot be encoded")
        frames.append(np.asarray(jpeg, np.uint8).reshape(-1))
        maps.append(np.asarray(png, np.uint8).reshape(-1))
    packed_frames, frame_ends = _pack(frames)
    packed_maps, map_ends = _pack(maps)
    text = json.dumps({**meta, "frames": len(images), "height": images[0].shape[0], "width": images[0].shape[1]})
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(
            file, frames=packed_frames, frame_ends=frame_ends, maps=packed_maps, map_ends=map_ends,
            meta=np.frombuffer(text.encode(), np.uint8),
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave an empty file under the final name
    partial.replace(path)
    return path.stat().st_size


def hidden_spans(labels: NDArray[np.uint8], instance_id: int) -> list[tuple[int, int]]:
    """Frames [start, stop) in which an instance has no pixel although it was seen before and is seen again after.

    labels: (T, H, W).
    """
    seen = np.flatnonzero((labels == instance_id).any(axis=(1, 2)))
    gaps = np.flatnonzero(np.diff(seen) > 1)
    return [(int(seen[k]) + 1, int(seen[k + 1])) for k in gaps]


class SimClips:
    """The clips under a folder (and its sub-folders), in the order of their names."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"folder of simulated clips {self.root} does not exist")
        self.paths = sorted(self.root.rglob(PATTERN))
        if not self.paths:
            raise InputError(
                f"{self.root} holds no simulated clip ({PATTERN}); make some with `ausm simulate --frames`"
            )
        self._lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The number in the clip's file name, after its sub-folder if it has one: "12", "night/12"."""
        path = self.paths[index].relative_to(self.root)
        return (path.parent / path.stem.removeprefix(PREFIX).lstrip("0").rjust(1, "0")).as_posix()

    def meta(self, index: int) -> dict[str, Any]:
        """The JSON record of a clip: frames, height, width, rate, kind, seed, classes {instance id: name}."""
        with self._open(index) as store:
            record: dict[str, Any] = json.loads(store["meta"].tobytes())
        record["classes"] = {int(k): name for k, name in record["classes"].items()}
        self._lengths[index] = int(record["frames"])
        return record

    def length(self, index: int) -> int:
        """Frames in a clip."""
        if index not in self._lengths:
            self.meta(index)
        return self._lengths[index]

    def load(
        self, index: int, start: int = 0, length: int | None = None, stride: int = 1
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[int, int]]:
        """(images (T, H, W, 3) RGB, labels (T, H, W), class of id) of frames start, start + stride, ...

        length None: to the end of the clip. An id that is not in view has its class all the same.
        Frames outside the clip raise InputError.
        """
        record = self.meta(index)
        total = int(record["frames"])
        if length is None:
            length = len(range(start, total, stride))
        last = start + (length - 1) * stride
        if start < 0 or length < 1 or stride < 1 or last >= total:
            raise InputError(f"{self.paths[index].name}: frames {start}..{last} step {stride} asked of {total} frames")
        wanted = range(start, last + 1, stride)
        with self._open(index) as store:
            images = self._decode(index, store, "frame", wanted, cv2.IMREAD_COLOR)
            labels = self._decode(index, store, "map", wanted, cv2.IMREAD_UNCHANGED)
        classes = {k: SIM_CLASS_ID[name] for k, name in record["classes"].items()}
        return np.ascontiguousarray(images[..., ::-1]), labels, classes

    def _open(self, index: int) -> Any:
        try:
            return np.load(self.paths[index])
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise InputError(f"simulated clip {self.paths[index]} cannot be read: {error}") from error

    def _decode(self, index: int, store: Any, name: str, wanted: range, flags: int) -> NDArray[np.uint8]:
        """The wanted pictures, stacked: (T, H, W, 3) BGR or (T, H, W)."""
        try:
            data, ends = store[f"{name}s"], store[f"{name}_ends"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"simulated clip {self.paths[index]} is damaged: {error}") from error
        pictures = []
        for k in wanted:
            picture = cv2.imdecode(data[ends[k] : ends[k + 1]], flags)
            if picture is None:
                raise InputError(f"simulated clip {self.paths[index]}: {name} {k} cannot be decoded")
            pictures.append(np.asarray(picture, np.uint8))
        return np.stack(pictures)
