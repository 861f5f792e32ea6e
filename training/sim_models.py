"""What can stand in a simulated scene: shapes with a class, each drawn at random from a seeded generator."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.sim_mesh import Mesh, box, ellipsoid, lathe, merged, normalised, read_obj, turned
from training.sim_textures import TextureBank

TEXTURE_SIZE = 96


class Part(NamedTuple):
    """A limb of an object: its mesh, where it is hinged (xyz, object units) and how far it swings (rad)."""

    mesh: Mesh
    hinge: tuple[float, float, float]
    swing: float
    phase: float


class Model(NamedTuple):
    """An object: class name, texture (S,S,3) and parts; bounding radius about 1. Part 0 is the trunk."""

    class_name: str
    parts: tuple[Part, ...]
    texture: NDArray[np.uint8]
    upright: bool  # stands on its base (z up) rather than lying anyhow
    base: float  # height of the origin above the base, object units


def _single(name: str, mesh: Mesh, texture: NDArray[np.uint8], upright: bool = True) -> Model:
    mesh = normalised(mesh)
    return Model(name, (Part(mesh, (0.0, 0.0, 0.0), 0.0, 0.0),), texture, upright, float(-mesh.vertices[:, 2].min()))


def _block(rng: np.random.Generator) -> Mesh:
    size = rng.uniform(0.3, 1.0, 3)
    return box((float(size[0]), float(size[1]), float(size[2])))


def _can(rng: np.random.Generator) -> Mesh:
    h = rng.uniform(0.5, 2.2)
    return lathe(np.array([[0, 0], [0.42, 0], [0.5, 0.04], [0.5, h - 0.04], [0.42, h], [0, h]]))


def _bottle(rng: np.random.Generator) -> Mesh:
    h, neck, shoulder = rng.uniform(1.4, 2.4), rng.uniform(0.12, 0.25), rng.uniform(0.5, 0.75)
    body = rng.uniform(0.4, 0.55)
    return lathe(np.array([[0, 0], [body, 0], [body, shoulder * h], [neck, (shoulder + 0.15) * h], [neck, h], [0, h]]))


def _bowl(rng: np.random.Generator) -> Mesh:
    h, foot, wall = rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.7), 0.06
    outer = [[0, 0], [foot, 0], [0.5 * (foot + 1) + 0.08, 0.45 * h], [1, h]]
    inner = [[1 - wall, h], [0.5 * (foot + 1), 0.45 * h + wall], [foot * 0.8, wall], [0, wall]]
    return lathe(np.array(outer + inner), 24)


def _chair(rng: np.random.Generator) -> Mesh:
    w, seat, back, leg = rng.uniform(0.8, 1.1), rng.uniform(0.7, 1.1), rng.uniform(0.5, 1.1), rng.uniform(0.06, 0.14)
    parts: list[tuple[Mesh, tuple[float, float, float], int]] = [(box((w, w, 0.1)), (0, 0, seat), 0)]
    parts.append((box((w, 0.08, back)), (0, -w / 2, seat + back / 2), 1))
    at = w / 2 - leg / 2
    parts += [(box((leg, leg, seat)), (sx * at, sy * at, seat / 2), 2) for sx in (-1, 1) for sy in (-1, 1)]
    return merged(parts, 3)


def _vehicle(rng: np.random.Generator) -> Mesh:
    length, w, h = rng.uniform(1.5, 2.4), rng.uniform(0.7, 1.0), rng.uniform(0.3, 0.5)
    cabin, wheel = rng.uniform(0.4, 0.7) * length, rng.uniform(0.16, 0.26)
    tyre = turned(lathe(np.array([[0, -0.07], [wheel, -0.07], [wheel, 0.07], [0, 0.07]]), 14), 1)
    shift = float(rng.uniform(-0.25, 0.1) * length)
    parts: list[tuple[Mesh, tuple[float, float, float], int]] = [
        (box((length, w, h)), (0, 0, wheel + h / 2), 0),
        (box((cabin, w * 0.9, h)), (shift, 0, wheel + 1.5 * h), 1),
    ]
    at = length * 0.32
    parts += [(tyre, (sx * at, sy * w / 2, wheel), 2) for sx in (-1, 1) for sy in (-1, 1)]
    return merged(parts, 3)


def _in_strip(mesh: Mesh, cell: int, cells: int) -> Mesh:
    return merged([(mesh, (0.0, 0.0, 0.0), cell)], cells)


def _walker(rng: np.random.Generator, name: str, texture: NDArray[np.uint8]) -> Model:
    """A figure on two legs or an animal on four; limbs are capsule-like ellipsoids hinged at the trunk."""
    scale = 0.52
    thick = rng.uniform(0.8, 1.35)
    swing = float(rng.uniform(0.3, 0.9))
    parts: list[Part] = []

    def add(
        radii: tuple[float, float, float],
        hinge: tuple[float, float, float],
        hang: float,
        cell: int,
        turn: float,
        phase: float,
    ) -> None:
        mesh = ellipsoid((radii[0] * scale, radii[1] * scale, radii[2] * scale), 12)
        moved = mesh._replace(vertices=mesh.vertices - np.array([0, 0, hang * scale]))
        at = (hinge[0] * scale, hinge[1] * scale, hinge[2] * scale)
        parts.append(Part(_in_strip(moved, cell, 4), at, turn, phase))

    if name == "figure":
        add((0.2 * thick, 0.32 * thick, 0.52), (0, 0, 0.25), 0, 0, 0.05, 0)
        add((0.2, 0.19, 0.25), (0, 0, 1.05), 0, 1, 0.1, 0)
        for side in (-1, 1):
            add((0.13 * thick, 0.13 * thick, 0.5), (0, side * 0.16, -0.1), 0.45, 2, swing, side * np.pi / 2)
            add((0.09 * thick, 0.09 * thick, 0.42), (0, side * 0.38 * thick, 0.65), 0.38, 3, swing, -side * np.pi / 2)
        base = 1.05
    else:
        add((0.75, 0.27 * thick, 0.3 * thick), (0, 0, 0.1), 0, 0, 0.03, 0)
        add((0.3, 0.17, 0.19), (0.85, 0, 0.45 + rng.uniform(-0.2, 0.2)), 0, 1, 0.15, 0)
        add((0.1, 0.07, 0.3), (-0.75, 0, 0.3), 0.2 * rng.choice([-1, 1]), 1, 0.4, 0)
        leg = float(rng.uniform(0.3, 0.5))
        for side in (-1, 1):
            for end in (-1, 1):
                add(
                    (0.1 * thick, 0.09 * thick, leg),
                    (end * 0.5, side * 0.18, 0.0),
                    leg * 0.85,
                    2,
                    swing,
                    side * end * np.pi / 2,
                )
        base = 1.85 * leg
    return Model(name, tuple(parts), texture, True, base * scale)


MESHES_WITH_NAMES = {"mug": ("objects/mug.obj",), "toy": ("duck.obj", "teddy2_VHACD_CHs.obj", "lego/lego.obj")}
# Shares of the classes among drawn objects. The random meshes have the most shapes, so they come most often.
CLASS_SHARES = {
    "object": 0.40, "block": 0.09, "ball": 0.06, "can": 0.06, "bottle": 0.06, "bowl": 0.06, "mug": 0.05,
    "toy": 0.05, "chair": 0.04, "vehicle": 0.05, "figure": 0.04, "animal": 0.04,
}  # fmt: skip


def draw_model(rng: np.random.Generator, bank: TextureBank, data: Path, objects: tuple[int, int]) -> Model:
    """A random model. data: the folder of pybullet_data; objects: first and last random mesh that may be used."""
    names = list(CLASS_SHARES)
    name = str(rng.choice(names, p=np.array(list(CLASS_SHARES.values())) / sum(CLASS_SHARES.values())))
    if name in ("figure", "animal"):
        return _walker(rng, name, bank.strips(rng, TEXTURE_SIZE, 4))
    if name in ("chair", "vehicle"):
        mesh = _chair(rng) if name == "chair" else _vehicle(rng)
        return _single(name, mesh, bank.strips(rng, TEXTURE_SIZE, 3))
    texture = bank.skin(rng, TEXTURE_SIZE)
    if name == "object":
        k = int(rng.integers(objects[0], objects[1] + 1))
        return _single(name, read_obj(data / "random_urdfs" / f"{k:03d}" / f"{k:03d}.obj"), texture, upright=False)
    if name in MESHES_WITH_NAMES:
        files = MESHES_WITH_NAMES[name]
        mesh = read_obj(data / files[int(rng.integers(len(files)))])
        if name == "mug" or rng.random() < 0.6:  # some of these files have y up
            mesh = turned(mesh, 1) if name != "mug" else mesh
        return _single(name, mesh, texture, upright=name == "mug")
    shapes = {"block": _block, "can": _can, "bottle": _bottle, "bowl": _bowl}
    if name == "ball":
        return _single(name, ellipsoid((1, 1, 1)), texture, upright=False)
    return _single(name, shapes[name](rng), texture)
