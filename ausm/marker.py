"""History Marker: dissolve ID vectors into the pixels their masks cover (section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def mark(A: Tensor, M: Tensor) -> Tensor:
    """S[n, :] = sum_i M[i, n] A[i, :] / (eps + sum_i M[i, n]).

    A: (..., K, D) ID vectors in use. M: (..., K, N) binary masks over the N tokens of the grid; K may be 0.
    Returns (..., N, D). Masks must be hard (A5): the ratio would give a pixel of M = 0.01 the id at full strength.
    """
    M = M.to(A.dtype)
    weights = M / (EPS + M.sum(-2, keepdim=True))
    return weights.transpose(-1, -2) @ A


def marks_from_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (..., H, W), any resolution -> bool (..., h, w): bilinear resize, then > 0 (A5)."""
    lead = logits.shape[:-2]
    flat = logits.reshape(-1, 1, *logits.shape[-2:]).float()
    out = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return (out > 0).reshape(*lead, *size)


def marks_from_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Binary masks (..., H, W) -> bool (..., h, w): area average >= 0.5, any cover if it would vanish (A5)."""
    lead = masks.shape[:-2]
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    if flat.shape[0] == 0:
        return torch.zeros(*lead, *size, dtype=torch.bool, device=masks.device)
    average = F.adaptive_avg_pool2d(flat, size)
    out = average >= 0.5
    vanished = ~out.flatten(1).any(1)
    out[vanished] = average[vanished] > 0
    return out.reshape(*lead, *size)
