"""SA-V: the mp4 files and masklet jsons of the train split, or the frame and mask folders of val and test."""

import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.clips import ClipDataError
from training.readers import (
    CACHE,
    HELD_OUT,
    MAX_OBJECTS,
    RawClip,
    channels,
    check_frames,
    check_one_size,
    check_sizes,
    read_labels,
    read_rgb,
    set_object,
)
from training.readers_coco import mask_of

STEP = 4  # videos have 24 Hz, masks 6 Hz


class SavReader:
    """Videos `**/<id>.mp4` with `<id>_manual.json` (and `<id>_auto.json` if `automatic`).

    Only the annotated frames, every fourth, are served. Where `<id>/` beside the mp4 holds extracted frames
    (`%05d.jpg`, all frames) those are read instead of the mp4, which is much faster. Masklets may overlap (a person
    and her hand). Class-agnostic, not exhaustive. The jsons are read when an item is used, the latest few are kept.
    Raises ClipDataError.
    """

    exhaustive = False
    head = ""

    def __init__(
        self, root: Path, *, name: str = "sav", automatic: bool = False, exclude: Collection[str] = ()
    ) -> None:
        self.name = name
        kinds = ("manual", "auto") if automatic else ("manual",)
        found: dict[Path, list[Path]] = {}
        for kind in kinds:
            for path in sorted(Path(root).rglob(f"*_{kind}.json")):
                found.setdefault(path.with_name(path.name.removesuffix(f"_{kind}.json")), []).append(path)
        self._items = sorted((stem, jsons) for stem, jsons in found.items() if stem.name not in exclude)
        if not self._items:
            raise ClipDataError(f"{root}: no *_manual.json of SA-V is left to train on")
        self._masks: OrderedDict[int, list[list[Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, item: int) -> str:
        return self._items[item][0].name

    def _masklets(self, item: int) -> list[list[Any]]:
        """Run lengths per annotated frame and masklet."""
        if item in self._masks:
            self._masks.move_to_end(item)
            return self._masks[item]
        frames: list[list[Any]] = []
        for path in self._items[item][1]:
            try:
                masklet = json.loads(CACHE.read(path))["masklet"]
                rows = [list(row) for row in masklet]
            except (ValueError, KeyError, TypeError) as error:
                raise ClipDataError(f"{path}: malformed masklets ({error!r})") from error
            if frames and len(rows) != len(frames):
                raise ClipDataError(f"{path}: {len(rows)} annotated frames, the manual file has {len(frames)}")
            frames = [old + new for old, new in zip(frames, rows, strict=True)] if frames else rows
        if not frames or len({len(row) for row in frames}) != 1:
            raise ClipDataError(f"{self._items[item][1][0]}: frames list {sorted({len(r) for r in frames})} masklets")
        self._masks[item] = frames
        if len(self._masks) > 8:
            self._masks.popitem(last=False)
        return frames

    def length(self, item: int) -> int:
        return len(self._masklets(item))

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Annotated frames (24 Hz index = 4 x frame) in the given order. Raises ClipDataError."""
        check_frames(self, item, frames)
        rows = self._masklets(item)
        count = min(len(rows[0]), MAX_OBJECTS)
        images = self._images(item, [STEP * frame for frame in frames])
        bits = []
        for image, frame in zip(images, frames, strict=True):
            labels = np.zeros((*image.shape[:2], channels(count)), np.int32)
            for index, segmentation in enumerate(rows[frame][:count]):
                if segmentation:
                    where = f"{self._items[item][1][0]}, frame {frame}"
                    set_object(labels, index, mask_of(segmentation, image.shape[0], image.shape[1], where))
            bits.append(labels)
        return RawClip(images, bits, np.full(count, -1, np.int64))

    def _images(self, item: int, numbers: list[int]) -> list[np.ndarray]:
        stem = self._items[item][0]
        if stem.is_dir():
            return [read_rgb(stem / f"{number:05d}.jpg") for number in numbers]
        path = stem.with_suffix(".mp4")
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise ClipDataError(f"{path}: cannot be opened as a video")
            # one seek, then decode onwards: seeking for each frame decodes from a key frame every time
            capture.set(cv2.CAP_PROP_POS_FRAMES, min(numbers))
            found: dict[int, np.ndarray] = {}
            for number in range(min(numbers), max(numbers) + 1):
                if not capture.grab():
                    raise ClipDataError(f"{path}: frame {number} cannot be decoded")
                if number in numbers:
                    image = capture.retrieve()[1]
                    found[number] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            return [found[number] for number in numbers]
        finally:
            capture.release()


class MaskFolderReader:
    """`JPEGImages_24fps/<video>/<frame>.jpg` and `Annotations_6fps/<video>/<object>/<frame>.png` (binary masks).

    A frame counts when some object has a mask file for it. Class-agnostic, not exhaustive. Raises ClipDataError.
    """

    exhaustive = False
    head = ""

    def __init__(self, root: Path, *, name: str = "sav_val", exclude: Collection[str] = ()) -> None:
        self.name = name
        self.images, self.labels = Path(root) / "JPEGImages_24fps", Path(root) / "Annotations_6fps"
        refused = HELD_OUT["davis"] | frozenset(exclude)
        try:
            videos = sorted(p for p in self.labels.iterdir() if p.is_dir() and p.name not in refused)
            self._items = []
            for video in videos:
                objects = sorted(path for path in video.iterdir() if path.is_dir())[:MAX_OBJECTS]
                frames = sorted({mask.stem for folder in objects for mask in folder.glob("*.png")})
                if frames:
                    self._items.append((video.name, objects, frames))
        except OSError as error:
            raise ClipDataError(f"{error.filename}: {error.strerror or error}") from error
        if not self._items:
            raise ClipDataError(f"{self.labels}: no video is left to train on")

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, item: int) -> str:
        return self._items[item][0]

    def length(self, item: int) -> int:
        return len(self._items[item][2])

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Frames in the given order; an object without a mask file is absent. Raises ClipDataError."""
        check_frames(self, item, frames)
        video, objects, names = self._items[item]
        images: list[np.ndarray] = []
        bits: list[np.ndarray] = []
        for frame in frames:
            image_path = self.images / video / f"{names[frame]}.jpg"
            image = read_rgb(image_path)
            check_one_size(image_path, image, images)
            labels = np.zeros((*image.shape[:2], channels(len(objects))), np.int32)
            for index, folder in enumerate(objects):
                path = folder / f"{names[frame]}.png"
                if path.exists():
                    mask = read_labels(path)
                    check_sizes(str(path), image, mask)
                    set_object(labels, index, mask)
            images.append(image)
            bits.append(labels)
        return RawClip(images, bits, np.full(len(objects), -1, np.int64))


def sav(root: Path, *, name: str = "sav", exclude: Collection[str] = ()) -> SavReader | MaskFolderReader:
    """Either official layout under `root`. Raises ClipDataError."""
    if (Path(root) / "Annotations_6fps").is_dir():
        return MaskFolderReader(root, name=name, exclude=exclude)
    return SavReader(root, name=name, exclude=exclude)
