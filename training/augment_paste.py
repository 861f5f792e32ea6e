"""Cut-outs of real objects that move over a clip: occlusion, extra identities, look-alikes, absences."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from training.augment_colour import colour_matrix
from training.augment_motion import affine
from training.clips import ClipDataError
from training.readers import BITS, RawClip, Reader, get_object


class CutOut(NamedTuple):
    """One object without its surroundings."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    alpha: np.ndarray  # (h, w) float32 0..1, a soft edge of about one pixel
    class_id: int
    head: str  # label space of class_id


class Layer(NamedTuple):
    """A cut-out on its path over the clip, at the size of the output."""

    cut: CutOut
    maps: np.ndarray  # (T, 2, 3) output pixel -> cut-out pixel
    label: int  # object index in the bit map, -1 = carries no label
    behind: bool = False  # only where no labelled object is


def cut_out(image: np.ndarray, mask: np.ndarray, class_id: int, head: str) -> CutOut:
    """The object under an (H, W) bool mask, which must hold a pixel; the soft edge lies inside the mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    pad = 2
    solid = np.pad(mask[top:bottom, left:right].astype(np.float32), pad)
    # annotations include a rim of background: pull the edge in by half a pixel while softening it
    alpha = np.clip(cv2.GaussianBlur(solid, (0, 0), 0.8) * 1.6 - 0.6, 0.0, 1.0)
    patch = cv2.copyMakeBorder(image[top:bottom, left:right], pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    return CutOut(patch, alpha, class_id, head)


def fit(cut: CutOut, scale: float) -> CutOut:
    """The cut-out resized by `scale`, without aliasing."""
    height, width = cut.alpha.shape
    size = (max(4, round(width * scale)), max(4, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cut._replace(
        image=cv2.resize(cut.image, size, interpolation=how), alpha=cv2.resize(cut.alpha, size, interpolation=how)
    )


def recolour(cut: CutOut, rng: np.random.Generator, strength: float) -> CutOut:
    """Its own exposure and colours, as if lit differently."""
    return cut._replace(image=cv2.transform(cut.image, colour_matrix(rng, strength)))


def layer_maps(cut: CutOut, centre: np.ndarray, scale: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(T, 2, 3) output pixel -> cut-out pixel for a path: centre (T, 2) in output pixels, scale (T, 2), angle (T,)."""
    height, width = cut.alpha.shape
    maps = affine(np.zeros((len(centre), 2)), scale, angle, (1, 1))
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    maps[:, :, 2] = middle - (maps[:, :, :2] @ centre[:, :, None])[:, :, 0]
    return maps


