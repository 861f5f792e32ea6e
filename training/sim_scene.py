"""Random scenes: what stands where, what moves, where the camera goes. One seeded generator decides everything.

Kinds: "table" (things fall, roll and are kicked on a table, at times beside a robot arm), "floor" (a robot's view of a
room with walkers, vehicles and things), "air" (things fly about in any pose). Lengths scale with the reach of a scene.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sim_backdrop import Surface, draw_room
from training.sim_camera import CameraPath, Sway, draw_path
from training.sim_models import Model, draw_model
from training.sim_textures import TextureBank
from training.sim_world import Actor, Motion, World, axis_quaternion, multiply, random_turn

Floats = NDArray[np.float64]
UP = np.array([0.0, 0.0, 1.0])
ARMS = ("kuka_iiwa/model.urdf", "kuka_iiwa/model.urdf", "xarm/xarm6_robot.urdf")
ROVERS = (
    ("r2d2.urdf", 0.5),
    ("racecar/racecar.urdf", 0.0),
    ("quadruped/minitaur.urdf", 0.2),
    ("quadruped/spirit40.urdf", 0.3),
)


@dataclass(frozen=True)
class Stock:
    """What scenes are made of: textures, the folder of meshes, and the range of random meshes that may be used."""

    bank: TextureBank
    data: Path
    objects: tuple[int, int]


@dataclass
class Scene:
    """A world with its room and camera, and the kicks still to come (time s, actor, velocity m/s, spin rad/s)."""

    world: World
    camera: CameraPath
    room: tuple[Surface, ...]
    shadows: bool
    kicks: list[tuple[float, Actor, Floats, Floats]] = field(default_factory=list)

    def advance(self, t: float, step: float) -> None:
        """Bring the world to time t, `step` seconds after the last call (0 for the first frame)."""
        self.world.place(t)
        if step == 0:
            return
        for when, actor, velocity, spin in self.kicks:
            if t - step < when <= t:
                self.world.kick(actor, velocity, spin)
        if any(actor.motion is None for actor in self.world.actors):
            self.world.step(step)


def draw_light(rng: np.random.Generator) -> Floats:
    """(3,) unit vector towards a lamp 30 to 80 degrees above the horizon."""
    height, turn = rng.uniform(0.5, 1.4), rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(height) * np.cos(turn), np.cos(height) * np.sin(turn), np.sin(height)])


def draw_world(rng: np.random.Generator) -> World:
    """An empty world with a random light; `with` opens it."""
    shading = (float(rng.uniform(0.35, 0.75)), float(rng.uniform(0.3, 0.8)), float(rng.uniform(0, 0.25)))
    return World(draw_light(rng), shading, 1 + rng.normal(0, 0.06, 3))


@dataclass
class Casting:
    """Draws models for a scene, at times a look-alike of an earlier one, and remembers their textures."""

    rng: np.random.Generator
    stock: Stock
    world: World
    twins: float  # probability that a model repeats an earlier one
    drawn: list[tuple[Model, int, float]] = field(default_factory=list)

    def draw(self, radius: float) -> tuple[Model, int, float]:
        """(model, texture handle, bounding radius in m)."""
        if self.drawn and self.rng.random() < self.twins:
            model, texture, size = self.drawn[int(self.rng.integers(len(self.drawn)))]
            return model, texture, size * float(self.rng.uniform(0.9, 1.1))
        model = draw_model(self.rng, self.stock.bank, self.stock.data, self.stock.objects)
        self.drawn.append((model, self.world.load_texture(model.texture), radius))
        return self.drawn[-1]


def _radius(rng: np.random.Generator, reach: float, low: float, high: float) -> float:
    return reach * float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _count(rng: np.random.Generator) -> int:
    """1 to 12 objects, few more often than many."""
    return int(np.clip(np.round(rng.gamma(2.2, 2.0)) + 1, 1, 12))


def _walk(rng: np.random.Generator, seconds: float, start: Floats, reach: float, speed: float, height: float) -> Motion:
    """A path over the floor in straight legs, facing the way it mostly goes; some stop and go."""
    legs = int(rng.integers(1, 4))
    heading = rng.uniform(0, 2 * np.pi)
    points, times = [start], [0.0]
    for _ in range(legs):
        leg = seconds * rng.uniform(0.4, 1.2) + 0.3
        along = heading + rng.normal(0, 0.3)
        pace = speed * (0.0 if rng.random() < 0.2 else rng.uniform(0.4, 1.3))
        step = pace * leg * np.array([np.cos(along), np.sin(along), 0])
        points.append(np.clip(points[-1] + step, -2.5 * reach, 2.5 * reach))
        times.append(times[-1] + leg)
    way = np.array(points)
    way[:, 2] = height
    return Motion(np.array(times), way, axis_quaternion(UP, heading), UP, float(rng.normal(0, 0.1)))


def _flight(rng: np.random.Generator, seconds: float, centre: Floats, reach: float, turn: Floats) -> Motion:
    """A straight or swaying flight that passes near `centre`, at times coming from or going out of view."""
    way = rng.normal(0, 1, 3)
    way = way / np.linalg.norm(way) * reach * rng.uniform(0.0, 1.6) ** 2
    middle = centre + rng.normal(0, 0.45, 3) * reach
    axis = rng.normal(0, 1, 3)
    sway = Sway.draw(rng, reach * rng.uniform(0, 0.25), hertz=(0.1, 0.9)) if rng.random() < 0.6 else None
    span = max(seconds, 1.0)
    return Motion(
        np.array([0.0, span]), np.stack([middle - way * rng.uniform(0, 1.5), middle + way * rng.uniform(0, 1.5)]),
        turn, axis / np.linalg.norm(axis), float(rng.normal(0, 1.0)), sway,
    )  # fmt: skip


def table_scene(rng: np.random.Generator, stock: Stock, world: World, seconds: float) -> Scene:
    """Things on a table: dropped, lying, kicked; at times a robot arm works among them or something glides through."""
    reach, half = 0.5, float(rng.uniform(0.55, 1.1))
    room = draw_room(rng, stock.bank, world.light, reach, half)
    world.add_plane(0.0)
    world.add_fence(half)
    casting = Casting(rng, stock, world, float(rng.choice([0.0, 0.25, 0.6])))
    kicks: list[tuple[float, Actor, Floats, Floats]] = []
    liveliness = float(rng.choice([0.0, 0.3, 0.8]))
    big = float(rng.uniform(0.2, 0.42))
    for k in range(_count(rng)):
        model, texture, radius = casting.draw(_radius(rng, reach, 0.09, big))
        spread = min(0.75 * reach, half - radius)
        at = np.append(rng.uniform(-spread, spread, 2), 0.0)
        turn = random_turn(rng, model.upright and rng.random() < 0.8)
        if len(model.parts) > 1:  # walkers have limbs, which physics does not hold
            motion = _walk(rng, seconds, at, 0.35 * half, 0.25 * rng.random(), model.base * radius)
            world.add(model, radius, at, motion.turn0, texture, motion, gait=float(rng.uniform(3, 9)))
            continue
        high = model.base * radius if model.upright and rng.random() < 0.5 else radius * 1.1 + 0.12 * k * rng.random()
        actor = world.add(model, radius, at + high * UP, turn, texture, None)
        world.set_contact(actor, float(rng.uniform(0.2, 1.0)), float(rng.uniform(0, 0.5)))
        if rng.random() < liveliness:
            away = rng.normal(0, 1, 3) * np.array([0.8, 0.8, 0.5])
            away[2] = abs(away[2])
            kicks.append((float(rng.uniform(0, seconds)), actor, away, rng.normal(0, 5, 3)))
    if rng.random() < 0.3:
        file = stock.data / str(rng.choice(ARMS))
        scale = float(rng.uniform(0.45, 0.9))
        side = rng.uniform(0, 2 * np.pi)
        at = 0.75 * reach * np.array([np.cos(side), np.sin(side), 0])
        world.add_robot(file, scale, at, axis_quaternion(UP, side + np.pi), None, rng, bool(rng.random() < 0.4))
    if rng.random() < 0.4:
        world.step(float(rng.uniform(0.2, 1.0)))
    target = np.append(rng.normal(0, 0.1 * reach, 2), 0.1 * reach)
    camera = draw_path(rng, target, reach * float(rng.uniform(1.1, 2.3)), (0.3, 1.3))
    return Scene(world, camera, room, True, kicks)


def floor_scene(rng: np.random.Generator, stock: Stock, world: World, seconds: float) -> Scene:
    """A room seen from a low robot: walkers, vehicles and rovers move, other things stand about."""
    reach = 2.0
    room = draw_room(rng, stock.bank, world.light, reach, None)
    casting = Casting(rng, stock, world, float(rng.choice([0.0, 0.3, 0.6])))
    mobile = float(rng.uniform(0.2, 0.9))
    for _ in range(_count(rng)):
        model, texture, radius = casting.draw(_radius(rng, reach, 0.1, 0.4))
        at = np.append(rng.uniform(-0.9 * reach, 0.9 * reach, 2), model.base * radius)
        moves = len(model.parts) > 1 or rng.random() < mobile
        speed = float(rng.uniform(0.1, 1.2)) if moves else 0.0
        motion = _walk(rng, seconds, at, reach, speed, at[2])
        if not model.upright:
            motion = Motion(motion.times, motion.points, random_turn(rng, False), motion.axis, motion.rate)
            motion.points[:, 2] = radius * 0.7
        world.add(model, radius, at, motion.turn0, texture, motion, gait=2.5 + 5 * speed if speed else 0.0)
    if rng.random() < 0.3:
        name, lift = ROVERS[int(rng.integers(len(ROVERS)))]
        scale = float(rng.uniform(0.8, 1.8))
        at = np.append(rng.uniform(-0.7 * reach, 0.7 * reach, 2), lift * scale)
        motion = _walk(rng, seconds, at, reach, float(rng.uniform(0.1, 0.8)), at[2])
        world.add_robot(stock.data / name, scale, at, motion.turn0, motion, rng, bool(rng.random() < 0.4))
    target = np.append(rng.normal(0, 0.15 * reach, 2), reach * rng.uniform(0.05, 0.3))
    camera = draw_path(rng, target, reach * float(rng.uniform(1.0, 2.2)), (0.08, 0.6))
    return Scene(world, camera, room, True)


def air_scene(rng: np.random.Generator, stock: Stock, world: World, seconds: float) -> Scene:
    """Things fly about in any pose before far walls; they pass before each other and leave the view."""
    reach = 1.0
    room = draw_room(rng, stock.bank, world.light, reach, None)
    casting = Casting(rng, stock, world, float(rng.choice([0.0, 0.3, 0.7])))
    centre = np.array([0, 0, 2.2 * reach])
    for _ in range(_count(rng)):
        model, texture, radius = casting.draw(_radius(rng, reach, 0.12, 0.55))
        turn = random_turn(rng, False)
        motion = _flight(rng, seconds, centre, reach, multiply(turn, axis_quaternion(UP, 0.0)))
        world.add(model, radius, motion.position(0), turn, texture, motion, gait=float(rng.uniform(2, 8)))
    camera = draw_path(rng, centre, reach * float(rng.uniform(1.8, 2.8)), (0.05, 0.5))
    return Scene(world, camera, room, False)


# kind: (how to fill an opened, empty world, share among mixed scenes)
SCENES = {"table": (table_scene, 0.45), "floor": (floor_scene, 0.3), "air": (air_scene, 0.25)}


def draw_focal(rng: np.random.Generator, width: int) -> float:
    """Focal length in pixels for horizontal fields of view of about 43 to 72 degrees."""
    return width * float(rng.uniform(0.7, 1.27))
