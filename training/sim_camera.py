"""The simulated camera: a pinhole with the OpenCV axes (x right, y down, z forward), and the ways it moves.

World axes: z up, metres. Times in seconds from the first frame.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEAR, FAR = 0.02, 60.0  # clipping planes, metres
REACH = 2.5  # s, see CameraPath


@dataclass(frozen=True)
class Lens:
    """Image size in pixels and focal length in pixels; the optical centre is the image centre."""

    height: int
    width: int
    focal: float

    def matrix(self) -> Floats:
        """K (3, 3). Pixel centres are at whole numbers, as in OpenCV and ROS."""
        return np.array([[self.focal, 0, (self.width - 1) / 2], [0, self.focal, (self.height - 1) / 2], [0, 0, 1]])

    def projection(self) -> list[float]:
        """OpenGL projection as 16 numbers, column by column, which is what PyBullet takes.

        Its software renderer samples pixels at their lower left corners; the third column moves that to the centres.
        """
        p = np.zeros((4, 4))
        p[0, 0], p[1, 1] = 2 * self.focal / self.width, 2 * self.focal / self.height
        p[0, 2], p[1, 2] = 1 / self.width, 1 / self.height
        p[2, 2], p[2, 3], p[3, 2] = -(FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR), -1.0
        return [float(x) for x in p.T.reshape(-1)]


@dataclass(frozen=True)
class Pose:
    """World to camera: p_camera = rotation @ p_world + translation."""

    rotation: Floats  # (3, 3)
    translation: Floats  # (3,)

    @property
    def eye(self) -> Floats:
        return -self.rotation.T @ self.translation

    def view(self) -> Floats:
        """OpenGL view matrix (4, 4): y up, looking along -z."""
        v = np.eye(4)
        flip = np.diag([1.0, -1.0, -1.0])
        v[:3, :3], v[:3, 3] = flip @ self.rotation, flip @ self.translation
        return v


def look_at(eye: Floats, target: Floats, roll: float = 0.0) -> Pose:
    """Pose of a camera at `eye` (3,) that looks at `target` (3,), turned about its axis by `roll` rad."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / max(float(np.linalg.norm(right)), 1e-9)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    rotation = np.stack([c * right + s * down, -s * right + c * down, forward])
    return Pose(rotation, -rotation @ eye)


@dataclass(frozen=True)
class Sway:
    """Smooth unrest: a sum of three sines per axis."""

    amplitude: Floats  # (3, n)
    rate: Floats  # (3, n) rad/s
    phase: Floats  # (3, n)

    @staticmethod
    def draw(rng: np.random.Generator, size: float, axes: int = 3, hertz: tuple[float, float] = (0.2, 2.5)) -> "Sway":
        """Unrest of about `size` (metres or rad) in `axes` directions."""
        rate = 2 * np.pi * rng.uniform(*hertz, (3, axes))
        return Sway(size * rng.normal(0, 0.6, (3, axes)), rate, rng.uniform(0, 2 * np.pi, (3, axes)))

    def at(self, t: float) -> Floats:
        """(n,) the displacement at time t."""
        return np.asarray((self.amplitude * np.sin(self.rate * t + self.phase)).sum(0))


@dataclass(frozen=True)
class CameraPath:
    """The camera circles, approaches, slides and pans about a target; every rate may be zero.

    Rates are those at t = 0. Movements that would lose the scene from view slow down and turn back: they follow
    REACH sin(t / REACH) in place of t, so a long recording shows its objects leave and return.
    """

    target: Floats  # (3,)
    distance: float  # m, at t = 0
    azimuth: float  # rad
    elevation: float  # rad above the horizon
    azimuth_rate: float  # rad/s: orbit
    elevation_rate: float  # rad/s
    approach: float  # share of the distance per second: dolly, > 0 nearer
    slide: Floats  # (3,) m/s: target and eye move together
    pan: float  # rad/s: the view turns away about the vertical
    pan_swing: tuple[float, float]  # amplitude rad, period s: looks away and comes back
    roll: float  # rad
    sway: Sway  # m, of the eye
    shake: Sway  # m at the target: where the camera looks
    glance: tuple[float, float, float, float] = (
        0.0,
        0.0,
        0.0,
        1.0,
    )  # looks away by rad, from s, until s, turning for s

    def pose(self, t: float) -> Pose:
        """Pose at time t (s)."""
        azimuth = self.azimuth + self.azimuth_rate * t
        bounded = REACH * float(np.sin(t / REACH))
        elevation = float(np.clip(self.elevation + self.elevation_rate * bounded, 0.05, 1.45))
        distance = self.distance * float(np.exp(-self.approach * bounded))
        ring = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        target = self.target + self.slide * bounded
        eye = target + distance * ring + self.sway.at(t)
        eye[2] = max(eye[2], 0.04)
        angle = self.pan * bounded + self.pan_swing[0] * np.sin(2 * np.pi * t / self.pan_swing[1])
        away, leave, back, turning = self.glance
        angle += away * float(np.interp(t, [leave - turning, leave, back, back + turning], [0.0, 1.0, 1.0, 0.0]))
        c, s = np.cos(angle), np.sin(angle)
        forward = target + self.shake.at(t) - eye
        forward = np.array([c * forward[0] - s * forward[1], s * forward[0] + c * forward[1], forward[2]])
        return look_at(eye, eye + forward, self.roll)


def draw_path(rng: np.random.Generator, target: Floats, distance: float, elevation: tuple[float, float]) -> CameraPath:
    """A random way to move: a third stands still, the others orbit, dolly, slide, pan or mix these; most sway."""
    moves = {"orbit": 0.0, "dolly": 0.0, "slide": 0.0, "pan": 0.0, "swing": 0.0, "tilt": 0.0}
    if rng.random() > 0.3:
        for name in rng.choice(list(moves), size=int(rng.integers(1, 4)), replace=False):
            moves[str(name)] = float(rng.choice([-1, 1]) * rng.uniform(0.3, 1.0) ** 2)
    heading = rng.normal(0, 1, 3) * np.array([1, 1, 0.15])
    handheld = rng.random() < 0.6
    return CameraPath(
        target=target,
        distance=distance,
        azimuth=float(rng.uniform(0, 2 * np.pi)),
        elevation=float(rng.uniform(*elevation)),
        azimuth_rate=0.9 * moves["orbit"],
        elevation_rate=0.25 * moves["tilt"],
        approach=0.45 * moves["dolly"],
        slide=0.35 * distance * moves["slide"] * heading / np.linalg.norm(heading),
        pan=0.35 * moves["pan"],
        pan_swing=(0.5 * moves["swing"], float(rng.uniform(1.5, 4.0))),
        roll=float(rng.normal(0, 0.06)),
        sway=Sway.draw(rng, 0.012 * distance * handheld),
        shake=Sway.draw(rng, 0.02 * distance * handheld, hertz=(0.3, 4.0)),
    )
