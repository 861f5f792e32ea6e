"""What a stream refuses before it changes anything."""

import os
from pathlib import Path

import numpy as np

from ausm.errors import AusmError, EmptyMaskError, ImageError, SizeError

MIN_SIDE = 8  # pixels: one token


def check_image(image: np.ndarray) -> None:
    """Raises ImageError unless `image` is (H, W, 3) uint8 with both sides at least 8 pixels."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"an image is (H, W, 3) uint8 RGB, got {what}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ImageError(f"image {image.shape[0]}x{image.shape[1]}: the smallest is {MIN_SIDE}x{MIN_SIDE}")


def check_masks(masks: np.ndarray) -> np.ndarray:
    """Prompt masks as (n, H, W) bool; of integers, whatever is not 0 is object.

    Raises SizeError for another shape, AusmError for values that say neither yes nor no, EmptyMaskError for a mask
    without a pixel.
    """
    if not isinstance(masks, np.ndarray) or masks.ndim != 3 or len(masks) == 0:
        what = f"{masks.shape}" if isinstance(masks, np.ndarray) else type(masks).__name__
        raise SizeError(f"masks are (n, H, W) bool with n >= 1, got {what}")
    if masks.dtype.kind not in "buif":
        raise AusmError(f"masks are bool, integers or floats of 0 and 1, got {masks.dtype}")
    if masks.dtype.kind == "f":  # a soft mask is above 0 nearly everywhere: taken as bool it were the whole image
        soft = masks[(masks != 0) & (masks != 1)]
        if soft.size:
            numbers = f"{soft.size} of {masks.size} values are neither 0 nor 1, {soft.min():g} to {soft.max():g}"
            raise AusmError(f"masks of {masks.dtype}: {numbers}; compare them with a threshold")
    masks = masks.astype(bool)
    empty = [i for i, m in enumerate(masks) if not m.any()]
    if empty:
        raise EmptyMaskError(f"masks {empty} of {len(masks)} have no object pixel")
    return masks


def check_out_folder(out: Path) -> None:
    """Raises AusmError unless `out` is a folder to write in or can be made one. Makes nothing itself."""
    try:
        nearest = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    except OSError as error:
        raise AusmError(f"--out {out}: {error.strerror}") from error
    if not nearest.is_dir():
        raise AusmError(f"--out {out}: {nearest} is a file, a folder is needed")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise AusmError(f"--out {out}: no permission to write in {nearest}")


def check_size(what: str, size: tuple[int, int], whose: str, expected: tuple[int, int]) -> None:
    """Raises SizeError with both sizes unless they agree."""
    if size != expected:
        raise SizeError(f"{what} {size[0]}x{size[1]}, {whose} {expected[0]}x{expected[1]}")
