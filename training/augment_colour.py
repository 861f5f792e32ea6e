"""Changes of look: one draw a clip plus a weak flicker a frame, so colours stay a cue inside the clip."""

from collections.abc import Callable

import cv2
import numpy as np

from training.clips import ClipConfig

LUMA = np.array([0.299, 0.587, 0.114])


def colour_matrix(rng: np.random.Generator, strength: float, grey: bool = False) -> np.ndarray:
    """(3, 4) map of RGB: brightness, contrast, saturation, hue and white balance, `strength` 1 = strong."""
    contrast = np.exp(rng.uniform(-0.35, 0.35) * strength)
    saturation = 0.0 if grey else np.exp(rng.uniform(-0.5, 0.4) * strength)
    hue = rng.uniform(-0.25, 0.25) * strength
    gains = np.exp(rng.uniform(-0.12, 0.12, 3) * strength)
    brightness = rng.uniform(-30, 30) * strength
    # rotation of the colour plane about the grey axis
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * cross + (1 - np.cos(hue)) * np.outer(axis, axis)
    saturate = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), LUMA)
    linear: np.ndarray = contrast * np.diag(gains) @ saturate @ turn
    return np.concatenate([linear, np.full((3, 1), brightness + 128 * (1 - contrast))], axis=1)


def flicker(rng: np.random.Generator, matrix: np.ndarray) -> np.ndarray:
    """The clip's matrix with a weak change of exposure on top."""
    gain = np.exp(rng.normal() * 0.03)
    changed: np.ndarray = matrix * gain
    changed[:, 3] += rng.normal() * 2
    return changed


def _motion_kernel(rng: np.random.Generator) -> np.ndarray:
    length = int(rng.choice([3, 5, 7]))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
    middle = (length - 1) / 2
    ends = [tuple(round(middle + sign * value) for value in reach) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    kernel /= kernel.sum()
    return kernel


def change_look(images: list[np.ndarray], rng: np.random.Generator, config: ClipConfig) -> list[np.ndarray]:
    """(H, W, 3) uint8 frames of one clip with new colours, blur, noise and compression, each by its probability."""
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    grey = rng.random() < config.grey
    if rng.random() < config.colour or grey:
        matrix = colour_matrix(rng, float(rng.choice([0.4, 1.0])), grey)
        steps.append(lambda image: cv2.transform(image, flicker(rng, matrix)))
    if rng.random() < config.blur:
        if rng.random() < 0.5:
            sigma = float(rng.uniform(0.5, 1.6))
            steps.append(lambda image: cv2.GaussianBlur(image, (0, 0), sigma))
        else:
            kernel = _motion_kernel(rng)
            steps.append(lambda image: cv2.filter2D(image, -1, kernel))
    if rng.random() < config.noise:
        height, width = images[0].shape[:2]
        tile = rng.standard_normal((height + 16, width + 16, 3), np.float32) * np.float32(rng.uniform(2, 10))
        field = np.clip(np.round(tile), -127, 127).astype(np.int16)

        def add_noise(image: np.ndarray) -> np.ndarray:
            y, x = rng.integers(0, 17, 2)  # the same tile, shifted: a fresh normal draw a frame costs 5 ms
            return cv2.add(image, field[y : y + height, x : x + width], dtype=cv2.CV_8U)

        steps.append(add_noise)
    if rng.random() < config.jpeg:
        quality = int(rng.integers(25, 80))

        def compress(image: np.ndarray) -> np.ndarray:
            encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))

        steps.append(compress)  # channel order does not matter to the artefacts
    changed = []
    for image in images:
        for step in steps:
            image = step(image)
        changed.append(image)
    return changed
