"""Everything that is not an object: floor, walls, ceiling and table, painted as textured rectangles.

The renderer of PyBullet fills a floor at 20 ms a frame; a rectangle warped by its homography costs 1 ms and looks the
same, because nothing but the shadows of the objects ever falls on it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.sim_camera import Lens, Pose
from training.sim_textures import TextureBank

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]
NEAR = 0.02  # m


@dataclass(frozen=True)
class Surface:
    """Rectangle corner + a u + b v with u, v in [0, 1], painted with `repeat` mirrored copies of a texture."""

    corner: Floats  # (3,) m
    u: Floats  # (3,) m
    v: Floats  # (3,) m
    texture: Image  # (S, S, 3)
    repeat: tuple[float, float]
    ground: bool = False  # shadows fall on it

    def paint(self, image: Image, lens: Lens, pose: Pose) -> NDArray[np.bool_] | None:
        """Draw it over `image` (H, W, 3) in place; returns the (H, W) mask of its pixels, None if out of view."""
        corners = self.corner + np.array([0 * self.u, self.u, self.u + self.v, self.v])
        polygon = _clip(corners @ pose.rotation.T + pose.translation)
        if len(polygon) < 3:
            return None
        pixels = polygon @ lens.matrix().T
        pixels = np.clip(pixels[:, :2] / pixels[:, 2:], -1e5, 1e5)
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.fillConvexPoly(mask, np.round(pixels * 16).astype(np.int32), 1, shift=4)
        left, top, width, height = cv2.boundingRect(mask)
        if width == 0:
            return None
        size = self.texture.shape[0]
        to_camera = np.stack(
            [pose.rotation @ self.u, pose.rotation @ self.v, pose.rotation @ self.corner + pose.translation], 1
        )
        to_texture = np.diag([size * self.repeat[0], size * self.repeat[1], 1.0]) @ np.linalg.inv(
            lens.matrix() @ to_camera
        )
        to_texture = to_texture @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
        painted = cv2.warpPerspective(
            self.texture,
            to_texture,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        cv2.copyTo(
            painted, mask[top : top + height, left : left + width], image[top : top + height, left : left + width]
        )
        return np.asarray(mask, bool)


def _clip(corners: Floats) -> Floats:
    """The part (P, 3) of a convex polygon in camera coordinates (Q, 3) that lies before the near plane."""
    kept: list[Floats] = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)


def _shaded(texture: Image, light: Floats, normal: Floats) -> Image:
    gain = 0.6 + 0.4 * max(0.0, float(light @ normal))
    return np.asarray(np.clip(texture * gain, 0, 255), np.uint8)


def _rectangle(
    corner: list[float], u: list[float], v: list[float], texture: Image, tile: float, ground: bool = False
) -> Surface:
    """Surface whose texture has an edge of `tile` metres."""
    a, b = np.array(u, float), np.array(v, float)
    return Surface(
        np.array(corner, float),
        a,
        b,
        texture,
        (float(np.linalg.norm(a)) / tile, float(np.linalg.norm(b)) / tile),
        ground,
    )


def draw_room(
    rng: np.random.Generator, bank: TextureBank, light: Floats, reach: float, table: float | None
) -> tuple[Surface, ...]:
    """Surfaces in the order of painting: walls, ceiling, floor, and the table top with its sides.

    light: (3,) unit vector towards the light. reach: half the size of the area with objects, m, which scales all else.
    table: half its edge in m (its top is z = 0, the floor lies lower); None: objects stand on the floor, z = 0.
    """
    half = reach * rng.uniform(3.0, 9.0)
    ground = 0.0 if table is None else -reach * rng.uniform(0.8, 2.5)
    top = ground + half * rng.uniform(0.8, 1.8)
    size = 256
    wall = bank.surface(rng, size)
    tile = half * rng.uniform(0.5, 2.0)
    room = []
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        texture = bank.surface(rng, size) if rng.random() < 0.35 else wall
        normal = np.zeros(3)
        normal[axis] = -sign
        corner = [-half, -half, ground]
        corner[axis] = sign * half
        along = [0.0, 0.0, 0.0]
        along[1 - axis] = 2 * half
        room.append(_rectangle(corner, along, [0, 0, top - ground], _shaded(texture, light, normal), tile))
    edge = 2 * half
    ceiling = _shaded(bank.surface(rng, size), light, np.array([0, 0, -1.0]))
    room.append(_rectangle([-half, -half, top], [edge, 0, 0], [0, edge, 0], ceiling, tile))
    floor = _shaded(bank.surface(rng, size), light, np.array([0, 0, 1.0]))
    room.append(
        _rectangle(
            [-half, -half, ground], [edge, 0, 0], [0, edge, 0], floor, reach * rng.uniform(0.4, 2.5), table is None
        )
    )
    if table is not None:
        cover = bank.surface(rng, size)
        thick = table * rng.uniform(0.03, 0.12)
        tile = table * rng.uniform(0.5, 2.5)
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            corner = [-table, -table, -thick]
            corner[axis] = sign * table
            along = [0.0, 0.0, 0.0]
            along[1 - axis] = 2 * table
            room.append(_rectangle(corner, along, [0, 0, thick], np.asarray(cover * 0.6, np.uint8), tile))
        lit = _shaded(cover, light, np.array([0, 0, 1.0]))
        room.append(_rectangle([-table, -table, 0], [2 * table, 0, 0], [0, 2 * table, 0], lit, tile, True))
    return tuple(room)


def paint_room(surfaces: tuple[Surface, ...], lens: Lens, pose: Pose) -> tuple[Image, NDArray[np.bool_]]:
    """The empty room (H, W, 3) and the mask (H, W) of the surface on which shadows fall."""
    image = np.full((lens.height, lens.width, 3), 128, np.uint8)
    ground = np.zeros((lens.height, lens.width), bool)
    for surface in surfaces:
        mask = surface.paint(image, lens, pose)
        if surface.ground and mask is not None:
            ground = mask
    return image, ground
