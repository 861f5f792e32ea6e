"""Scenes in which an object is out of sight for 5 to 30 frames and comes back, among look-alikes.

Ways to vanish: "behind" (it passes behind a standing thing), "sweep" (a thing passes before it), "exit" (it leaves the
view and returns), "pan" (the camera looks away and back). A scenario of its own, "passing", has something large and
near go by, as a van passes before a cyclist. Whether it truly vanished is read off the label maps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.sim_backdrop import draw_room
from training.sim_camera import CameraPath, Lens, Sway
from training.sim_mesh import box, lathe
from training.sim_models import TEXTURE_SIZE, Model, Part, draw_model
from training.sim_scene import Scene, Stock
from training.sim_store import hidden_spans
from training.sim_world import Motion, World, axis_quaternion, random_turn

Floats = NDArray[np.float64]
HIDDEN_FRAMES = (5, 30)  # the benchmark's range, both included
SEEN_FRAMES = 5  # the target must be in view this often before and after
WAYS = ("behind", "sweep", "exit", "pan")  # of the benchmark: another entry would change its draws
SCENARIO_WAYS = {"occlusion": WAYS, "passing": ("passing",)}
UP = np.array([0.0, 0.0, 1.0])
DEPTH = 3.0  # m from the camera to the objects; the camera looks along +y from about the z axis


class Stage(NamedTuple):
    """Where and when the absence happens. Lengths in m, times in s."""

    half_view: float  # half the width seen at DEPTH
    half_height: float  # half the height seen at DEPTH
    eye: float  # height of the camera
    level: float  # height of the target
    radius: float  # bounding radius of the target
    side: float  # -1 or 1: the side of the view on which things start
    seconds: float
    leave: float
    back: float

    def spot(self, x: float, share: float = 1.0) -> Floats:
        """(3,) the point seen at x of the target's depth and level, but at this share of its depth."""
        return np.array([x * share, DEPTH * share, self.eye + (self.level - self.eye) * share])


def _path(knots: list[tuple[float, Floats]], turn: Floats, rate: float = 0.0, sway: Sway | None = None) -> Motion:
    return Motion(np.array([t for t, _ in knots]), np.stack([p for _, p in knots]), turn, UP, rate, sway)


def _cover(rng: np.random.Generator, stock: Stock) -> Model:
    """A solid screen, box or column of half width 1 and half height 1 to 1.5."""
    half = float(rng.uniform(1.0, 1.5))
    skin = stock.bank.skin(rng, TEXTURE_SIZE)
    if rng.random() < 0.6:
        mesh, name = box((2.0, float(rng.uniform(0.15, 0.8)), 2 * half)), "block"
    else:
        mesh, name = lathe(np.array([[0, -half], [1, -half], [1, half], [0, half]])), "can"
    return Model(name, (Part(mesh, (0.0, 0.0, 0.0), 0.0, 0.0),), skin, True, half)


def _target_motion(rng: np.random.Generator, stage: Stage, way: str, home: float, turn: Floats) -> Motion:
    """How the target moves when it is the one that goes away; else it hovers at home."""
    edge = stage.side * (stage.half_view + 1.3 * stage.radius)
    middle = (stage.leave + stage.back) / 2
    if way == "exit":
        other = -edge if rng.random() < 0.35 else edge  # a third come back on the other side
        go = float(rng.uniform(0.5, 0.9)) * stage.leave
        come = stage.back + float(rng.uniform(0.1, 0.5)) * (stage.seconds - stage.back)
        ends = [(middle - 1e-3, stage.spot(edge)), (middle, stage.spot(other))]
        start, stop = (0.0, stage.spot(home)), (come, stage.spot(home))
        knots = [
            start,
            (go, stage.spot(home)),
            (stage.leave, stage.spot(edge)),
            *ends,
            (stage.back, stage.spot(other)),
            stop,
        ]
        return _path(knots, turn, float(rng.normal(0, 0.4)))
    hover = Sway.draw(rng, 0.08 * stage.radius, hertz=(0.1, 0.5))
    return _path([(0.0, stage.spot(home)), (1.0, stage.spot(home))], turn, float(rng.normal(0, 0.3)), hover)


