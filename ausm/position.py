"""2-D sine position code on normalised coordinates (as in DETR and Mask2Former): one code for every image size."""

import math
from functools import lru_cache

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


@lru_cache(maxsize=32)
def sine_position(h: int, w: int, D: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(h * w, D): the first half codes y, the second x, coordinates in (0, 2 pi]."""
    if D % 4:
        raise ValueError(f"D {D} must be a multiple of 4")
    half = D // 2
    frequency = TEMPERATURE ** (2 * (torch.arange(half, device=device) // 2).float() / half)

    def axis(n: int) -> Tensor:
        angle = (torch.arange(1, n + 1, device=device).float() / n * 2 * math.pi)[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)  # (n, half)

    y = axis(h)[:, None].expand(h, w, half)
    x = axis(w)[None].expand(h, w, half)
    return torch.cat((y, x), -1).reshape(h * w, D).to(dtype)
