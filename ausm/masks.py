"""Binary masks as run lengths, boxes, label maps and palette PNG files.

Shapes: a mask is (H, W) bool, a label map (H, W) unsigned integers with 0 = background. Boxes are in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ausm.errors import AusmError, EmptyMaskError, ImageError, SizeError

MAX_PIXELS = 1 << 28  # 268 megapixels: what a decoder may allocate on the word of a message
MAX_LABEL = 65535  # a label map is 16 bits wide
MAX_PALETTE = 255  # a palette PNG is 8 bits wide
DISC = 24  # a point becomes a disc of radius min(height, width) / DISC pixels
MAX_OBJECTS = 100  # of one prompt PNG; more values are the soft edge of a mask, not objects


class Box(NamedTuple):
    """The rectangle of pixels x..x+width-1, y..y+height-1; all zero for an empty mask."""

    x: int
    y: int
    width: int
    height: int


def _davis_palette() -> np.ndarray:
    """(256, 3) uint8: bits k of R, G, B of colour i are bits 3j, 3j+1, 3j+2 of i, j = 7 - k (PASCAL VOC formula)."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for j in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * j + channel)) & 1) << (7 - j)).astype(np.uint8)
    return palette


PALETTE = _davis_palette()
PALETTE.setflags(write=False)


def _as_mask(mask: np.ndarray) -> np.ndarray:
    """Checks (H, W) bool; returns it contiguous."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        found = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise SizeError(f"a mask is a (H, W) array of bool, this one is {found}")
    return np.ascontiguousarray(mask)


def box_of(mask: np.ndarray) -> Box:
    """The smallest box around the true pixels of a (H, W) bool mask; Box(0, 0, 0, 0) when there is none."""
    mask = _as_mask(mask)
    if mask.size == 0:
        return Box(0, 0, 0, 0)
    return Box(*(int(v) for v in cv2.boundingRect(mask.view(np.uint8))))


def encode_rle(mask: np.ndarray) -> tuple[Box, list[int]]:
    """Run lengths of a (H, W) bool mask inside its own box.

    Returns the box and row-major runs that alternate background, object, ..., the first one background (0 when the
    corner of the box is object) and all others positive; their sum is width * height. Empty mask: Box(0, 0, 0, 0), [].
    """
    mask = _as_mask(mask)
    box = box_of(mask)
    if box.width == 0:
        return box, []
    flat = mask[box.y : box.y + box.height, box.x : box.x + box.width].ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    bounds = np.concatenate(([-1], edges, [flat.size - 1]))
    runs = np.diff(bounds).tolist()
    return box, [0, *runs] if flat[0] else runs


def _check_runs(runs: Sequence[int] | np.ndarray, area: int) -> np.ndarray:
    """Validates the runs of a box of `area` pixels; returns them as (R,) int64."""
    if len(runs) > area + 1:
        raise AusmError(f"{len(runs)} runs for a box of {area} pixels")
    values = np.asarray(runs)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise AusmError(f"runs must be a list of integers, found {values.dtype} of shape {values.shape}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > area:
        raise AusmError(f"a run of {low if low < 0 else high} pixels in a box of {area} pixels")
    if (values[1:] == 0).any():
        raise AusmError(f"run {1 + int(np.argmin(values[1:]))} is 0: only the first one may be")
    values = values.astype(np.int64)
    total = int(values.sum())  # at most (area + 1) * area < 2**57: cannot overflow
    if total != area:
        raise AusmError(f"the runs sum to {total}, the box has {area} pixels")
    return values


def decode_rle(box: Sequence[int], runs: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    """The (height, width) bool mask of runs inside a box, the inverse of `encode_rle`.

    No runs means an empty mask, whatever the box. Everything is checked before the mask is allocated; raises
    AusmError with the numbers for a box outside the image, a negative, zero (but the first) or too long run, a sum that
    is not the area of the box, and an image of no or more than MAX_PIXELS pixels.
    """
    x, y, box_width, box_height = (int(v) for v in box)
    height, width = int(height), int(width)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise AusmError(f"an image of {height}x{width} pixels (height x width): must be 1 to {MAX_PIXELS} pixels")
    if min(x, y, box_width, box_height) < 0 or x + box_width > width or y + box_height > height:
        box_words = f"box x={x} y={y} width={box_width} height={box_height}"
        raise AusmError(f"{box_words} is outside the image of {height}x{width} pixels (height x width)")
    if len(runs) == 0:
        return np.zeros((height, width), np.bool_)
    values = _check_runs(runs, box_width * box_height)
    mask = np.zeros((height, width), np.bool_)
    is_object = np.arange(values.size) % 2 == 1
    mask[y : y + box_height, x : x + box_width] = np.repeat(is_object, values).reshape(box_height, box_width)
    return mask


def label_map(
    masks: Sequence[np.ndarray] | np.ndarray,
    values: Sequence[int],
    scores: Sequence[float],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """One value per pixel: (H, W) uint16 from n masks (H, W) bool; where masks overlap the higher score wins.

    Equal scores: the earlier mask wins. `size` (H, W) is needed when there is no mask. Raises SizeError for masks of
    several sizes, AusmError for a value outside 1..65535.
    """
    if not len(masks) == len(values) == len(scores):
        raise SizeError(f"{len(masks)} masks, {len(values)} values, {len(scores)} scores")
    if size is None:
        if len(masks) == 0:
            raise SizeError("no masks and no size: a label map of what size?")
        size = masks[0].shape
    labels = np.zeros(size, np.uint16)
    for i in sorted(range(len(masks)), key=lambda k: (scores[k], -k)):
        if not 1 <= values[i] <= MAX_LABEL:
            raise AusmError(f"label {values[i]} is outside 1..{MAX_LABEL}")
        mask = _as_mask(masks[i])
        if mask.shape != labels.shape:
            sizes = f"{mask.shape[0]}x{mask.shape[1]}, the label map {labels.shape[0]}x{labels.shape[1]}"
            raise SizeError(f"mask {i} is {sizes}")
        labels[mask] = values[i]
    return labels


def write_palette_png(path: str | Path, labels: np.ndarray) -> None:
    """Writes a (H, W) label map as an 8-bit PNG with the DAVIS palette. Raises AusmError for a label above 255."""
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise SizeError(f"a label map is a (H, W) array of integers, this one is {labels.dtype} of {labels.shape}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= MAX_PALETTE:
        raise AusmError(f"labels {labels.min()}..{labels.max()}: a palette PNG holds 0..{MAX_PALETTE}")
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(PALETTE.tobytes())  # turns the grey image into one of indices
    image.save(path, format="PNG", compress_level=3)  # a third of the default's time, a tenth larger


def read_palette_png(path: str | Path) -> np.ndarray:
    """(H, W) uint8 indices of a palette or 8-bit grey PNG (a 1-bit PNG gives 0 and 1).

    Raises ImageError for a missing or broken file and for colour or 16-bit images, which hold no indices.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise ImageError(f"{path}: a mask is a palette or 8-bit grey PNG, this one has mode {image.mode}")
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, AusmError):
            raise
        raise ImageError(f"{path}: not a readable mask image ({error})") from error


