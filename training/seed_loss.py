"""Loss of the score map of `ausm.seeds`: the middle of every object to be detected, in CenterNet's form (Zhou et al.
2019): a focal loss that forgives tokens near the middle."""

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD = 0.1  # standard deviation of the forgiving Gaussian, in square roots of the object's area
LEAST_SPREAD = 0.5  # tokens
COVERED = 0.3  # share of a token that makes it part of an object


def seed_loss(scores: Tensor, masks: Tensor, wanted: Tensor, known: Tensor, exhaustive: bool) -> Tensor:
    """Sum over tokens.

    scores (F, h, w) logits; masks (F, K, H, W) bool; wanted (F, K) bool: to be detected; known (F, K) bool: visible and
    labelled, tracked ones included. Without exhaustive labels only tokens on labelled objects are taught to be none.
    """
    frames, (h, w) = len(scores), scores.shape[-2:]
    heat = torch.zeros(frames, h, w, device=scores.device)
    middle = torch.zeros(frames, h, w, dtype=torch.bool, device=scores.device)
    labelled = torch.zeros_like(middle)
    f, k = known.nonzero(as_tuple=True)
    if len(f):
        cover = _cover(masks[f, k], (h, w))
        labelled.index_put_((f,), cover >= COVERED, accumulate=True)
        is_wanted = wanted[f, k]
        cover, f = cover[is_wanted], f[is_wanted]
    if len(f):
        peaks, near = _middles(cover)
        at = f[:, None, None].expand_as(near)
        heat = heat.scatter_reduce(0, at, near, "amax")
        middle[f, peaks // w, peaks % w] = True
    heat = heat.masked_fill(middle, 1.0)
    p = scores.float().sigmoid()
    hit = F.logsigmoid(scores.float()) * (1 - p) ** 2
    miss = F.logsigmoid(-scores.float()) * p**2 * (1 - heat) ** 4
    taught = torch.ones_like(middle) if exhaustive else labelled
    return -(hit * middle + miss * (taught & ~middle)).sum()


@torch.no_grad()
def way_to_seeds(centres: Tensor, masks: Tensor, wanted: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far each seed is from the middle of each target, in square roots of the target's area: (F, Q, K), 0 where not
    wanted. centres (F, Q, 2) y, x in image heights; masks (F, K, H, W); wanted (F, K); grid (h, w) of the scores."""
    h, w = grid
    way = torch.zeros(len(centres), centres.shape[1], masks.shape[1], device=centres.device)
    f, k = wanted.nonzero(as_tuple=True)
    if len(f):
        cover = _cover(masks[f, k], grid)
        peaks, _ = _middles(cover)
        middle = (torch.stack((peaks // w, peaks % w), -1).float() + 0.5) / h
        size = cover.flatten(1).sum(1).clamp(min=1).sqrt() / h
        way[f, :, k] = (centres[f] - middle[:, None]).norm(dim=-1) / size[:, None]
    return way


def _cover(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """masks (n, H, W) bool -> (n, h, w), the share of each token that is object."""
    return F.adaptive_avg_pool2d(masks.float()[:, None], grid)[:, 0]


def _middles(cover: Tensor) -> tuple[Tensor, Tensor]:
    """cover (n, h, w), share of each token that is object -> index of the middle token (n,), heat around it (n, h, w).

    The middle is the covered token nearest to the centroid, so it lies on the object whatever its shape.
    """
    _, h, w = cover.shape
    y = torch.arange(h, device=cover.device).float()[:, None].expand(h, w)
    x = torch.arange(w, device=cover.device).float()[None].expand(h, w)
    area = cover.flatten(1).sum(1).clamp(min=1e-6)
    cy, cx = (((cover * axis).flatten(1).sum(1) / area)[:, None, None] for axis in (y, x))
    away = (y - cy) ** 2 + (x - cx) ** 2
    solid = cover >= torch.clamp(cover.flatten(1).amax(1), max=COVERED)[:, None, None]
    peaks = away.masked_fill(~solid, float("inf")).flatten(1).argmin(1)
    py, px = (peaks // w)[:, None, None], (peaks % w)[:, None, None]
    sigma = (SPREAD * area.sqrt()).clamp(min=LEAST_SPREAD)[:, None, None]
    return peaks, torch.exp(-((y - py) ** 2 + (x - px) ** 2) / (2 * sigma**2))