def sway(rng: np.random.Generator, cut: CutOut, frames: int) -> Callable[[CutOut, int], CutOut] | None:
    """A slow wave through the cut-out that makes it bend over time; None for a rigid object."""
    height, width = cut.alpha.shape
    if rng.random() < 0.5 or min(height, width) < 16:
        return None
    reach = float(rng.uniform(0.02, 0.07)) * width
    wave, rate, phase = rng.uniform(0.4, 1.2), rng.uniform(-0.15, 0.15), rng.uniform(0, 2 * np.pi)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    along = np.arange(height, dtype=np.float32)[:, None] / height * wave

    def bend(still: CutOut, frame: int) -> CutOut:
        shift = (reach * np.sin(2 * np.pi * (along + rate * frame) + phase)).astype(np.float32)
        moved = columns + shift
        return still._replace(
            image=cv2.remap(still.image, moved, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            alpha=cv2.remap(still.alpha, moved, rows, cv2.INTER_LINEAR),
        )

    return bend


def draw(
    image: np.ndarray, bits: np.ndarray, layer: Layer, frame: int, bend: Callable[[CutOut, int], CutOut] | None = None
) -> None:
    """Paints one frame of a layer into image (H, W, 3) uint8 and bits (H, W, C) int32, in place."""
    height, width = image.shape[:2]
    cut = layer.cut
    matrix = layer.maps[frame]
    rows, columns = cut.alpha.shape
    corners = np.array([[0, 0], [columns, 0], [0, rows], [columns, rows]], float) - 0.5
    placed = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T)
    x0, y0 = np.maximum(np.floor(placed.min(axis=1)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(placed.max(axis=1)).astype(int) + 1, (width, height))
    if x1 <= x0 or y1 <= y0:
        return
    if bend is not None:
        cut = bend(cut, frame)
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ np.array([x0, y0], float)
    size, how = (int(x1 - x0), int(y1 - y0)), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(cut.image, local, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
    alpha = np.asarray(cv2.warpAffine(cut.alpha, local, size, flags=how), np.float32)
    spot, labels = image[y0:y1, x0:x1], bits[y0:y1, x0:x1]
    if layer.behind:
        free = (~labels.any(axis=2)).astype(np.float32)
        edge: np.ndarray = np.asarray(cv2.GaussianBlur(np.asarray(free), (0, 0), 0.7))
        alpha = alpha * edge * free
    image[y0:y1, x0:x1] = cv2.blendLinear(patch, spot, alpha, 1 - alpha)
    solid = alpha >= 0.5
    labels[solid] = 0
    if layer.label >= 0:
        labels[..., layer.label // BITS] |= np.where(solid, np.int32(1 << (layer.label % BITS)), np.int32(0))


class Bank:
    """Draws cut-outs from readers: whole, decently large objects that nothing labelled covers or touches.

    `weights`: one a reader. Reading happens on demand; a draw costs one or two image decodes. Unreadable items are
    passed over; their errors collect in `skipped` until somebody takes them.
    """

    def __init__(self, readers: Sequence[Reader], weights: Sequence[float] | None = None) -> None:
        if not readers:
            raise ValueError("a bank needs at least one reader")
        self.readers = tuple(readers)
        share = np.asarray(weights if weights is not None else [len(reader) for reader in readers], float)
        self._share = share / share.sum()
        self.skipped: list[str] = []

    def _load(self, rng: np.random.Generator) -> tuple[RawClip, str] | None:
        """One random frame and the label space of its class ids; None if it cannot be read."""
        reader = self.readers[int(rng.choice(len(self.readers), p=self._share))]
        item = int(rng.integers(len(reader)))
        try:
            return reader.load(item, [int(rng.integers(reader.length(item)))]), reader.head
        except ClipDataError as error:
            self.skipped.append(str(error))
            return None

    def draw(self, rng: np.random.Generator, tries: int = 6) -> CutOut | None:
        """A cut-out at the resolution of its source, or None if the tries found nothing usable."""
        for _ in range(tries):
            loaded = self._load(rng)
            if loaded is None:
                continue
            raw, head = loaded
            found = usable(raw)
            if found:
                index = int(rng.choice(found))
                return cut_out(raw.images[0], get_object(raw.bits[0], index), int(raw.class_ids[index]), head)
        return None

    def texture(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: a piece of some picture, as free of labelled objects as six tries give.

        Plain grey if no picture could be read.
        """
        loaded = next((found for found in (self._load(rng) for _ in range(6)) if found is not None), None)
        if loaded is None:
            return np.full((height, width, 3), 127, np.uint8)
        raw = loaded[0]
        image, taken = raw.images[0], np.asarray(raw.bits[0].any(axis=2))
        rows, columns = image.shape[:2]
        ratio = min(rows / height, columns / width) * rng.uniform(0.3, 0.8)
        size = max(2, int(height * ratio)), max(2, int(width * ratio))
        best, least = (0, 0), np.inf
        for _ in range(6):
            y, x = int(rng.integers(rows - size[0] + 1)), int(rng.integers(columns - size[1] + 1))
            share = float(taken[y : y + size[0], x : x + size[1]].mean())
            if share < least:
                best, least = (y, x), share
        piece = image[best[0] : best[0] + size[0], best[1] : best[1] + size[1]]
        return cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR if ratio < 1 else cv2.INTER_AREA)


def usable(raw: RawClip) -> list[int]:
    """Indices of the objects of the first frame that make a good cut-out."""
    small = raw.bits[0][::2, ::2]
    occupied = small.any(axis=2)
    good = []
    for index in range(min(len(raw.class_ids), 40)):
        mask = get_object(small, index)
        area = int(mask.sum())
        if area < max(100, 0.006 * mask.size) or area > 0.45 * mask.size:
            continue
        edge = int(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())
        if edge > 0.02 * (mask.shape[0] + mask.shape[1]):
            continue  # cut by the picture
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        if area < 0.25 * box:
            continue  # wiry or scattered
        others = occupied & ~mask
        grown = np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)), bool)
        touching = grown & ~mask
        if (touching & others).sum() > 0.15 * touching.sum():
            continue  # another object covers or carries it
        good.append(index)
    return good