def read_prompt_png(path: str | Path) -> tuple[np.ndarray, list[int]]:
    """Objects drawn in a PNG: masks (n, H, W) bool and their values, ascending.

    A binary image (only 0 and 255) holds one object of value 1. Raises EmptyMaskError when all pixels are 0, AusmError
    for more than MAX_OBJECTS values.
    """
    labels = read_palette_png(path)
    values = [int(v) for v in np.unique(labels) if v]
    if not values:
        raise EmptyMaskError(f"{path}: no object, all {labels.size} pixels are 0")
    if len(values) > MAX_OBJECTS:
        many = f"{len(values)} different values: each is an object"
        raise AusmError(f"{path}: {many}. Is this a soft mask? Make it 0 and 255")
    masks = np.stack([labels == v for v in values])
    return masks, [1] if values == [MAX_PALETTE] else values


def discs(points: Sequence[tuple[int, int]], labels: Sequence[int], height: int, width: int) -> np.ndarray:
    """(H, W) bool: a filled disc at each point (x, y) on the object, less the discs of the points of label 0."""
    canvas = np.zeros((height, width), np.uint8)
    radius = max(2, min(height, width) // DISC)
    for wanted in (1, 0):  # what is not the object is cut out last
        for (x, y), label in zip(points, labels, strict=True):
            if bool(label) == bool(wanted):
                cv2.circle(canvas, (int(x), int(y)), radius, wanted, cv2.FILLED)
    return canvas.astype(bool)
