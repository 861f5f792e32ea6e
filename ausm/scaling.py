"""Inference scaling: longer inputs for better masks of the frames that count (section 3.4, appendix eq. 3).

Pure functions: frames -> (frames to step, indices of the outputs to keep, one for each input frame, in order). Run a
stream over the frames in one go: its ids persist from the first pass to the kept one. `ausm eval` uses them as well.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np

WINDOW = 0.9  # side of a traversal window relative to the image (appendix)


Frame = TypeVar("Frame")


class Plan(NamedTuple, Generic[Frame]):
    """What to step and what to keep of it."""

    frames: list[Frame]  # (H, W, 3) uint8 each, or whatever stands for a frame
    keep: list[int]  # indices into frames


def image_repeat(image: np.ndarray, n: int = 3) -> Plan[np.ndarray]:
    """One image shown n times: (I, ..., I), the last output counts. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError(f"an image is shown {n} times, at least once is needed")
    return Plan([image] * n, [n - 1])


def video_fbf(frames: Sequence[Frame]) -> Plan[Frame]:
    """Forward, backward, forward: (I_1..I_T, I_{T-1}..I_1, I_2..I_T), 3 T - 2 frames, the last T outputs count.

    Numbers or paths will do for frames that are too many to hold. With one frame there is nothing to go back to: it is
    shown once. Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("0 frames given, at least one is needed")
    T = len(frames)
    order = [*range(T), *range(T - 2, -1, -1), *range(1, T)]
    return Plan([frames[t] for t in order], list(range(len(order) - T, len(order))))


def spatial_traversal(image: np.ndarray, window: float = WINDOW) -> Plan[np.ndarray]:
    """(I, UL, UR, BR, BL, I): four corner windows between two whole views, the last output counts (eq. 3).

    Each window is resized to the size of the image: the state is per pixel, so all frames must have one shape.
    """
    H, W = image.shape[:2]
    h, w = max(round(H * window), 1), max(round(W * window), 1)
    corners = ((0, 0), (0, W - w), (H - h, W - w), (H - h, 0))
    views = [cv2.resize(image[y : y + h, x : x + w], (W, H), interpolation=cv2.INTER_LINEAR) for y, x in corners]
    return Plan([image, *views, image], [5])
