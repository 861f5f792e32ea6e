"""Films simulated clips for training: each is decided by (seed, number) alone, so any of them can be made again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sim_camera import Lens
from training.sim_render import SimFrame, render_frames
from training.sim_scene import Stock, draw_focal, draw_scene, draw_world
from training.sim_store import clip_path, write_clip
from training.sim_textures import TextureBank, list_photos
from training.sim_world import pybullet_data_folder

TRAINING_OBJECTS = (0, 899)  # random meshes of pybullet_data
HELD_OUT_OBJECTS = (900, 999)
HELD_OUT_PHOTOS = 10  # every tenth photo is only seen in held-out scenes
RATES = (8.0, 16.0)  # Hz: motion between frames differs from clip to clip
ATTEMPTS = 6  # drawn anew while a scene is too dark or too empty to learn from
DARKEST = 22.0  # mean grey level of the first frame
SMALLEST = 0.01  # share of the image that objects must cover in at least half of the frames


@dataclass(frozen=True)
class FilmedClip:
    """A clip with exact masks: images (H, W, 3) RGB and label maps (H, W) of instance ids, 0 = not an object."""

    images: list[NDArray[np.uint8]]
    labels: list[NDArray[np.uint8]]
    classes: dict[int, str]  # of the ids that are seen in some frame
    rate: float  # Hz


@dataclass(frozen=True)
class ClipPlan:
    """What clips to film."""

    height: int
    width: int
    frames: int
    seed: int
    kind: str = "mixed"  # a key of sim_scene.SCENES, or "mixed"
    held_out: bool = False


def open_stock(backgrounds: list[Path], held_out: bool) -> Stock:
    """Textures and meshes of one split: training and held-out scenes share neither photos nor random meshes.

    backgrounds: folders of photos, may be empty. Raises InputError, SimulatorError.
    """
    photos = list_photos(backgrounds)
    apart = photos[::HELD_OUT_PHOTOS]
    chosen = apart if held_out else [p for k, p in enumerate(photos) if k % HELD_OUT_PHOTOS]
    return Stock(TextureBank(chosen), pybullet_data_folder(), HELD_OUT_OBJECTS if held_out else TRAINING_OBJECTS)


def _usable(frames: list[SimFrame]) -> bool:
    covered = [np.count_nonzero(frame.labels) / frame.labels.size >= SMALLEST for frame in frames]
    return sum(covered) * 2 >= len(frames) and float(frames[0].image.mean()) >= DARKEST


def film_clip(stock: Stock, plan: ClipPlan, number: int) -> FilmedClip:
    """Clip `number` of a plan."""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([plan.seed, int(plan.held_out), number, attempt])
        rate = float(rng.uniform(*RATES))
        with draw_world(rng) as world:
            scene = draw_scene(rng, stock, world, plan.frames / rate, plan.kind)
            lens = Lens(plan.height, plan.width, draw_focal(rng, plan.width))
            camera_seed = [plan.seed, int(plan.held_out), number, attempt, 1]
            frames = list(render_frames(scene, lens, plan.frames, rate, camera_seed))
        if _usable(frames):
            break  # the last attempt is taken as it is: a nearly empty view is a lesson too
    labels = [frame.labels for frame in frames]
    seen = set(np.unique(np.stack(labels)).tolist())
    classes = {a.instance_id: a.class_name for a in world.actors if a.instance_id in seen}
    return FilmedClip([frame.image for frame in frames], labels, classes, rate)


def write_clips(root: Path, stock: Stock, plan: ClipPlan, numbers: range) -> Iterator[tuple[int, int]]:
    """Film the clips that `root` does not hold yet, one by one; yields (number, bytes) of each clip written."""
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = clip_path(root, number)
        if not path.exists():
            clip = film_clip(stock, plan, number)
            meta = {"rate": round(clip.rate, 3), "kind": plan.kind, "seed": plan.seed, "classes": clip.classes}
            yield number, write_clip(path, clip.images, clip.labels, meta)
