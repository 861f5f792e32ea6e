"""Masks and depth to points in space: NumPy and OpenCV only, no ROS.

Camera axes are ROS's optical ones: x right, y down, z forward, metres. Depth is the z of a pixel, as cameras give it.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from ausm.errors import ImageError, SizeError

UNITS = {"32FC1": ("f4", 1.0), "16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3)}  # REP 118: metres, or millimetres
# Distortion models of sensor_msgs/CameraInfo that OpenCV's undistortPoints knows, and how many coefficients they have
MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14)}
TRIM = 2.0  # percent of the points beyond each face of a box: depth is ragged where objects end


class Box3D(NamedTuple):
    """A box along the camera's axes [m]."""

    centre: tuple[float, float, float]
    size: tuple[float, float, float]


def decode_depth(
    data: Any, height: int, width: int, step: int, encoding: str, is_bigendian: bool = False
) -> np.ndarray:
    """(H, W) float32 metres; NaN where the camera saw nothing (zero, infinite or NaN in the message).

    32FC1 holds metres, 16UC1 and mono16 millimetres (REP 118). Raises `ImageError` with the numbers.
    """
    if encoding not in UNITS:
        raise ImageError(f"depth encoding '{encoding[:40]}' is not one of {' '.join(UNITS)}")
    letters, unit = UNITS[encoding]
    kind = np.dtype(letters).newbyteorder(">" if is_bigendian else "<")
    raw = np.frombuffer(data, np.uint8)
    row = width * kind.itemsize
    if height < 1 or width < 1 or step < row or not step * (height - 1) + row <= raw.size <= step * height:
        raise ImageError(f"depth image {height}x{width} of {encoding}, step {step}: {raw.size} bytes do not fit")
    rows = np.lib.stride_tricks.as_strided(raw, (height, row), (step, 1), writeable=False)
    depth = np.ascontiguousarray(rows).view(kind).astype(np.float32) * np.float32(unit)
    depth[~np.isfinite(depth) | (depth <= 0)] = np.nan
    return depth


def lens(model: str, K: np.ndarray, D: np.ndarray, P: np.ndarray, rectified: bool) -> tuple[np.ndarray, np.ndarray]:
    """The K (3, 3) and D (n,) that hold for the images, out of those of a sensor_msgs/CameraInfo and its P (3, 4).

    Rectified images have the intrinsics of P and no distortion any more. Raises `ImageError` for a lens that is not
    understood, naming the model and the number of its coefficients.
    """
    if rectified and P[0, 0] > 0:
        return P[:, :3], np.zeros(0)
    if not D.any() and model in ("", *MODELS):
        return K, np.zeros(0)  # also rectified: a driver of a lens without distortion may leave P empty
    if rectified:
        raise ImageError("camera info without P, which holds for rectified images (else: rectified:=false)")
    if D.size not in MODELS.get(model, ()):
        known = ", ".join(f"{name} of {'/'.join(map(str, sizes))}" for name, sizes in MODELS.items())
        raise ImageError(f"distortion model '{model[:40]}' with {D.size} coefficients is not known ({known})")
    return K, D


def rays(K: np.ndarray, D: np.ndarray, size: tuple[int, int], of: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32: x / z and y / z of every pixel, with the lens distortion taken out.

    K (3, 3) and D (n,) of `lens`, given for images of `of` (H, W); `size` is that of the depth
    image, which may be a scaled one of the same view. Raises `SizeError` when the shapes of the two do not agree.
    """
    height, width = size
    if min(of) < 1 or abs(height / of[0] - width / of[1]) > 0.01 * height / of[0]:
        raise SizeError(f"depth image {height}x{width}, camera info for {of[0]}x{of[1]}: not the same view")
    if not (K[0, 0] > 0 and K[1, 1] > 0):  # nor NaN
        raise ImageError(f"camera info without a calibration: focal lengths {K[0, 0]:g}, {K[1, 1]:g}")
    scale_y, scale_x = height / of[0], width / of[1]
    # Pixel centres: column u of the depth image is column (u + 0.5) / scale - 0.5 of the calibrated one.
    u, v = np.meshgrid((np.arange(width) + 0.5) / scale_x - 0.5, (np.arange(height) + 0.5) / scale_y - 0.5)
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    distortion = D.astype(np.float64) if D.size else None
    return cv2.undistortPoints(pixels, K.astype(np.float64), distortion).reshape(height, width, 2).astype(np.float32)


def project(mask: np.ndarray, depth: np.ndarray, view: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """(n, 3) float32 points of a mask [m]: pixels whose depth lies in nearest..farthest.

    mask (H', W') bool, scaled to the depth image (H, W) where it has another size; view (H, W, 2) of `rays`.
    """
    if mask.shape != depth.shape:
        mask = cv2.resize(mask.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    with np.errstate(invalid="ignore"):
        chosen = mask & (depth >= nearest) & (depth <= farthest)  # false for NaN
    z = depth[chosen]
    return np.column_stack([view[chosen] * z[:, None], z])


def box_of_points(points: np.ndarray) -> Box3D | None:
    """The box around the points but for the outermost `TRIM` percent on each side; None for fewer than 10 points."""
    if len(points) < 10:
        return None
    low, high = np.percentile(points, [TRIM, 100 - TRIM], axis=0)
    centre, size = (low + high) / 2, high - low
    return Box3D(tuple(float(v) for v in centre), tuple(float(v) for v in size))  # type: ignore[arg-type]
