"""Smooth paths of cameras and of pasted objects, as 2x3 matrices that map output pixels to source pixels.

Every draw comes from the generator passed in, so a clip is a pure function of its seed.
"""

from typing import NamedTuple

import numpy as np


class Motion(NamedTuple):
    """How much a camera moves: fractions of the window and radians, per frame; `jitter` in pixels of the output."""

    pan: float
    zoom: float
    turn: float
    tilt: float  # largest constant rotation, radians
    jitter: float


STILL = Motion(pan=0.04, zoom=0.03, turn=0.02, tilt=0.15, jitter=1.5)  # pseudo-videos: all motion is ours
VIDEO = Motion(pan=0.004, zoom=0.004, turn=0.002, tilt=0.05, jitter=0.0)  # real clips move by themselves


def smooth(rng: np.random.Generator, frames: int, speed: float) -> np.ndarray:
    """(T,) path through 0 at its middle: a steady drift plus one slow wave, about `speed` a frame."""
    time = np.arange(frames) - (frames - 1) / 2
    period = rng.uniform(5, 20)
    drift = rng.normal() * speed * time
    wave = rng.normal() * speed * period / 6 * np.sin(2 * np.pi * (time / period + rng.uniform()))
    path: np.ndarray = drift + wave
    return path


def affine(centre: np.ndarray, scale: np.ndarray, angle: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 2, 3) maps from output pixels to source pixels.

    centre (T, 2): source point (x, y) at the middle of the output; scale (T, 2): output pixels per source pixel along
    x and y; angle (T,): radians; size: (H, W) of the output.
    """
    height, width = size
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.empty((len(centre), 2, 2))
    linear[:, 0, 0], linear[:, 0, 1] = cos / scale[:, 0], -sin / scale[:, 1]
    linear[:, 1, 0], linear[:, 1, 1] = sin / scale[:, 0], cos / scale[:, 1]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([linear, (centre - linear @ middle)[:, :, None]], axis=2)


def camera_path(
    rng: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    source: tuple[int, int],
    focus: np.ndarray,
    motion: Motion,
    *,
    close: float = 0.0,
    jump: bool = False,
    away: tuple[int, int] | None = None,
) -> np.ndarray:
    """(T, 2, 3) maps from output to source pixels of a wandering window.

    size: (H, W) of the output, source: (H, W) of the frames, focus (4,): x0, y0, x1, y1 of what should be seen.
    close: 0 = the whole width of the frame if that shows the focus, 1 = about twice nearer. jump: one hard cut.
    away: frames [first, last) during which the window looks elsewhere, so that the focus leaves the picture.
    """
    out, have = np.array(size[::-1], float), np.array(source[::-1], float)
    cover, contain = (out / have).max(), (out / have).min()
    # a window much wider than a tall source shows too little of it: meet half way, the rest is border
    base = cover if cover < 1.4 * contain else cover**0.7 * contain**0.3 * rng.uniform(0.9, 1.15)
    extent = np.maximum(focus[2:] - focus[:2], 1.0)
    fit = (out / extent).min()  # scale at which the focus fills the window
    scale0 = np.clip(
        base * 2.2 ** (close * rng.uniform(0.0 if away is None else 0.5, 1.0)),
        base,
        max(base, fit * rng.uniform(0.6, 1.1)),
    )

    scale = scale0 * np.exp(smooth(rng, frames, motion.zoom))
    angle = rng.normal() * motion.tilt * 0.5 + smooth(rng, frames, motion.turn)
    window = out / scale0
    shift = np.stack([smooth(rng, frames, motion.pan) * window[0], smooth(rng, frames, motion.pan) * window[1]], axis=1)
    target = (focus[:2] + focus[2:]) / 2 + rng.uniform(-0.25, 0.25, 2) * window
    if jump and frames > 2:
        cut = int(rng.integers(1, frames))
        scale[cut:] *= rng.uniform(0.7, 1.4)
        shift[cut:] += rng.uniform(-0.35, 0.35, 2) * window
    half = out[None] / scale[:, None] / 2
    lower, upper = np.minimum(half, have - half), np.maximum(half, have - half)
    narrow = half * 2 > have  # window larger than the source along this axis: stay near the middle
    lower, upper = np.where(narrow, have / 2 - 0.1 * have, lower), np.where(narrow, have / 2 + 0.1 * have, upper)
    centre = np.clip(target + shift, lower, upper)
    if away is not None:
        centre += _look_away(rng, frames, centre, half, have, focus, away)
    centre += rng.normal(size=(frames, 2)) * motion.jitter / scale[:, None]
    stretch = np.exp(rng.uniform(-0.06, 0.06))
    return affine(centre, np.stack([scale * stretch, scale / stretch], axis=1), np.broadcast_to(angle, frames), size)


def _look_away(
    rng: np.random.Generator,
    frames: int,
    centre: np.ndarray,
    half: np.ndarray,
    have: np.ndarray,
    focus: np.ndarray,
    away: tuple[int, int],
) -> np.ndarray:
    """(T, 2) added to the window's path: away from the focus along the axis and side with most room, then back."""
    middle, reach = (focus[:2] + focus[2:]) / 2, (focus[2:] - focus[:2]) / 2
    span = half.mean(axis=0)
    # distance the window's middle needs from the focus, and what is there on each side
    need = half[away[0] : away[1]].max(axis=0) * 1.1 + reach * 1.3  # rotation makes both wider
    room = np.concatenate([middle - span, have - span - middle]) / np.concatenate([need, need])
    side = int(np.argmax(room + rng.uniform(0, 0.15, 4)))
    if room[side] < 0.7:  # it would look at nothing but border: stay
        return np.zeros((frames, 2))
    axis, sign = side % 2, (1.0 if side >= 2 else -1.0)
    held = np.zeros(frames)
    held[away[0] : away[1]] = 1.0
    ramp = held.copy()
    if rng.random() < 0.5 and away[1] - away[0] > 2:  # a pan instead of a cut: half way on the edge frames
        ramp[away[0]] = ramp[away[1] - 1] = 0.6
    offset = np.zeros((frames, 2))
    offset[:, axis] = ramp * (middle[axis] + sign * need[axis] - centre[:, axis])
    return offset


