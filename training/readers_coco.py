"""COCO instance annotations (polygons, plain and compressed run lengths): stills for pseudo-videos."""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.clips import ClipDataError
from training.packed import Packed
from training.readers import MAX_OBJECTS, RawClip, channels, check_frames, is_development_photo, read_rgb, set_object

log = logging.getLogger(__name__)

FINE = 4


def load_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a file that must hold these keys. Raises ClipDataError."""
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise ClipDataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ClipDataError(f"{path}: no JSON: {error}") from error
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise ClipDataError(f"{path}: lacks {missing}")
    return data


def string_runs(text: str | bytes) -> np.ndarray:
    """Run lengths of a compressed COCO mask: 5 bits a character from '0', low bits first, delta to the run two back."""
    codes = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    runs: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # last character of this number
            if code & 16:
                value -= 1 << shift  # sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return np.asarray(runs, np.int64)


def decode_runs(segmentation: dict[str, Any], name: str) -> np.ndarray:
    """(H, W) bool of a COCO run-length object: column-major runs, background first. Raises ClipDataError."""
    try:
        height, width = (int(v) for v in segmentation["size"])
        counts = segmentation["counts"]
        runs = string_runs(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise ClipDataError(f"{name}: malformed run-length mask ({error!r})") from error
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != height * width:
        raise ClipDataError(f"{name}: runs sum to {int(runs.sum())}, mask is {height}x{width}")
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(width, height).T


def _fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Sets the pixels of a (H, W) uint8 mask whose middle lies inside the polygon (P, 2) of x, y in pixel corners."""
    height, width = mask.shape
    x0, y0 = np.clip(np.floor(points.min(axis=0)).astype(int), 0, (width, height))
    x1, y1 = np.clip(np.ceil(points.max(axis=0)).astype(int), 0, (width, height))
    if x1 <= x0 or y1 <= y0:
        return
    # OpenCV also paints the outline, half a pixel too far out: on a grid FINE times finer that hardly matters
    fine = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE), np.uint8)
    moved = (points - 0.5 - (x0, y0)) * FINE
    cv2.fillPoly(fine, [np.round(moved * 16).astype(np.int32)[:, None]], 1, shift=4)
    mask[y0:y1, x0:x1] |= fine[::FINE, ::FINE]


def mask_of(segmentation: Any, height: int, width: int, name: str) -> np.ndarray:
    """(H, W) bool/uint8 of any COCO segmentation (list of polygons or run lengths). Raises ClipDataError."""
    if isinstance(segmentation, dict):
        mask = decode_runs(segmentation, name)
        if mask.shape != (height, width):
            raise ClipDataError(f"{name}: mask {mask.shape}, image {(height, width)}")
        return mask
    mask = np.zeros((height, width), np.uint8)
    try:
        for ring in segmentation:
            _fill(mask, np.asarray(ring, np.float64).reshape(-1, 2))  # one at a time: parts of one object add up
    except (TypeError, ValueError, cv2.error) as error:
        raise ClipDataError(f"{name}: malformed polygon ({error})") from error
    return mask


class CocoReader:
    """COCO json over an image folder. Items are named by the file stem ("000000000139").

    `classes` False drops the categories (head ""): for subsets that label one kind of object only.
    `exclude` adds names to the held-out ones, which are never read. When `exhaustive`, images with crowd regions are
    left out (their single objects carry no labels), and images without any object stay, as pure background. `crowded`
    reads what was left out, and nothing else: those images show many objects that do carry a label.
    Raises ClipDataError for a missing or malformed json, and for images that are to be both.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        *,
        name: str = "coco",
        exhaustive: bool = True,
        classes: bool = True,
        exclude: Collection[str] = (),
        crowded: bool = False,
    ) -> None:
        if crowded and exhaustive:
            raise ClipDataError(f"{name}: not every object of a crowd has a label, so crowded needs exhaustive = false")
        self.name, self.exhaustive, self.head = name, exhaustive, "coco" if classes else ""
        self.images = Path(images)
        data = load_json(Path(annotations), ("images", "annotations", "categories"))
        self.category_names: tuple[str, ...] = ()
        try:
            categories = sorted(data["categories"], key=lambda category: category["id"])
            index_of = {category["id"]: index for index, category in enumerate(categories)}
            by_image: dict[int, list[dict[str, Any]]] = {}
            crowds: set[int] = set()
            for annotation in data["annotations"]:
                if annotation.get("iscrowd", 0):
                    crowds.add(annotation["image_id"])
                else:
                    by_image.setdefault(annotation["image_id"], []).append(annotation)
            if classes:
                self.category_names = tuple(str(category["name"]) for category in categories)
            items: list[tuple[str, list[tuple[int, Any]]]] = []
            left_out = 0
            for image in sorted(data["images"], key=lambda image: image["id"]):
                file = Path(image["file_name"])
                if is_development_photo(file) or file.stem in exclude:
                    continue
                has_crowd = image["id"] in crowds
                if (exhaustive and has_crowd) or (crowded and not has_crowd):
                    left_out += 1
                    continue
                found = by_image.get(image["id"], [])
                if not found and not exhaustive:
                    continue
                found = sorted(found, key=lambda a: (-a["area"], a["id"]))[:MAX_OBJECTS]  # largest first
                objects = [(index_of[a["category_id"]] if classes else -1, a["segmentation"]) for a in found]
                items.append((image["file_name"], objects))
        except (KeyError, TypeError) as error:
            raise ClipDataError(f"{annotations}: malformed COCO annotations ({error!r})") from error
        if not items:
            raise ClipDataError(f"{annotations}: no image is left to train on")
        if exhaustive and left_out:
            log.info(
                "source %s: %d of %d images have crowd regions and are left out; a second source with crowded = true "
                "and exhaustive = false reads them", name, left_out, left_out + len(items),
            )  # fmt: skip
        self._files = [file for file, _ in items]
        self._objects = Packed(objects for _, objects in items)

    def __len__(self) -> int:
        return len(self._files)

    def item_name(self, item: int) -> str:
        return Path(self._files[item]).stem

    def length(self, item: int) -> int:
        return 1

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """One image; frames must be zeros. Raises ClipDataError."""
        check_frames(self, item, frames)
        objects = self._objects[item]
        path = self.images / self._files[item]
        image = read_rgb(path)
        height, width = image.shape[:2]
        bits = np.zeros((height, width, channels(len(objects))), np.int32)
        for index, (_, segmentation) in enumerate(objects):
            set_object(bits, index, mask_of(segmentation, height, width, str(path)))
        class_ids = np.array([class_id for class_id, _ in objects], np.int64)
        return RawClip([image] * len(frames), [bits] * len(frames), class_ids)
