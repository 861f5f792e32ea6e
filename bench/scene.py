"""A camera over moving shapes, cheap to render: the input of the benchmarks, the same for one seed."""

import math
from collections.abc import Sequence
from colorsys import hsv_to_rgb

import cv2
import numpy as np

MARGIN = 32  # pixels the camera pans over


class Scene:
    """K textured ellipses, each circling inside its own cell of the image, before a panning texture."""

    def __init__(self, height: int, width: int, objects: int, seed: int = 0) -> None:
        self.height, self.width = height, width
        rng = np.random.default_rng(seed)
        self._ground = _texture(rng, (height + 2 * MARGIN, width + 2 * MARGIN), (120, 120, 120), 30)
        columns = max(1, math.ceil(math.sqrt(objects * width / height)))
        rows = math.ceil(objects / columns) if objects else 1
        self._cell = (height / rows, width / columns)
        self._columns = columns
        radii = [max(3, int(0.3 * side)) for side in self._cell]
        size = (2 * radii[1] + 1, 2 * radii[0] + 1)
        self._shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size).astype(bool)
        colours = [[255 * c for c in hsv_to_rgb(k / objects, 0.9, 0.9)] for k in range(objects)]
        self._skins = [_texture(rng, self._shape.shape, colour, 20) for colour in colours]
        self._phases = rng.uniform(0, 2 * math.pi, objects)

    def image(self, frame: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, a new array."""
        y = MARGIN + round(MARGIN * math.sin(frame / 23))
        x = MARGIN + round(MARGIN * math.sin(frame / 31))
        image = self._ground[y : y + self.height, x : x + self.width].copy()
        for k, skin in enumerate(self._skins):
            where, part = self._place(k, frame)
            image[where][part] = skin[: part.shape[0], : part.shape[1]][part]
        return image

    def masks(self, frame: int) -> np.ndarray:
        """(K, H, W) bool, the shapes of `image(frame)`; none covers another."""
        masks = np.zeros((len(self._skins), self.height, self.width), bool)
        for k, mask in enumerate(masks):
            where, part = self._place(k, frame)
            mask[where] = part
        return masks

    def _place(self, k: int, frame: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Where shape k lies in the image, and the part of it that is inside."""
        angle = frame / 17 + self._phases[k]
        row, column = divmod(k, self._columns)
        height, width = self._shape.shape
        y = (row + 0.5 + 0.15 * math.sin(angle)) * self._cell[0] - height / 2
        x = (column + 0.5 + 0.15 * math.cos(angle)) * self._cell[1] - width / 2
        top, left = max(0, round(y)), max(0, round(x))
        part = self._shape[: self.height - top, : self.width - left]
        return (slice(top, top + part.shape[0]), slice(left, left + part.shape[1])), part


def _texture(rng: np.random.Generator, size: tuple[int, int], colour: Sequence[float], contrast: int) -> np.ndarray:
    """(height, width, 3) uint8: noise of some 24 pixels' grain around a colour."""
    noise = rng.integers(-contrast, contrast + 1, (max(2, size[0] // 24), max(2, size[1] // 24), 3))
    grains = (noise + np.asarray(colour)).clip(0, 255).astype(np.uint8)
    texture: np.ndarray = cv2.resize(grains, size[::-1], interpolation=cv2.INTER_CUBIC)
    return texture
