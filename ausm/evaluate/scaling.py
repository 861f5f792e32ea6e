"""Inference scaling (section 3 of the paper): show a model the same content again, keep the output of the last showing.

Pure functions from frames to frames; images are (H, W, 3) uint8.
"""

from collections.abc import Sequence

import cv2
import numpy as np

WINDOW = 0.9  # side of a traversal window, as a fraction of the image


def image_repeat(image: np.ndarray, times: int) -> list[np.ndarray]:
    """The image `times` times; the last showing counts."""
    return [image] * max(1, times)


def spatial_traversal(image: np.ndarray) -> list[np.ndarray]:
    """The image, its upper left, upper right, lower right and lower left 90 % windows, the image again.

    Windows are resized to the full size, because the state has one cell per pixel; the last showing counts.
    """
    height, width = image.shape[:2]
    h, w = max(1, round(WINDOW * height)), max(1, round(WINDOW * width))
    corners = [(0, 0), (0, width - w), (height - h, width - w), (height - h, 0)]
    windows = [cv2.resize(image[y : y + h, x : x + w], (width, height)) for y, x in corners]
    return [image, *windows, image]


def video_repeat(frames: int) -> tuple[list[int], slice]:
    """Forward, backward, forward through T frames: indices of the 3T - 2 showings, and those that count (the last T).

    The turning frames are shown once each: 0 .. T-1, T-2 .. 0, 1 .. T-1.
    """
    order = [*range(frames), *range(frames - 2, -1, -1), *range(1, frames)]
    return order, slice(len(order) - frames, None)


def image_showings(image: np.ndarray, repeat: int = 1, traversal: bool = False) -> Sequence[np.ndarray]:
    """The frames shown for one image; with `traversal` the windows come between, however often it is repeated."""
    return spatial_traversal(image) if traversal else image_repeat(image, repeat)
