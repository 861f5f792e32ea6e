"""2-D sine position code on normalised coordinates (as in DETR and Mask2Former): one code for every image size."""

import math
from functools import lru_cache

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a table first made during inference must stay usable in training
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


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def locality_bias(
    size: tuple[int, int],
    pooled: tuple[int, int],
    stride: int,
    reach: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Additive attention bias -d^2 / (2 reach^2), (1, heads, h * w, h' * w'); d in image heights, 0 = no bias."""

    def centres(h: int, w: int, step: int) -> Tensor:
        y = (torch.arange(h, device=device) + 0.5) * step / size[0]
        x = (torch.arange(w, device=device) + 0.5) * step / size[0]
        return torch.stack((y[:, None].expand(h, w), x[None].expand(h, w)), -1).reshape(-1, 2)

    d2 = torch.cdist(centres(*size, 1), centres(*pooled, stride)).square()
    return torch.stack([-d2 / (2 * r * r) if r else torch.zeros_like(d2) for r in reach])[None].to(dtype)
