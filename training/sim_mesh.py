"""Triangle meshes with texture coordinates for simulated objects: read from OBJ files or made by formula.

Every mesh is a triangle soup (three own vertices per face), so faces can be flat-shaded and textured apart.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Mesh(NamedTuple):
    """F triangles: vertices, normals (3F, 3) and texture coordinates uv (3F, 2) in [0, 1]; any length unit."""

    vertices: Floats
    normals: Floats
    uv: Floats


def _flat(triangles: Floats) -> Floats:
    """Unit normals (3F, 3) of triangles (F, 3, 3), one per face, repeated for its corners."""
    n = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    n /= np.linalg.norm(n, axis=1, keepdims=True) + 1e-12
    return np.repeat(n, 3, axis=0)


def _box_uv(vertices: Floats, normals: Floats) -> Floats:
    """Texture coordinates (3F, 2) by projection along the main axis of each face."""
    low, high = vertices.min(0), vertices.max(0)
    unit = (vertices - low) / np.maximum(high - low, 1e-9).max()
    axis = np.abs(normals).argmax(1)
    u = np.choose(axis, [unit[:, 1], unit[:, 0], unit[:, 0]])
    v = np.choose(axis, [unit[:, 2], unit[:, 2], unit[:, 1]])
    return np.stack([u, v], 1)


def soup(points: Floats, faces: NDArray[np.int64], uv: Floats | None = None, smooth: bool = False) -> Mesh:
    """Mesh of `points` (V, 3) and `faces` (F, 3); uv (V, 2) per point, else projected; smooth or flat normals."""
    vertices = points[faces].reshape(-1, 3)
    normals = _flat(vertices.reshape(-1, 3, 3))
    coordinates = _box_uv(vertices, normals) if uv is None else uv[faces].reshape(-1, 2)
    if smooth:
        total = np.zeros_like(points)
        np.add.at(total, faces.reshape(-1), normals)
        total /= np.linalg.norm(total, axis=1, keepdims=True) + 1e-12
        normals = total[faces].reshape(-1, 3)
    return Mesh(vertices, normals, coordinates)


def normalised(mesh: Mesh) -> Mesh:
    """The mesh with its box centred on the origin and its longest half diagonal (bounding radius) 1."""
    centre = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    vertices = mesh.vertices - centre
    return mesh._replace(vertices=vertices / np.linalg.norm(vertices, axis=1).max())


@lru_cache(maxsize=256)
def read_obj(path: Path) -> Mesh:
    """Mesh of an OBJ file with triangle or polygon faces; its own texture coordinates when it has them; normalised."""
    points: list[list[float]] = []
    uv: list[list[float]] = []
    faces: list[list[int]] = []
    uv_faces: list[list[int]] = []
    for line in path.read_text(errors="replace").splitlines():
        word = line.split()
        if not word:
            continue
        if word[0] == "v":
            points.append([float(x) for x in word[1:4]])
        elif word[0] == "vt":
            uv.append([float(x) for x in word[1:3]])
        elif word[0] == "f":
            corner = [w.split("/") for w in word[1:]]
            for k in range(1, len(corner) - 1):  # a polygon as a fan of triangles
                fan = (corner[0], corner[k], corner[k + 1])
                faces.append([int(c[0]) - 1 for c in fan])
                if all(len(c) > 1 and c[1] for c in fan):
                    uv_faces.append([int(c[1]) - 1 for c in fan])
    mesh = soup(np.array(points), np.array(faces))
    if uv and len(uv_faces) == len(faces):
        mesh = mesh._replace(uv=np.array(uv)[np.array(uv_faces)].reshape(-1, 2))
    return normalised(mesh)


def box(size: tuple[float, float, float]) -> Mesh:
    """Axis-aligned box of edge lengths `size` about the origin; each face shows the whole texture."""
    half = np.array(size) / 2
    quad = np.array([[-1, -1], [1, -1], [1, 1], [-1, -1], [1, 1], [-1, 1]], float)
    parts = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            corners = np.zeros((6, 3))
            corners[:, axis] = sign
            corners[:, (axis + 1) % 3] = quad[:, 0] * sign  # the sign keeps the winding outward
            corners[:, (axis + 2) % 3] = quad[:, 1]
            parts.append(corners * half)
    vertices = np.concatenate(parts)
    return Mesh(vertices, _flat(vertices.reshape(-1, 3, 3)), np.tile((quad + 1) / 2, (6, 1)))


def lathe(profile: Floats, segments: int = 20) -> Mesh:
    """Surface of revolution about z. profile (P, 2): radius and height from bottom to top; u goes around, v up."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    radius, height = profile[:, 0], profile[:, 1]
    points = np.stack(
        [radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), np.repeat(height[:, None], segments + 1, 1)],
        -1,
    ).reshape(-1, 3)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))])
    v = along / along[-1]
    uv = np.stack(np.broadcast_arrays(angle / (2 * np.pi), v[:, None]), -1).reshape(-1, 2)
    row = np.arange(segments)
    faces = []
    for k in range(len(profile) - 1):
        a, b = k * (segments + 1) + row, (k + 1) * (segments + 1) + row
        faces += [np.stack([a, a + 1, b + 1], 1), np.stack([a, b + 1, b], 1)]
    mesh = soup(points, np.concatenate(faces), uv, smooth=True)
    keep = np.linalg.norm(_flat(mesh.vertices.reshape(-1, 3, 3))[::3], axis=1) > 0.5  # drops the slivers at the poles
    keep = np.repeat(keep, 3)
    return Mesh(mesh.vertices[keep], mesh.normals[keep], mesh.uv[keep])


def ellipsoid(radii: tuple[float, float, float], segments: int = 16) -> Mesh:
    """Ellipsoid of half axes `radii` about the origin, textured by longitude and latitude."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    ball = lathe(np.stack([np.cos(latitude), np.sin(latitude)], 1), segments)
    r = np.array(radii)
    normals = ball.normals / r
    return Mesh(ball.vertices * r, normals / np.linalg.norm(normals, axis=1, keepdims=True), ball.uv)


def merged(parts: list[tuple[Mesh, tuple[float, float, float], int]], cells: int) -> Mesh:
    """One mesh of several (mesh, offset xyz, cell); the texture is `cells` vertical strips, part k uses strip `cell`.

    One mesh with one texture of strips is how an object gets parts of several colours.
    """
    vertices, normals, uv = [], [], []
    for mesh, offset, cell in parts:
        vertices.append(mesh.vertices + np.array(offset))
        normals.append(mesh.normals)
        inside = np.clip(mesh.uv, 0.02, 0.98)
        uv.append(np.stack([(cell + inside[:, 0]) / cells, inside[:, 1]], 1))
    return Mesh(np.concatenate(vertices), np.concatenate(normals), np.concatenate(uv))


def turned(mesh: Mesh, axis: int) -> Mesh:
    """The mesh with its z axis turned to `axis` (0 x, 1 y), by exchanging coordinates cyclically."""
    shift = (axis + 1) % 3
    return mesh._replace(vertices=np.roll(mesh.vertices, shift, 1), normals=np.roll(mesh.normals, shift, 1))
