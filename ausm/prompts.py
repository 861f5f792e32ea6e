"""Boxes and points to masks, for `Stream.prompt`, which takes masks.

A box becomes the mask of the model's hypothesis on the last frame whose bounding box agrees best with it, if the two
overlap by IoU >= 0.5; otherwise the filled box. Points become the most certain hypothesis that is believed to be an
object, covers every positive point and no negative one; otherwise a disc around each positive point, less the discs of
the negative ones. Hypotheses are all queries of the last step, those too weak to be tracks included.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ausm.assemble import Geometry, full_size_masks, mask_confidence
from ausm.errors import AusmError, EmptyMaskError, SizeError
from ausm.masks import Box, discs
from ausm.stream import Stream

AGREEMENT = 0.5  # IoU of boxes
FILL = 0.1  # of the box that a mask covers at least: scattered slivers can have any bounds
NO_FIT = "the model sees no object that fits"
NO_VIEW = "the model's view of that image is not kept"


class Shaped(NamedTuple):
    """The mask taken for a box or points."""

    mask: np.ndarray  # (H, W) bool
    plain: str = ""  # why the shape itself was taken; "" where it is the model's outline


class _Hypotheses(NamedTuple):
    """Every query's answer on the last frame."""

    logits: np.ndarray  # (Q, H/4, W/4) float32 on the padded grid
    foreground: np.ndarray  # (Q,) probability of being an object
    confidence: np.ndarray  # (Q,) mean probability inside the mask
    geometry: Geometry

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height of a logit cell in pixels of the input image."""
        g = self.geometry
        return 4 * g.width / g.inner_width, 4 * g.height / g.inner_height

    def mask(self, q: int) -> np.ndarray:
        """(H, W) bool at the size of the input image."""
        mask: np.ndarray = full_size_masks(self.logits[q : q + 1], self.geometry)[0]
        return mask


def box_mask(stream: Stream, box: Box) -> np.ndarray:
    """(H, W) bool: the mask of `shape_box`."""
    return shape_box(stream, box).mask


def points_mask(stream: Stream, points: Sequence[tuple[int, int]], labels: Sequence[int] | None = None) -> np.ndarray:
    """(H, W) bool: the mask of `shape_points`."""
    return shape_points(stream, points, labels).mask


def shape_box(stream: Stream, box: Box) -> Shaped:
    """The mask for a box (x, y, width, height) in pixels of the last stepped image; see the top of this module.

    Raises AusmError before the first frame, EmptyMaskError if the box holds no pixel of the image.
    """
    height, width = _size(stream)
    filled = np.zeros((height, width), bool)
    x0, y0, x1, y1 = max(box.x, 0), max(box.y, 0), min(box.x + box.width, width), min(box.y + box.height, height)
    if x0 >= x1 or y0 >= y1:
        words = f"box x={box.x} y={box.y} width={box.width} height={box.height}"
        raise EmptyMaskError(f"{words} holds no pixel of the image of {height}x{width} (height x width)")
    filled[y0:y1, x0:x1] = True
    found = _hypotheses(stream)
    if found is None:
        return Shaped(filled, NO_VIEW)
    agreement = [_box_iou(_bounds(m > 0, found.cell), (x0, y0, x1, y1)) for m in found.logits]
    best = int(np.argmax(agreement))
    mask = found.mask(best)
    enough = np.count_nonzero(mask & filled) >= FILL * np.count_nonzero(filled)
    return Shaped(mask) if agreement[best] >= AGREEMENT and enough else Shaped(filled, NO_FIT)


def shape_points(stream: Stream, points: Sequence[tuple[int, int]], labels: Sequence[int] | None = None) -> Shaped:
    """The mask for points (x, y) of the last stepped image, labels 1 = on the object (default), 0 = not on it.

    Raises AusmError before the first frame or for a point outside the image, SizeError for another number of labels,
    EmptyMaskError if nothing is left of the discs.
    """
    height, width = _size(stream)
    labels = [1] * len(points) if labels is None else labels
    if len(labels) != len(points):
        raise SizeError(f"{len(points)} points, {len(labels)} labels")
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise AusmError(f"point x={x} y={y} outside the image of {height}x{width} (height x width)")
    found = _hypotheses(stream)
    if found is not None and 1 in labels:
        cell_x, cell_y = found.cell
        columns = [int((x + 0.5) / cell_x) for x, _ in points]
        rows = [int((y + 0.5) / cell_y) for _, y in points]
        covered = found.logits[:, rows, columns] > 0  # (Q, points)
        fits = (covered == np.asarray(labels, bool)).all(1) & (found.foreground > stream.config.score_threshold)
        for q in np.argsort(np.where(fits, -found.foreground * found.confidence, np.inf))[: np.count_nonzero(fits)]:
            mask = found.mask(int(q))  # at full size the edge of a small object may pass a point that its cell covers
            if all(mask[y, x] == bool(label) for (x, y), label in zip(points, labels, strict=True)):
                return Shaped(mask)
    plain = discs(points, labels, height, width)
    if not plain.any():
        raise EmptyMaskError(f"{len(points)} points, {sum(map(bool, labels))} on the object: no pixel is left")
    return Shaped(plain, NO_VIEW if found is None else NO_FIT)


def _size(stream: Stream) -> tuple[int, int]:
    if stream.current is None:
        raise AusmError("boxes and points are drawn on the last stepped image, and there is none yet")
    return stream.current.height, stream.current.width


def _hypotheses(stream: Stream) -> _Hypotheses | None:
    last = stream.last_predictions
    if last is None:
        return None
    out, geometry = last
    logits = out.masks[0].float()
    foreground = out.objectness[0].float().sigmoid()
    return _Hypotheses(logits.cpu().numpy(), foreground.cpu().numpy(), mask_confidence(logits).cpu().numpy(), geometry)


def _bounds(mask: np.ndarray, cell: tuple[float, float]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels of the input; all zero if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return columns[0] * cell[0], rows[0] * cell[1], (columns[-1] + 1) * cell[0], (rows[-1] + 1) * cell[1]


def _box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0.0) * max(h, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
