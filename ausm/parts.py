"""A discovered object is one thing in one place: what its mask shows elsewhere is a look-alike, and left to be found.

Not in the paper. Among things that look alike one mask often covers several, far apart; marked once, they stay one
object for good. Measured in docs/checkpoints/findings.md. Prompted objects are what their prompt shows and stay whole.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

CELL = 4  # pixels of the inner image to a logit
REACH = 16  # pixels of the inner image that an object's edge may move between two frames


def keep_own_parts(
    logits: Tensor, rows: Sequence[int], gap: int, before: Tensor | None = None, taken: Tensor | None = None
) -> Tensor:
    """Logits (n, H, W) -> the same, or a copy in which those of `rows` are negative on parts that are not their own.

    Parts at most about `gap` pixels of the inner image apart (in steps of 8) belong together; 0 leaves all as it is.
    before: (n, h, w) bool at half the resolution, the marks of the frame before: what touches them, give or take REACH,
    is kept. Where nothing does, and for new objects (None), the part with the largest sum of logits is, outside of
    taken (H, W) bool, the pixels of known objects, if it has any there.
    """
    if gap <= 0 or not rows:
        return logits
    logits = logits.clone()
    planes = logits[list(rows)].float().cpu().numpy()  # one copy from a GPU, not one an object
    marks = None if before is None else before[list(rows)].cpu().numpy()
    known = None if taken is None else taken.cpu().numpy()
    for n, i in enumerate(rows):
        own = _own(planes[n], gap, None if marks is None else marks[n], known)
        if own is not None:
            logits[i] = torch.where(torch.from_numpy(own).to(logits.device), logits[i], -logits[i].abs())
    return logits


def _own(values: np.ndarray, gap: int, before: np.ndarray | None, taken: np.ndarray | None) -> np.ndarray | None:
    """(H, W) bool that covers the parts to keep; None: there is one part at most."""
    mask = values > 0
    if not mask.any():
        return None
    count, groups = cv2.connectedComponents(_widen(mask, -(-gap // (2 * CELL))), connectivity=8)
    if count <= 2:  # background and one
        return None
    own = np.zeros(count, bool)
    if before is not None and before.any():
        own[groups[mask & _widen(before.repeat(2, 0).repeat(2, 1), REACH // CELL).astype(bool)]] = True
    if not own.any():
        free = mask if taken is None else mask & ~taken
        where = free if free.any() else mask  # else a duplicate, which is told by its own place
        own[np.bincount(groups[where], values[where], count).argmax()] = True
    return own[groups]


def _widen(mask: np.ndarray, by: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8))
