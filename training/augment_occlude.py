"""Occluders: something that covers one object completely for some frames and then gives it free again."""

import cv2
import numpy as np

from training.augment_motion import absent_span
from training.augment_paste import Bank, CutOut, Layer, fit, layer_maps, recolour
from training.readers import get_object


def boxes_over_time(bits: list[np.ndarray], index: int) -> np.ndarray:
    """(T, 4) float x0, y0, x1, y1 of one object's visible part (1 px too coarse is fine); NaN where it is absent."""
    boxes = np.full((len(bits), 4), np.nan)
    for frame, labels in enumerate(bits):
        mask = get_object(labels[::2, ::2], index)
        columns = np.flatnonzero(mask.any(axis=0))
        if len(columns):
            rows = np.flatnonzero(mask.any(axis=1))
            boxes[frame] = 2 * columns[0], 2 * rows[0], 2 * columns[-1] + 2, 2 * rows[-1] + 2
    return boxes


def _filled(boxes: np.ndarray) -> np.ndarray:
    """Absent frames take the box of the nearest seen frame before (or after, at the start)."""
    seen = np.flatnonzero(~np.isnan(boxes[:, 0]))
    nearest = seen[np.clip(np.searchsorted(seen, np.arange(len(boxes)), side="right") - 1, 0, None)]
    return boxes[nearest]


def slab(rng: np.random.Generator, bank: Bank, height: int, width: int) -> CutOut:
    """A textured board, pole or blob that is no labelled object: a wall edge, a tree trunk, a bush."""
    alpha = np.zeros((height, width), np.float32)
    form = rng.random()
    if form < 0.6:
        alpha[2:-2, 2:-2] = 1.0
    else:
        corners = (np.arange(48) + rng.uniform(-0.3, 0.3, 48)) * (2 * np.pi / 48)
        radius = 1.0 - rng.uniform(0, 0.06, 48)
        # superellipse: covers a box nearly, without straight edges
        cos, sin = np.cos(corners), np.sin(corners)
        reach = radius / (np.abs(cos) ** 6 + np.abs(sin) ** 6) ** (1 / 6)
        points = np.stack([(cos * reach + 1) / 2 * (width - 5) + 2, (sin * reach + 1) / 2 * (height - 5) + 2], axis=1)
        cv2.fillPoly(alpha, [np.round(points).astype(np.int32)], 1.0)
    alpha = np.clip(cv2.GaussianBlur(alpha, (0, 0), 1.0), 0, 1)
    return recolour(CutOut(bank.texture(rng, height, width), alpha, -1, ""), rng, 0.6)


def occluder(
    rng: np.random.Generator, bank: Bank, boxes: np.ndarray, size: tuple[int, int], index: int
) -> Layer | None:
    """A layer that hides the object with these (T, 4) boxes during a span of frames; None if it is too large to hide.

    `index` is the bit of the occluder in case it is a real object, -1 for none; a slab carries no label.
    """
    frames = len(boxes)
    if frames < 3 or np.isnan(boxes[0, 0]):
        return None
    boxes = _filled(boxes)
    height, width = size
    first, last = absent_span(rng, frames)
    hidden = boxes[first:last]
    extent = (hidden[:, 2:] - hidden[:, :2]).max(axis=0)  # (w, h)
    if extent[0] > 0.5 * width or extent[1] > 0.7 * height:
        return None
    cut: CutOut | None = None
    if rng.random() < 0.4:
        cut = bank.draw(rng)
    if cut is not None:
        rows, columns = cut.alpha.shape
        # a cut-out fills its box only partly: it must be clearly larger than what it hides
        scale = 1.35 * max(extent[0] / columns, extent[1] / rows)
        too_large = scale * rows > 1.3 * height or scale * columns > 0.9 * width or scale > 4
        cut = None if too_large else fit(cut, scale)
    is_slab = cut is None
    if cut is None:
        index = -1
        tall = rng.random() < 0.5  # a pole or wall edge from top to bottom, or a board
        wide = int(extent[0] * rng.uniform(1.15, 1.5)) + 12
        high = int(height * 2.2) if tall else int(extent[1] * rng.uniform(1.15, 1.5)) + 12
        cut = slab(rng, bank, high, wide)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    rows, columns = cut.alpha.shape
    clear = np.array([(extent[0] + columns) / 2 * 1.15, 0.0])
    side = 1.0 if rng.random() < 0.5 else -1.0
    through = 1.0 if rng.random() < 0.7 else -1.0  # passes on, or goes back where it came from
    time = np.arange(frames)
    ramp = int(rng.integers(1, 4))  # frames from "beside it" to "over it"
    before, after = np.clip((first - time) / ramp, 0, None), np.clip((time - last + 1) / ramp, 0, None)
    offset = side * (-before + through * after)
    centre = middle + offset[:, None] * clear
    centre[:, 1] += np.abs(offset) * rng.uniform(-0.1, 0.1) * height
    if rows > 2 * height:
        centre[:, 1] = height / 2
    angle = np.full(frames, rng.normal() * (0.02 if is_slab else 0.08))
    return Layer(cut, layer_maps(cut, centre, np.ones((frames, 2)), angle), index)