def _behind(rng: np.random.Generator, stage: Stage, turn: Floats) -> tuple[Motion, Motion, float]:
    """The target's motion, the cover's motion and the cover's half width: the target passes behind."""
    width = stage.radius * float(rng.uniform(1.3, 1.8))  # as seen at the target's depth
    centre = stage.half_view * float(rng.uniform(-0.15, 0.15))
    inside, outside = width - 1.05 * stage.radius, width + 1.2 * stage.radius
    start, enter, leave = (centre - stage.side * d for d in (outside, inside, -inside))
    stop = centre + stage.side * outside
    if rng.random() < 0.35:  # it turns back behind the cover: the side it left by says nothing
        leave, stop = enter, start
    calm, rest = 0.35 * stage.leave, stage.seconds - 0.35 * (stage.seconds - stage.back)
    knots = [(0.0, start), (calm, start), (stage.leave, enter), (stage.back, leave), (rest, stop)]
    share = float(rng.uniform(0.6, 0.8))
    at = stage.spot(centre, share)
    motion = _path([(t, stage.spot(x)) for t, x in knots], turn, float(rng.normal(0, 0.4)))
    return motion, _path([(0.0, at), (1.0, at)], axis_quaternion(UP, float(rng.normal(0, 0.1)))), width * share


def _sweep(rng: np.random.Generator, stage: Stage, home: float, width: float, share: float) -> Motion:
    """The motion of a cover of half width `width`, as seen at the target's depth: it passes at an even speed."""
    speed = 2 * (width - stage.radius) / (stage.back - stage.leave)
    far = speed * stage.seconds + stage.half_view + width
    middle = (stage.leave + stage.back) / 2
    knots = [(middle + s * far / speed, stage.spot(home + s * stage.side * far, share)) for s in (-1, 1)]
    return _path(knots, axis_quaternion(UP, float(rng.normal(0, 0.1))))


def _passer(rng: np.random.Generator, stock: Stock) -> Model:
    """Something large that goes by: long as a van, a screen, or any model there is."""
    pick = rng.random()
    if pick < 0.35:
        half = float(rng.uniform(0.35, 0.9))
        mesh = box((2.0, float(rng.uniform(0.4, 1.0)), 2 * half))
        return Model("block", (Part(mesh, (0.0, 0.0, 0.0), 0.0, 0.0),), stock.bank.skin(rng, TEXTURE_SIZE), True, half)
    return _cover(rng, stock) if pick < 0.5 else draw_model(rng, stock.bank, stock.data, stock.objects)


