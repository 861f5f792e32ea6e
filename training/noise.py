"""History noise against exposure bias and against relying on the last marks alone (section 1.3 of the design, issue C).

All functions change only what the model is told about the past, never the targets.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class HistoryNoise:
    """Probabilities per instance and frame, `blackout` per instance and clip."""

    morph: float = 0.1  # dilate or erode by one token
    shift: float = 0.1  # by one or two tokens
    drop: float = 0.05  # one frame without its mask
    blackout: float = 0.15  # a run of frames without marks although the object is visible: only the state knows it
    blackout_frames: tuple[int, int] = (2, 4)


def add_noise(history: Tensor, active: Tensor, noise: HistoryNoise, generator: torch.Generator) -> Tensor:
    """history (B, T, K, h, w) bool, active (B, T, K) bool -> noisy history, same shape, on the same device.

    No noise leaves an instance without any mark on its first history frame: it would have no history at all.
    """
    B, T, K = active.shape
    if K == 0:  # a clip without any object
        return history
    device = history.device

    def chance(p: float) -> Tensor:
        return (torch.rand(B, T, K, generator=generator) < p).to(device)[..., None, None]

    maps = history.float().flatten(0, 1)
    grown = (F.max_pool2d(maps, 3, 1, 1) > 0).view_as(history)
    shrunk = (F.max_pool2d(-maps, 3, 1, 1) < 0).view_as(history)
    grow = torch.rand(B, T, K, 1, 1, generator=generator).to(device) < 0.5
    out = torch.where(chance(noise.morph), torch.where(grow, grown, shrunk), history)
    code = torch.randint(0, 24, (B, T, K), generator=generator).to(device)
    code += code >= 12  # 12 of 0..24 would be no shift
    out = torch.where(chance(noise.shift), _shifted(out, code // 5 - 2, code % 5 - 2), out)

    first = active & (active.cumsum(1) == 1)
    gone = first & ~out.flatten(3).any(-1)
    out = torch.where(gone[..., None, None], history, out)
    lost = chance(noise.drop)[..., 0, 0]
    length = torch.randint(noise.blackout_frames[0], noise.blackout_frames[1] + 1, (B, 1, K), generator=generator)
    start = torch.randint(1, max(T, 2), (B, 1, K), generator=generator)
    t = torch.arange(T)[None, :, None]
    run = (t >= start) & (t < start + length) & (torch.rand(B, 1, K, generator=generator) < noise.blackout)
    lost = (lost | run.to(device)) & ~first
    return out & ~lost[..., None, None]


def _shifted(maps: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """maps (B, T, K, h, w) moved by dy, dx (B, T, K) tokens. What leaves the grid is lost; nothing enters it."""
    h, w = maps.shape[-2:]
    y = torch.arange(h, device=maps.device) - dy[..., None]
    x = torch.arange(w, device=maps.device) - dx[..., None]
    moved = maps.gather(-2, y.clamp(0, h - 1)[..., None].expand(maps.shape))
    moved = moved.gather(-1, x.clamp(0, w - 1)[..., None, :].expand(maps.shape))
    return moved & ((y >= 0) & (y < h))[..., None] & ((x >= 0) & (x < w))[..., None, :]
