"""From mask logits of one frame to hard masks: gates, one winner per pixel, duplicates among detections."""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ausm.config import StreamConfig
from ausm.errors import NotFiniteError
from ausm.pixel_decoder import Predictions
from ausm.tracks import StepOutput


class Geometry(NamedTuple):
    """Input image -> inner image (resized to `short_side`) -> padded grid."""

    height: int  # input image, pixels
    width: int
    inner_height: int
    inner_width: int

    @classmethod
    def of(cls, height: int, width: int, short_side: int) -> "Geometry":
        """Resize so that the shorter side is `short_side`; never enlarge more than 2x (nothing is gained by it)."""
        scale = min(short_side / min(height, width), 2.0)
        return cls(height, width, max(round(height * scale), 8), max(round(width * scale), 8))


def resize_image(image: np.ndarray, g: Geometry) -> np.ndarray:
    """(H, W, 3) uint8 -> (inner_height, inner_width, 3)."""
    if (g.inner_height, g.inner_width) == image.shape[:2]:
        return np.ascontiguousarray(image)
    shrink = g.inner_height < g.height
    return cv2.resize(
        image, (g.inner_width, g.inner_height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )


def resize_prompts(masks: np.ndarray, g: Geometry, size: tuple[int, int]) -> Tensor:
    """Prompt masks (n, H, W) bool -> marks (n, h, w) bool on the padded grid of 8-pixel tokens.

    A token is marked if at least half of it is object; any cover where the object would vanish (A5).
    """
    h, w = size
    out = np.zeros((len(masks), h, w), bool)
    for i, mask in enumerate(masks):
        inner = cv2.resize(mask.astype(np.float32), (g.inner_width, g.inner_height), interpolation=cv2.INTER_AREA)
        padded = np.zeros((h * 8, w * 8), np.float32)
        padded[: g.inner_height, : g.inner_width] = inner
        average = padded.reshape(h, 8, w, 8).mean((1, 3))
        out[i] = average >= 0.5
        if not out[i].any():
            out[i] = average > 0
    return torch.from_numpy(out)


def check_finite(output: StepOutput, said: tuple[Predictions, Geometry] | None) -> None:
    """Raises NotFiniteError unless a step's scores, and what the model said of its image if known, are numbers.

    Not the scores alone: where every logit is NaN nothing is seen, and each object keeps the score it had.
    """
    if not all(math.isfinite(t.score) for t in output.tracks) or (said is not None and not all_finite(said[0])):
        raise NotFiniteError(f"frame {output.frame_index}: the model's output is not finite")


def all_finite(out: Predictions) -> bool:
    """Whether no logit is NaN or infinite. A sum says it in one pass, some 20 times faster than `isfinite` of each."""
    return math.isfinite(out.masks.sum(dtype=torch.float32) + out.objectness.sum(dtype=torch.float32))


def exclusive(logits: Tensor) -> Tensor:
    """(K, H, W) logits -> the same, negative wherever another object's logit is larger: one object per pixel (A14)."""
    if len(logits) < 2:
        return logits
    return torch.where(logits == logits.amax(0, keepdim=True), logits, -logits.abs())


def shown_masks(logits: Tensor, shown: Tensor) -> Tensor:
    """(K, H, W) logits of tracked objects -> `exclusive` ones, all negative where `shown` (K,) bool is not set."""
    return exclusive(torch.where(shown[:, None, None], logits, -logits.abs()))


def full_size_masks(logits: np.ndarray, g: Geometry) -> np.ndarray:
    """Logits (K, H/4, W/4) on the padded grid -> (K, height, width) bool, at most one object per pixel, background = 0.

    Bilinear at the exact position of each input pixel; only the box around an object's positive logits is computed.
    """
    K = len(logits)
    best = np.zeros((g.height, g.width), np.float32)
    winner = np.full((g.height, g.width), -1, np.int16)
    ax, ay = g.inner_width / (4 * g.width), g.inner_height / (4 * g.height)  # input pixel -> logit cell
    boxes = []
    for k in range(K):
        box = _support(logits[k], ax, ay, g)
        boxes.append(box)
        if box is None:
            continue
        x0, y0, x1, y1 = box
        matrix = np.array([[ax, 0, (x0 + 0.5) * ax - 0.5], [0, ay, (y0 + 0.5) * ay - 0.5]])
        value = cv2.warpAffine(
            logits[k],
            matrix,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        better = value > best[y0:y1, x0:x1]
        best[y0:y1, x0:x1][better] = value[better]
        winner[y0:y1, x0:x1][better] = k
    masks = np.zeros((K, g.height, g.width), bool)
    for k, box in enumerate(boxes):
        if box is not None:
            x0, y0, x1, y1 = box
            masks[k, y0:y1, x0:x1] = winner[y0:y1, x0:x1] == k
    return masks


def _support(logits: np.ndarray, ax: float, ay: float, g: Geometry) -> tuple[int, int, int, int] | None:
    """Input-pixel box that contains every pixel interpolated from a positive cell."""
    positive = logits > 0
    rows, columns = np.flatnonzero(positive.any(1)), np.flatnonzero(positive.any(0))
    if not len(rows):
        return None
    x0, x1 = int((columns[0] - 1) / ax), int(np.ceil((columns[-1] + 2) / ax))
    y0, y1 = int((rows[0] - 1) / ay), int(np.ceil((rows[-1] + 2) / ay))
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, g.width), min(y1, g.height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def keep_detections(masks: Tensor, scores: Tensor, taken: Tensor, limit: float) -> list[int]:
    """Indices of detections to keep, best score first: no duplicate of a live track or of a better detection (A11).

    masks (n, H, W) bool, scores (n,), taken (K, H, W) bool of live tracks. A duplicate overlaps by IoU > limit, or has
    more than that share of its own area inside the other.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    others = list(taken)
    for i in order:
        area = int(masks[i].sum())
        if area == 0:
            continue
        if limit < 1 and any(_duplicate(masks[i], area, other, limit) for other in others):
            continue
        kept.append(i)
        others.append(masks[i])
    return kept


def detections(logits: Tensor, fg: Tensor, tracked: Tensor, config: StreamConfig) -> list[int]:
    """D = filter_fg(y_det) (Alg. 1 l. 15), best first, without duplicates.

    logits (n, H, W) and foreground probabilities fg (n,) of the detection queries, tracked (K, H, W) logits.
    """
    over = (fg > config.score_threshold).nonzero().flatten()
    kept = keep_detections(logits[over] > 0, fg[over], tracked > 0, config.dedupe_iou)
    return over[kept].tolist()


def _duplicate(mask: Tensor, area: int, other: Tensor, limit: float) -> bool:
    inside = int((mask & other).sum())
    return inside > limit * area or inside > limit * (area + int(other.sum()) - inside)


def duplicates(masks: np.ndarray, others: np.ndarray, limit: float) -> list[bool]:
    """Which of masks (K, H, W) bool overlap one of others (n, H, W) bool by IoU > limit."""
    return [any((m & o).sum() > limit * (m | o).sum() for o in others) for m in masks]


def mask_confidence(logits: Tensor) -> Tensor:
    """(K, H, W) logits -> (K,) mean probability inside each mask; 1 for an empty one, so that objectness decides."""
    if len(logits) == 0:
        return logits.new_zeros(0)
    inside = (logits > 0).flatten(1)
    total = (logits.sigmoid().flatten(1) * inside).sum(1)
    count = inside.sum(1)
    return torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))