def occlusion_scene(
    rng: np.random.Generator,
    stock: Stock,
    world: World,
    frames: int,
    rate: float,
    lens: Lens,
    ways: tuple[str, ...] = WAYS,
) -> tuple[Scene, str]:
    """Fill an opened, empty world for a clip of `frames` at `rate` Hz; returns the scene and how instance 1 vanishes.

    The absence is planned for the middle of the clip, so there is time to learn the object and to find it again.
    Clips too short for an absence of 5 frames get a shorter one.
    """
    way = str(rng.choice(ways))
    seconds = frames / rate
    longest = min(HIDDEN_FRAMES[1] - 4.0, 0.45 * frames)
    hidden = float(rng.uniform(min(HIDDEN_FRAMES[0] + 1.0, 0.25 * frames), longest)) / rate
    middle = seconds * float(rng.uniform(0.45, 0.55))
    half_height = DEPTH * lens.height / (2 * lens.focal)
    half_view = DEPTH * lens.width / (2 * lens.focal)
    eye = 1.2 * half_height + 0.4
    stage = Stage(
        half_view=half_view,
        half_height=half_height,
        eye=eye,
        level=eye + half_height * float(rng.uniform(-0.3, 0.2)),
        radius=half_height * float(rng.uniform(0.28, 0.42)),
        side=float(rng.choice([-1, 1])),
        seconds=seconds,
        leave=middle - hidden / 2,
        back=middle + hidden / 2,
    )
    room = draw_room(rng, stock.bank, world.light, 2.2 * DEPTH, None)
    model = draw_model(rng, stock.bank, stock.data, stock.objects)
    texture = world.load_texture(model.texture)
    turn = random_turn(rng, model.upright)
    home = stage.side * half_view * float(rng.uniform(0.0, 0.5))
    motion = _target_motion(rng, stage, way, home, turn)
    cover_motion, width = None, 0.0
    if way == "behind":
        motion, cover_motion, width = _behind(rng, stage, turn)
    elif way in ("sweep", "passing"):
        near, wide = ((0.6, 0.8), (1.5, 2.3)) if way == "sweep" else ((0.4, 0.75), (1.8, 5.0))
        share = float(rng.uniform(*near))
        wide_as_seen = stage.radius * float(rng.uniform(*wide))
        cover_motion, width = _sweep(rng, stage, home, wide_as_seen, share), wide_as_seen * share
    world.add(model, stage.radius, motion.position(0), turn, texture, motion, gait=4.0)
    if cover_motion is not None:
        cover = _passer(rng, stock) if way == "passing" else _cover(rng, stock)
        skin = world.load_texture(cover.texture)
        world.add(cover, width, cover_motion.position(0), cover_motion.turn0, skin, cover_motion)
    _add_bystanders(rng, stock, world, stage, model, texture)
    glance = (0.0, 0.0, 0.0, 1.0)
    if way == "pan":
        away = float(np.arctan((half_view + abs(home) + 1.5 * stage.radius) / DEPTH)) + 0.05
        glance = (stage.side * away, stage.leave, stage.back, float(rng.uniform(0.15, 0.3)) * seconds)
    sway, shake = Sway.draw(rng, 0.003 * DEPTH), Sway.draw(rng, 0.004 * DEPTH)
    look = np.array([0.0, DEPTH, eye])
    still = CameraPath(
        look,
        DEPTH,
        -np.pi / 2,
        0.05,
        0.0,
        0.0,
        0.0,
        np.zeros(3),
        0.0,
        (0.0, 1.0),
        float(rng.normal(0, 0.03)),
        sway,
        shake,
        glance,
    )
    return Scene(world, still, room, False), way


def _add_bystanders(
    rng: np.random.Generator, stock: Stock, world: World, stage: Stage, model: Model, texture: int
) -> None:
    """1 to 3 look-alikes of the target and up to 2 other things, farther back, in rows above and below its path."""
    others = int(rng.integers(0, 3))
    for k in range(int(rng.integers(1, 4)) + others):
        thing, skin, size = model, texture, stage.radius * float(rng.uniform(0.95, 1.1))
        if k < others:
            thing = draw_model(rng, stock.bank, stock.data, stock.objects)
            skin, size = world.load_texture(thing.texture), stage.radius * float(rng.uniform(0.6, 1.4))
        share = float(rng.uniform(1.12, 1.5))
        row = stage.half_height * float(rng.choice([-1, 1]) * rng.uniform(0.4, 0.8))
        at = stage.spot(stage.half_view * float(rng.uniform(-0.85, 0.85)), share)
        at[2] = max(stage.eye + row * share, size)
        drift = Sway.draw(rng, stage.radius * float(rng.uniform(0.0, 0.6)), hertz=(0.1, 0.4))
        motion = _path([(0.0, at), (1.0, at)], random_turn(rng, thing.upright), float(rng.normal(0, 0.4)), drift)
        world.add(thing, size, at, motion.turn0, skin, motion, gait=4.0)


def target_span(labels: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Frames [start, stop) of the absence of instance 1 in (T, H, W), or None when the clip does not serve.

    It serves when one absence has 5 to 30 frames and at least 5 frames before and after show the target.
    """
    seen = (labels == 1).any(axis=(1, 2))
    for start, stop in hidden_spans(labels, 1):
        fits = HIDDEN_FRAMES[0] <= stop - start <= HIDDEN_FRAMES[1]
        if fits and seen[:start].sum() >= SEEN_FRAMES and seen[stop:].sum() >= SEEN_FRAMES:
            return start, stop
    return None
