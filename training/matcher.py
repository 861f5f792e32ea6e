"""Hungarian matching of detection queries to detection targets, all frames at once (Mask2Former's costs)."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    objectness: Tensor,
    targets: Tensor,
    wanted: Tensor,
    weights: tuple[float, float, float],
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One-to-one assignment per frame of least total cost.

    logits (F, Q, P) mask logits and targets (F, K, P) in 0..1 at the same P points; objectness (F, Q) logits;
    wanted (F, K) bool: which targets exist; weights of (class, mask BCE, dice); extra (F, Q, K): further costs.
    Returns (frame, query, target) indices, each (n,), n = wanted.sum() when Q is large enough.
    """
    w_class, w_mask, w_dice = weights
    logits, targets = logits.float(), targets.float()
    points = logits.shape[-1]
    p = logits.sigmoid()
    # BCE(x, y) = softplus(x) - x y, summed over points: a matrix product instead of a (F, Q, K, P) tensor.
    # Both sums nearly cancel, so neither may run in the half precision of the trainer's autocast
    with torch.autocast(logits.device.type, enabled=False):
        inner, shared = logits @ targets.transpose(1, 2), p @ targets.transpose(1, 2)
    mask_cost = (F.softplus(logits).sum(-1, keepdim=True) - inner) / points
    dice_cost = 1 - (2 * shared + 1) / (p.sum(-1)[..., None] + targets.sum(-1)[:, None] + 1)
    cost = w_mask * mask_cost + w_dice * dice_cost - w_class * objectness.float().sigmoid()[..., None]
    if extra is not None:
        cost = cost + extra
    costs, present = cost.cpu().numpy(), wanted.cpu().numpy()  # one transfer for all frames
    frames, queries, ids = [], [], []
    for f in np.flatnonzero(present.any(1)):
        k = np.flatnonzero(present[f])
        q, j = linear_sum_assignment(np.nan_to_num(costs[f][:, k], nan=1e6, posinf=1e6))
        frames += [f] * len(q)
        queries += q.tolist()
        ids += k[j].tolist()
    index = torch.tensor([frames, queries, ids], dtype=torch.long, device=logits.device)
    return index[0], index[1], index[2]