def object_path(
    rng: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    extent: tuple[int, int],
    *,
    gone: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Path of a pasted object: centre (T, 2) in output pixels, scale (T, 2), angle (T,).

    extent: (h, w) of the cut-out at scale 1. gone: frames [first, last) at which it is outside the picture.
    """
    height, width = size
    span = np.array([width, height], float)
    start = rng.uniform(0.1, 0.9, 2) * span
    speed = float(rng.choice([0.005, 0.02, 0.04], p=[0.25, 0.5, 0.25]))
    walk = np.stack([smooth(rng, frames, speed), smooth(rng, frames, speed * 0.6)], axis=1)
    centre = start + walk * span + rng.normal(size=(frames, 2)) * rng.choice([0.0, 0.7])
    centre = np.clip(centre, -0.05 * span, 1.05 * span)
    if gone is not None:
        first, last = gone
        left = centre[first - 1, 0] < width / 2
        outside = -extent[1] * 0.8 if left else width + extent[1] * 0.8
        inside = centre[:, 0].copy()
        weight = np.zeros(frames)
        weight[first:last] = 1.0
        for frame, value in ((first - 1, 0.5), (last, 0.5)):  # it is seen crossing the edge
            if 0 < frame < frames:
                weight[frame] = value
        centre[:, 0] = inside * (1 - weight) + outside * weight
    grow = np.exp(np.clip(smooth(rng, frames, 0.03), -0.5, 0.5))
    squeeze = np.exp(np.clip(smooth(rng, frames, 0.015), -0.15, 0.15))
    angle = rng.normal() * 0.15 + smooth(rng, frames, float(rng.choice([0.0, 0.02, 0.08], p=[0.4, 0.4, 0.2])))
    return centre, np.stack([grow * squeeze, grow / squeeze], axis=1), angle


def absent_span(rng: np.random.Generator, frames: int) -> tuple[int, int]:
    """Frames [first, last) of an absence: seen before it, and mostly seen again after it. Needs frames >= 3."""
    longest = max(1, (frames - 2) * 2 // 3)
    length = int(rng.integers(1 if frames < 6 else 2, longest + 1)) if longest > 1 else 1
    first = int(rng.integers(1, max(2, frames - length)))
    if rng.random() < 0.1:  # never back inside this clip
        return first, frames
    return first, min(first + length, frames - 1)
