"""History noise: what it may change and what it must not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.noise import HistoryNoise, add_noise

OFF = HistoryNoise(morph=0, shift=0, drop=0, blackout=0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(history, active) as `preprocess` makes them: small and large objects, touching the border or not."""
    B, T, K = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    g = generator(draw(st.integers(0, 2**31)))
    switch = torch.randint(0, T + 1, (B, 1, K), generator=g)
    active = torch.arange(T)[None, :, None] >= switch
    history = torch.zeros(B, T, K, 6, 8, dtype=torch.bool)
    for b in range(B):
        for k in range(K):
            y, x = int(torch.randint(0, 6, (), generator=g)), int(torch.randint(0, 8, (), generator=g))
            h, w = (int(torch.randint(1, 4, (), generator=g)) for _ in range(2))
            history[b, :, k, y : y + h, x : x + w] = True
    seen = torch.rand(B, T, K, generator=g) < 0.8
    return history & (active & seen)[..., None, None], active


@settings(max_examples=80, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 2**31))
def test_noise_keeps_within_its_bounds(case: tuple[Tensor, Tensor], seed: int) -> None:
    history, active = case
    before = history.clone()
    noise = HistoryNoise(morph=0.5, shift=0.5, drop=0.3, blackout=0.5)
    out = add_noise(history, active, noise, generator(seed))
    assert out.shape == history.shape and out.dtype == torch.bool
    assert torch.equal(history, before)  # not in place
    assert torch.equal(out, add_noise(history, active, noise, generator(seed)))
    had = history.flatten(3).any(-1)
    has = out.flatten(3).any(-1)
    assert not (has & ~had).any()  # nothing is marked that was not there
    first = active & (active.cumsum(1) == 1)
    assert torch.equal(has & first, had & first)  # an instance keeps the first history it has
    reach = torch.nn.functional.max_pool2d(history.float().flatten(0, 1), 7, 1, 3).view_as(history) > 0
    assert not (out & ~reach).any()  # one token grown, two shifted, and never around to the other side
    assert torch.equal(add_noise(history, active, OFF, generator(seed)), history)


def blocks(T: int, K: int) -> tuple[Tensor, Tensor]:
    history = torch.zeros(1, T, K, 8, 8, dtype=torch.bool)
    history[..., 2:6, 2:6] = True
    return history, torch.ones(1, T, K, dtype=torch.bool)


def test_morphing_grows_or_shrinks_by_one_token() -> None:
    out = add_noise(*blocks(8, 200), replace(OFF, morph=0.4), generator(0))
    sizes = out.flatten(3).sum(-1).flatten()
    assert set(sizes.tolist()) == {4, 16, 36}
    shares = [float((sizes == n).float().mean()) for n in (4, 16, 36)]
    assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.04)


def test_shifts_move_whole_masks() -> None:
    corners = set()
    for seed in range(40):
        out = add_noise(*blocks(1, 50), replace(OFF, shift=1.0), generator(seed))
        assert (out.flatten(3).sum(-1) == 16).all()
        corners |= {tuple(m.nonzero()[0].tolist()) for m in out[0, 0]}
    assert (2, 2) not in corners and corners <= {(y, x) for y in range(5) for x in range(5)}
    assert len(corners) > 10


def test_blackouts_are_runs_of_frames_after_the_first() -> None:
    noise = replace(OFF, blackout=1.0, blackout_frames=(2, 3))
    has = add_noise(*blocks(10, 300), noise, generator(0)).flatten(3).any(-1)[0]  # (T, K)
    assert has[0].all()
    lengths = []
    for column in has.T:
        gone = (~column).nonzero().flatten()
        assert len(gone) >= 1 and torch.equal(gone, torch.arange(gone[0], gone[0] + len(gone)))  # one run
        lengths.append(len(gone))
    assert set(lengths) <= {1, 2, 3} and lengths.count(1) < 60  # cut short only by the end of the clip


def test_dropped_frames_have_the_given_share() -> None:
    has = add_noise(*blocks(11, 300), replace(OFF, drop=0.2), generator(0)).flatten(3).any(-1)[0]
    assert has[0].all() and float((~has[1:]).float().mean()) == pytest.approx(0.2, abs=0.03)
