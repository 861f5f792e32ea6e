"""Textures for simulated things: pieces of real photos when a folder of them is given, else made by formula.

Floors and walls are not labelled, so they must not show recognisable things: they only ever get small, enlarged and
blurred pieces of a photo. Objects are labelled as a whole, so they may carry any photo.
"""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ausm.errors import InputError
from training.readers import is_development_photo

Image = NDArray[np.uint8]
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_photos(folders: list[Path]) -> list[Path]:
    """All photos in the folders, sorted, without the development set. A missing folder or one without photos raises
    InputError."""
    photos: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"background folder {folder} does not exist")
        found = sorted(p for p in folder.resolve().iterdir() if p.suffix.lower() in PHOTO_SUFFIXES)
        if all(map(is_development_photo, found)):
            kinds = ", ".join(PHOTO_SUFFIXES)
            raise InputError(f"background folder {folder} holds no photo ({kinds}) but for development images")
        photos += [photo for photo in found if not is_development_photo(photo)]
    return photos


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise (size, size) in about [-1, 1]: two octaves of a random grid, enlarged."""
    total = np.zeros((size, size), np.float32)
    for octave, gain in ((cells, 0.65), (cells * 3, 0.35)):
        grid = rng.uniform(-1, 1, (octave, octave)).astype(np.float32)
        total += gain * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return total


def random_colour(rng: np.random.Generator, vivid: float = 0.5) -> NDArray[np.float32]:
    """RGB (3,) in 0..255: natural greys and browns, or with probability `vivid` a saturated one."""
    saturation = rng.uniform(90, 240) if rng.random() < vivid else rng.uniform(0, 90)
    hsv = np.array([[[rng.uniform(0, 180), saturation, rng.uniform(50, 245)]]], np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], np.float32)


def procedural(rng: np.random.Generator, size: int) -> Image:
    """Texture (size, size, 3) by formula: plain, mottled, striped, checked, wood, tiles or speckle."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    a, b = random_colour(rng), random_colour(rng, 0.3)
    kind = rng.choice(["plain", "mottled", "stripes", "checks", "wood", "tiles", "speckle"])
    if kind == "plain":
        mix = 0.08 * _noise(rng, size, 3) + 0.05
    elif kind == "mottled":
        mix = 0.5 + 0.6 * _noise(rng, size, int(rng.integers(3, 14)))
    elif kind == "stripes":
        turn = rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * rng.uniform(2, 9) * (x * np.cos(turn) + y * np.sin(turn)))
        mix = 0.5 + 0.5 * np.clip(wave * rng.uniform(1, 6), -1, 1)
    elif kind == "checks":
        count = int(rng.integers(2, 9))
        mix = ((np.floor(x * count) + np.floor(y * count)) % 2) * rng.uniform(0.4, 1.0)
    elif kind == "wood":
        wave = np.sin(2 * np.pi * rng.uniform(4, 10) * (x + 0.12 * _noise(rng, size, 3)) + 3 * _noise(rng, size, 2))
        b = a * rng.uniform(0.55, 0.85)
        mix = 0.5 + 0.4 * wave
    elif kind == "tiles":
        count = int(rng.integers(2, 7))
        joint = np.minimum((x * count) % 1, (y * count) % 1) < 0.06
        mix = np.where(joint, 1.0, 0.12 * _noise(rng, size, 6))
    else:
        mix = (rng.random((size, size)) < rng.uniform(0.05, 0.3)).astype(np.float32)
        mix = np.asarray(cv2.GaussianBlur(mix, (0, 0), rng.uniform(0.5, 2.0)), np.float32)
    mix = np.clip(mix, 0, 1)[..., None].astype(np.float32)
    image = a * (1 - mix) + b * mix + rng.normal(0, rng.uniform(0, 6), (size, size, 1)).astype(np.float32)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


class TextureBank:
    """Draws textures from photos (may be an empty list) and formulas; every draw is decided by the given generator."""

    def __init__(self, photos: list[Path], photo_share: float = 0.65) -> None:
        self.photos = photos
        self.photo_share = photo_share if photos else 0.0

    def _photo(self, rng: np.random.Generator) -> Image:
        path = self.photos[int(rng.integers(len(self.photos)))]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"background photo {path} cannot be decoded")
        return np.asarray(image[..., ::-1], np.uint8)

    def surface(self, rng: np.random.Generator, size: int) -> Image:
        """(size, size, 3) for floor, wall or table: never shows a whole thing."""
        if rng.random() >= self.photo_share:
            return procedural(rng, size)
        photo = self._photo(rng)
        height, width = photo.shape[:2]
        if rng.random() < 0.3:  # a whole photo, blurred beyond recognition: an out-of-focus room
            square = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)
            return np.asarray(cv2.GaussianBlur(square, (0, 0), size * rng.uniform(0.035, 0.08)), np.uint8)
        side = int(min(height, width) * rng.uniform(0.1, 0.28))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        patch = cv2.resize(photo[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_CUBIC)
        if rng.random() < 0.5:  # bring back the fine grain that enlarging took away
            grain = rng.normal(0, rng.uniform(2, 10), (size, size, 1))
            patch = np.clip(patch + grain, 0, 255).astype(np.uint8)
        return np.asarray(patch, np.uint8)

    def skin(self, rng: np.random.Generator, size: int) -> Image:
        """(size, size, 3) for an object: plain colour, formula, photo piece or nearly a whole photo."""
        draw = rng.random()
        if draw < 0.25:
            grain = rng.normal(0, rng.uniform(0, 5), (size, size, 1))
            return np.clip(random_colour(rng) + grain, 0, 255).astype(np.uint8)
        if draw < 0.45 or not self.photos:
            return procedural(rng, size)
        photo = self._photo(rng)
        height, width = photo.shape[:2]
        side = int(min(height, width) * rng.uniform(0.15, 0.9))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        patch = cv2.resize(photo[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.35:  # tint: keeps photo structure, widens the range of colours
            patch = np.clip(patch * (0.4 + random_colour(rng) / 200), 0, 255).astype(np.uint8)
        return np.asarray(patch, np.uint8)

    def strips(self, rng: np.random.Generator, size: int, cells: int) -> Image:
        """(size, size, 3) of `cells` vertical strips with a skin each (see sim_mesh.merged)."""
        edges = np.linspace(0, size, cells + 1).astype(int)
        image = np.empty((size, size, 3), np.uint8)
        for left, right in pairwise(edges):
            image[:, left:right] = cv2.resize(self.skin(rng, size), (right - left, size), interpolation=cv2.INTER_AREA)
        return image
