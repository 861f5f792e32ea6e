"""From a scene to what its camera sees: objects over the painted room, shadows, and the faults of a real camera."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.sim_backdrop import paint_room
from training.sim_camera import Lens
from training.sim_scene import Scene


class SimFrame(NamedTuple):
    """One frame: image (H, W, 3) uint8 RGB, labels (H, W) uint8 of instance ids (0 = not an object)."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Photometry:
    """How the camera renders light, drawn once per clip."""

    gain: NDArray[np.float32]  # (H, W, 3) exposure, white balance, vignette and a patch of light
    gamma: float
    blur: float  # px, standard deviation
    noise: NDArray[np.int16]  # (2H, 2W, 3) grain, shifted at random for every frame
    flicker: tuple[float, float, float]  # amplitude, rad/s, phase of the exposure

    @staticmethod
    def draw(rng: np.random.Generator, height: int, width: int) -> "Photometry":
        """Mild for half the clips, strong for the rest."""
        strength = 0.5 if rng.random() < 0.5 else 1.0
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(max(height, width))
        cy, cx = rng.uniform(0, height / max(height, width)), rng.uniform(0, width / max(height, width))
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(0.25, 0.8) ** 2))
        gain = (1 - 0.4 * strength * rng.random()) + 0.5 * strength * rng.random() * spot
        white = 1 + strength * rng.normal(0, 0.08, 3)
        exposure = float(np.exp(strength * rng.normal(0, 0.22)))
        grain = rng.normal(0, strength * rng.uniform(0.5, 7.0), (2 * height, 2 * width, 3))
        return Photometry(
            (gain[..., None] * white * exposure).astype(np.float32),
            float(np.exp(strength * rng.normal(0, 0.2))),
            float(rng.uniform(0.45, 0.75) if rng.random() < 0.75 else rng.uniform(0.75, 1.4)),
            grain.astype(np.int16),
            (0.06 * strength * float(rng.random()), float(rng.uniform(0.5, 6)), float(rng.uniform(0, 6.3))),
        )

    def exposed(self, image: NDArray[np.uint8], rng: np.random.Generator) -> "Photometry":
        """The same camera after it has set its exposure on the first frame: a mean level within 60 to 150."""
        level = float((cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) * self.gain.mean()).mean())
        wanted = float(np.clip(level, rng.uniform(60, 105), rng.uniform(105, 150)))
        factor = np.float32(np.clip(wanted / max(level, 1.0), 0.3, 4.0))
        return replace(self, gain=self.gain * factor)

    def apply(self, image: NDArray[np.uint8], t: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The image (H, W, 3) as the camera delivers it at time t (s)."""
        height, width = image.shape[:2]
        blurred = cv2.GaussianBlur(image, (0, 0), self.blur)  # softens the stair-stepped outlines of the renderer too
        amplitude, rate, phase = self.flicker
        bright = cv2.multiply(blurred, self.gain, scale=1 + amplitude * np.sin(rate * t + phase), dtype=cv2.CV_8U)
        curve = (255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        noise = self.noise[top : top + height, left : left + width]
        return np.asarray(cv2.add(cv2.LUT(bright, curve), noise, dtype=cv2.CV_8U), np.uint8)


def render_frames(scene: Scene, lens: Lens, frames: int, rate: float, seed: list[int]) -> Iterator[SimFrame]:
    """Film the scene: `frames` frames at `rate` Hz. `seed` decides the photometry and the grain."""
    rng = np.random.default_rng(seed)
    photometry = Photometry.draw(rng, lens.height, lens.width)
    darkness, softness = rng.uniform(0.2, 0.65), rng.uniform(0.6, 2.5)
    small = Lens(lens.height // 2, lens.width // 2, lens.focal / 2)  # shadows are blurred anyhow
    for k in range(frames):
        t = k / rate
        scene.advance(t, 0.0 if k == 0 else 1.0 / rate)
        pose = scene.camera.pose(t)
        objects, labels = scene.world.render(lens, pose)
        image, ground = paint_room(scene.room, lens, pose)
        if scene.shadows and ground.any():
            shadow = cv2.GaussianBlur(scene.world.shadow(small, pose).astype(np.float32), (0, 0), softness)
            shadow = cv2.resize(shadow, (lens.width, lens.height), interpolation=cv2.INTER_LINEAR)
            shade = 1 - np.float32(darkness) * shadow * ground
            image = np.asarray(cv2.multiply(image, cv2.merge([shade, shade, shade]), dtype=cv2.CV_8U), np.uint8)
        cv2.copyTo(objects, (labels > 0).astype(np.uint8), image)
        if k == 0:
            photometry = photometry.exposed(image, rng)
        yield SimFrame(photometry.apply(image, t, rng), labels)
