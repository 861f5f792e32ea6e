"""`Preprocess` of Alg. 2: from the masks of a clip to detection targets, track targets and the teacher-forced history.

Frames are t = 1..T in the paper and index t - 1 here. Instance i switches from detection to tracking at ts_i:

    y_det[t, i] = y[t, i] if t <= ts_i else empty
    y_trk[t, i] = y[t, i] if t >  ts_i else empty
    M[t, i]     = y[t, i] if t >= ts_i else empty          (frame t reads M_{t-1})

ts = 0: prompted before the first frame, M_0 := y_1 (A3). ts = T: never tracked inside the clip.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ausm.marker import marks_from_masks


class Targets(NamedTuple):
    """Everything the parallel form and its losses need besides the images."""

    ids: Tensor  # (B, K) int64 rows of B, one per instance, without replacement
    history: Tensor  # (B, T, K, h, w) bool: M_{t-1}, what frame t reads
    active: Tensor  # (B, T, K) bool: id in A_{t-1}; these queries carry track targets, empty ones included (A6, A7)
    det: Tensor  # (B, T, K) bool: a detection target, visible
    masks: Tensor  # (B, T, K, H, W) bool: y
    visible: Tensor  # (B, T, K) bool: y is not empty
    fixed: Tensor  # (B, T, K) bool: marks made wrong on purpose, which the model's own masks do not replace


def sample_switch(
    visible: Tensor, valid: Tensor, first_p: float, generator: torch.Generator, unknown_p: float = 0.0
) -> Tensor:
    """Draw ts (B, K) in 0..T.

    visible (B, T, K) bool; valid (B, K) bool, false for padding. Candidates: 0 if visible on the first frame, every
    frame it is visible on (A4), T. With probability `first_p` its first appearance instead (A3). A share `unknown_p` of
    the clips begins as a stream that nobody has prompted: 0 is no candidate there.
    Padding and instances never visible get T + 1: neither target nor history.
    """
    B, T, K = visible.shape
    candidates = torch.zeros(B, T + 1, K, dtype=torch.bool)
    candidates[:, 0] = visible[:, 0]
    candidates[:, 1:] = visible
    candidates[:, T] = True
    if unknown_p > 0:  # without it the sequence of draws stays what it was
        candidates[:, 0] &= torch.rand(B, 1, generator=generator) >= unknown_p
    score = torch.rand(B, T + 1, K, generator=generator).masked_fill(~candidates, -1)
    ts = score.argmax(1)
    first = visible.int().argmax(1) + 1
    ts = torch.where(torch.rand(B, K, generator=generator) < first_p, first, ts)
    return torch.where(valid & visible.any(1), ts, T + 1)


def preprocess(masks: Tensor, ts: Tensor, grid: tuple[int, int], ids: Tensor) -> Targets:
    """A pure function of the clip's masks and the switch times (section 2.3, Fig. 3).

    masks (B, T, K, H, W) bool; ts (B, K) int64 in 0..T + 1 (T + 1 = unused); grid (h, w) of the tokens; ids (B, K).
    """
    T = masks.shape[1]
    visible = masks.flatten(3).any(-1)
    t = torch.arange(1, T + 1, device=masks.device)[None, :, None]
    switch = ts[:, None]
    used = switch <= T
    active = used & (t - 1 >= switch)  # i in A_{t-1}  <=>  M_{t-1} is defined  <=>  t > ts
    det = used & (t <= switch) & visible
    y = marks_from_masks(masks, grid)
    before = torch.cat((y[:, :1], y[:, :-1]), 1)  # M_{t-1} = y_{t-1}; M_0 = y_1
    return Targets(ids, before & active[..., None, None], active, det, masks, visible, torch.zeros_like(active))


def sample_ids(B: int, K: int, N_id: int, generator: torch.Generator) -> Tensor:
    """Sampler(B, K) for each clip: rows without replacement -> (B, K)."""
    if N_id < K:
        raise ValueError(f"{K} instances in a clip, N_id={N_id}")
    return torch.rand(B, N_id, generator=generator).argsort(1)[:, :K]
