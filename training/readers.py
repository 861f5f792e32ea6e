"""What a reader of a dataset hands over, and the helpers the readers share.

Labels travel as bit maps: an (H, W, C) int32 image whose bit `i % 31` of channel `i // 31` says "object i is here".
So overlapping objects keep their full masks and one nearest-neighbour warp moves all of them.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from training.clips import ClipDataError

BITS = 31  # objects per int32 channel, the sign bit stays free
MAX_OBJECTS = 4 * BITS  # OpenCV warps at most 4 channels

# The development set, by item name (the exclusion never depends on a configuration file): nothing may train on it.
# mallard-fly is no development sequence, it resembles mallard-water too much.
HELD_OUT: dict[str, frozenset[str]] = {
    "davis": frozenset(
        ("car-turn", "mallard-water", "lucia", "rhino", "horsejump-low", "soccerball", "mallard-fly")
    ),
    # the 50 lowest image ids of the small COCO set
    "coco": frozenset(
        f"{i:012d}"
        for i in (
            9, 25, 30, 34, 36, 42, 49, 61, 64, 71, 72, 73, 74, 77, 78, 81, 86, 89, 92, 94, 109, 110, 113, 127, 133,
            136, 138, 139, 143, 144, 149, 151, 164, 194, 196, 201, 208, 250, 257, 283, 294, 307, 309, 315, 321, 322,
            326, 328, 332, 338,
        )
    ),
}  # fmt: skip


def is_development_photo(path: Path) -> bool:
    """Whether this is an image of the development set, by its name; COCO_train2014_000000000009.jpg is one, too."""
    return path.stem[-12:] in HELD_OUT["coco"] or path.parent.name in HELD_OUT["davis"]


class RawClip(NamedTuple):
    """Frames of one item as stored. A still is a clip of one frame."""

    images: list[np.ndarray]  # T x (H, W, 3) uint8 RGB, one size
    bits: list[np.ndarray]  # T x (H, W, C) int32
    class_ids: np.ndarray  # (N,) int64


class Reader(Protocol):
    """A dataset: items (images or videos) with annotated frames."""

    name: str
    exhaustive: bool
    head: str

    def __len__(self) -> int: ...

    def item_name(self, item: int) -> str: ...

    def length(self, item: int) -> int:
        """Number of annotated frames; 1 = still image."""
        ...

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """The frames with these indices, in this order. Raises ClipDataError that names the file."""
        ...


@runtime_checkable
class KnowsAbsences(Protocol):
    """A reader that knows, without reading frames, when an object is out of sight."""

    def absence(self, item: int) -> tuple[int, int] | None:
        """Frames [start, stop) without an object that is seen before and after; None where it knows of none."""
        ...


class ByteCache:
    """The encoded bytes of files read before, up to a limit: small datasets then never touch the disk again."""

    def __init__(self, limit: int = 512 << 20) -> None:
        self.limit = limit
        self.used = 0
        self._files: OrderedDict[str, bytes] = OrderedDict()

    def read(self, path: str | Path) -> bytes:
        """Content of the file; raises ClipDataError."""
        key = os.fspath(path)
        data = self._files.get(key)
        if data is not None:
            self._files.move_to_end(key)
            return data
        try:
            data = Path(key).read_bytes()
        except OSError as error:
            raise ClipDataError(f"{key}: {error.strerror or error}") from error
        self._files[key] = data
        self.used += len(data)
        while self.used > self.limit and self._files:
            self.used -= len(self._files.popitem(last=False)[1])
        return data


CACHE = ByteCache()


def read_rgb(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises ClipDataError."""
    return _decode(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def read_labels(path: str | Path) -> np.ndarray:
    """(H, W) uint8 label map of a grey or palette PNG, palette indices kept. Raises ClipDataError."""
    data = CACHE.read(path)
    if _is_palette_png(data):
        return _palette_indices(path, data)
    labels = _decode(path, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ClipDataError(f"{path}: a label map is 8-bit grey or palette, this is {labels.dtype} {labels.shape}")
    return labels


def _decode(path: str | Path, flags: int) -> np.ndarray:
    data = np.frombuffer(CACHE.read(path), np.uint8)
    image = None
    if data.size:
        try:
            image = cv2.imdecode(data, flags)
        except cv2.error:
            image = None
    if image is None:
        raise ClipDataError(f"{path}: not a readable image ({data.size} bytes)")
    return image


def _is_palette_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[25] == 3


def _palette_indices(path: str | Path, data: bytes) -> np.ndarray:
    # OpenCV expands palettes to colours; Pillow keeps the indices. DAVIS, MOSE and YouTube-VOS all need the indices.
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise ClipDataError(f"{path}: {error}") from error


def channels(objects: int) -> int:
    """int32 channels needed for this many objects."""
    return max(1, -(-objects // BITS))


def set_object(bits: np.ndarray, index: int, mask: np.ndarray) -> None:
    """Adds object `index` to the (H, W, C) bit map where the (H, W) mask is non-zero."""
    bits[..., index // BITS] |= np.where(mask, np.int32(1 << (index % BITS)), np.int32(0))


def get_object(bits: np.ndarray, index: int) -> np.ndarray:
    """(..., H, W) bool: where object `index` of the (..., H, W, C) bit map is."""
    found: np.ndarray = (bits[..., index // BITS] & np.int32(1 << (index % BITS))) != 0
    return found


def bits_of_labels(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """(..., H, W, C) int32 from an (..., H, W) uint8 label map; object i is where the label equals values[i]."""
    table = np.zeros((256, channels(len(values))), np.int32)
    for index, value in enumerate(values):
        table[value, index // BITS] = 1 << (index % BITS)
    bits: np.ndarray = table[labels]
    return bits


def check_frames(reader: Reader, item: int, frames: Sequence[int]) -> None:
    """Raises ClipDataError on indices outside the item."""
    count = reader.length(item)
    if not frames or min(frames) < 0 or max(frames) >= count:
        raise ClipDataError(f"{reader.name}/{reader.item_name(item)}: frames {list(frames)} of {count}")


def check_one_size(path: Path, image: np.ndarray, before: Sequence[np.ndarray]) -> None:
    """Raises ClipDataError when a frame differs in size from those of the clip before it."""
    if before and image.shape != before[0].shape:
        raise ClipDataError(f"{path}: {image.shape[:2]}, the frames before have {before[0].shape[:2]}")


def check_sizes(name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Raises ClipDataError when an image and its label map differ in size."""
    if image.shape[:2] != labels.shape[:2]:
        raise ClipDataError(f"{name}: image {image.shape[:2]}, labels {labels.shape[:2]}: their sizes differ")
