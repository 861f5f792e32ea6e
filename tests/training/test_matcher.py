"""The matcher against every assignment there is."""

from itertools import permutations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.matcher import match

WEIGHTS = (2.0, 5.0, 5.0)


def costs(logits: torch.Tensor, objectness: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(Q, K) of one frame, term by term as Mask2Former states them."""
    Q, K = len(logits), len(targets)
    out = torch.zeros(Q, K, dtype=torch.float64)
    for q in range(Q):
        for k in range(K):
            x, y = logits[q].double(), targets[k].double()
            p = x.sigmoid()
            dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            bce = F.binary_cross_entropy_with_logits(x, y)
            out[q, k] = 5 * bce + 5 * dice - 2 * objectness[q].double().sigmoid()
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 4), st.integers(1, 9), st.integers(0, 2**31))
def test_least_cost_of_all_assignments(frames: int, Q: int, K: int, P: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(frames, Q, P, generator=g)
    objectness = torch.randn(frames, Q, generator=g)
    targets = (torch.rand(frames, K, P, generator=g) < 0.5).float()
    wanted = torch.rand(frames, K, generator=g) < 0.7
    f, q, k = match(logits, objectness, targets, wanted, WEIGHTS)
    for frame in range(frames):
        mine = f == frame
        queries, ids = q[mine].tolist(), k[mine].tolist()
        present = wanted[frame].nonzero().flatten().tolist()
        assert len(set(queries)) == len(queries) == len(set(ids)) == min(len(present), Q) and set(ids) <= set(present)
        table = costs(logits[frame], objectness[frame], targets[frame])
        got = sum(float(table[a, b]) for a, b in zip(queries, ids, strict=True))
        small, large = sorted((len(present), Q))
        best = min(
            sum(
                float(table[c, present[i]]) if large == Q else float(table[i, present[c]]) for i, c in enumerate(choice)
            )
            for choice in permutations(range(large), small)
        )
        assert abs(got - best) < 1e-4


def test_exact_masks_are_found_and_nan_does_not_stop_training() -> None:
    targets = torch.eye(3).repeat(1, 4)[None]
    order = torch.tensor([2, 0, 1])
    logits = 20 * targets[:, order] - 10
    f, q, k = match(logits, torch.zeros(1, 3), targets, torch.ones(1, 3, dtype=torch.bool), WEIGHTS)
    assert f.tolist() == [0, 0, 0] and order[q].tolist() == k.tolist()
    logits[0, 1] = float("nan")
    f, q, k = match(logits, torch.zeros(1, 3), targets, torch.ones(1, 3, dtype=torch.bool), WEIGHTS)
    assert sorted(q.tolist()) == [0, 1, 2] == sorted(k.tolist())
    f, q, k = match(logits, torch.zeros(1, 3), targets, torch.zeros(1, 3, dtype=torch.bool), WEIGHTS)
    assert len(f) == len(q) == len(k) == 0


def test_the_trainers_autocast_does_not_touch_the_costs() -> None:
    """Sums over many points nearly cancel: in bfloat16 the nearer of two alike masks would be told by chance."""
    g = torch.Generator().manual_seed(0)
    targets = (torch.rand(40, 6, 6144, generator=g) < 0.3).float()
    logits = 8 * (targets[:, :1] - 0.5) + 0.5 * torch.randn(40, 12, 6144, generator=g)
    inputs = logits, torch.zeros(40, 12), targets, torch.ones(40, 6, dtype=torch.bool), WEIGHTS
    plain = match(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under = match(*inputs)
    for one, other in zip(plain, under, strict=True):
        assert torch.equal(one, other)
