"""One simulated clip from its settings and its number: the unit of work of a worker process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.sim_camera import Lens
from training.sim_occlusion import SCENARIO_WAYS, occlusion_scene, target_span
from training.sim_render import SimFrame, render_frames
from training.sim_scene import SCENES, Stock, draw_focal, draw_world
from training.sim_store import clip_path, write_clip
from training.sim_textures import TextureBank, list_photos
from training.sim_world import SimulatorError, pybullet_data_folder

SCENARIOS = ("mixed", *SCENES, *SCENARIO_WAYS)
OCCLUSION_SHARE = 0.12  # of the clips of the "mixed" scenario
HIDING_ATTEMPTS = 25  # scenes tried until one hides its target as long as asked
FILLING_ATTEMPTS = 6  # scenes tried until objects fill enough of the view
FILLED = 0.01  # share of the image that objects must cover in half of the frames
SCOUT_SIZE = 64  # px, shorter side of the quick look at a scene that is too long to film twice
TRAINING_MESHES, HELD_OUT_MESHES = (0, 899), (900, 999)  # of the 1,000 random meshes of pybullet_data
HELD_OUT_PHOTO = 10  # one photo in so many is kept for held-out scenes


@dataclass(frozen=True)
class Settings:
    """What decides a clip, beside its number."""

    seed: int
    height: int
    width: int
    frames: int  # per clip
    rate: float  # Hz; 0 draws 8 to 30 Hz for every clip
    scenario: str  # one of SCENARIOS
    backgrounds: tuple[str, ...]  # folders of photos
    held_out: bool = False  # made of the meshes and photos that no other scene shows


class Film(NamedTuple):
    """A scene ready to be rendered: its frames to come, the lens, and what is known about it."""

    frames: Iterator[SimFrame]
    lens: Lens
    rate: float  # Hz
    classes: dict[int, str]  # instance id -> class name
    about: dict[str, Any]


class Clip(NamedTuple):
    """A film with its frames rendered."""

    frames: list[SimFrame]
    lens: Lens
    rate: float
    classes: dict[int, str]
    about: dict[str, Any]


def stock_of(settings: Settings) -> Stock:
    """Textures and meshes to draw from. A missing background folder raises InputError."""
    return _open_stock(settings.backgrounds, settings.held_out)


@lru_cache(maxsize=4)
def _open_stock(backgrounds: tuple[str, ...], held_out: bool) -> Stock:
    photos = list_photos([Path(folder) for folder in backgrounds])
    kept = photos[::HELD_OUT_PHOTO]
    chosen = kept if held_out else [photo for k, photo in enumerate(photos) if k % HELD_OUT_PHOTO]
    return Stock(TextureBank(chosen), pybullet_data_folder(), HELD_OUT_MESHES if held_out else TRAINING_MESHES)


def _filled(labels: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether objects cover enough of the view in half of the label maps (H, W)."""
    return 2 * sum(int(np.count_nonzero(m)) >= FILLED * m.size for m in labels) >= len(labels)


@contextmanager
def filming(settings: Settings, number: int, attempt: int = 0) -> Iterator[Film]:
    """A film of clip `number` whose frames are rendered as they are taken; the scene closes with the context."""
    cv2.setNumThreads(1)  # frames are small; threads would only fight with the other workers
    stock = stock_of(settings)
    seed = [settings.seed, int(settings.held_out), number, attempt]
    rng = np.random.default_rng(seed)
    lens = Lens(settings.height, settings.width, draw_focal(rng, settings.width))
    rate = settings.rate or float(np.round(rng.uniform(8, 30), 1))
    kind = settings.scenario
    if kind == "mixed":
        shares = {name: share * (1 - OCCLUSION_SHARE) for name, (_, share) in SCENES.items()}
        kind = str(rng.choice([*shares, "occlusion"], p=[*shares.values(), OCCLUSION_SHARE]))
    about: dict[str, Any] = {"kind": kind, "seed": seed, "rate": rate, "focal": lens.focal}
    with draw_world(rng) as world:
        if kind in SCENARIO_WAYS:
            ways = SCENARIO_WAYS[kind]
            scene, about["way"] = occlusion_scene(rng, stock, world, settings.frames, rate, lens, ways)
        else:
            scene = SCENES[kind][0](rng, stock, world, settings.frames / rate)
        classes = {actor.instance_id: actor.class_name for actor in world.actors}
        yield Film(render_frames(scene, lens, settings.frames, rate, [*seed, 1]), lens, rate, classes, about)


def scout(settings: Settings, number: int) -> int:
    """The attempt at scene `number` that is worth filming, found on label maps of 64 pixels' height.

    Size does not enter the drawing of a scene, so the small film shows what the large one will.
    """
    share = SCOUT_SIZE / min(settings.height, settings.width)
    small = replace(settings, height=round(settings.height * share), width=round(settings.width * share))
    for attempt in range(FILLING_ATTEMPTS):
        with filming(small, number, attempt) as film:
            if _filled([frame.labels for frame in film.frames]):
                break
    return attempt


def make_clip(settings: Settings, number: int) -> Clip:
    """Clip `number` of a set: always the same for the same settings and number.

    Scenes whose objects hardly come into view are drawn again, six times at most. With the scenarios "occlusion" and
    "passing" a scene is drawn again until its target is truly hidden as planned; SimulatorError after 25 tries.
    """
    hiding = settings.scenario in SCENARIO_WAYS
    for attempt in range(HIDING_ATTEMPTS if hiding else FILLING_ATTEMPTS):
        with filming(settings, number, attempt) as film:
            clip = Clip(list(film.frames), film.lens, film.rate, film.classes, film.about)
        labels = [frame.labels for frame in clip.frames]
        if hiding:
            span = target_span(np.stack(labels))
            if span is not None:
                clip.about.update(target=1, hidden=list(span))
                return clip
        elif _filled(labels):
            return clip
    if hiding:
        raise SimulatorError(
            f"clip {number} of seed {settings.seed}: no scene of {HIDING_ATTEMPTS} hides its target for 5 to 30 of "
            f"{settings.frames} frames and shows it long enough before and after; use longer clips (60 frames do)"
        )
    return clip


def write_numbered_clip(settings: Settings, root: Path, number: int) -> tuple[int, int]:
    """Make clip `number` and write it into the store at `root`; returns (number, bytes)."""
    clip = make_clip(settings, number)
    images, labels = [f.image for f in clip.frames], [f.labels for f in clip.frames]
    return number, write_clip(clip_path(root, number), images, labels, {**clip.about, "classes": clip.classes})


def as_record(settings: Settings) -> dict[str, Any]:
    """The settings as they are written beside a set, to know it again."""
    record = asdict(settings)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}
