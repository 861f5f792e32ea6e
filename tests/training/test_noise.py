"""History noise: what it may change and what it must not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.clips import ClipDataError
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
    out = add_noise(history, active, noise, generator(seed)).history
    assert out.shape == history.shape and out.dtype == torch.bool
    assert torch.equal(history, before)  # not in place
    assert torch.equal(out, add_noise(history, active, noise, generator(seed)).history)
    had = history.flatten(3).any(-1)
    has = out.flatten(3).any(-1)
    assert not (has & ~had).any()  # nothing is marked that was not there
    first = active & (active.cumsum(1) == 1)
    assert torch.equal(has & first, had & first)  # an instance keeps the first history it has
    reach = torch.nn.functional.max_pool2d(history.float().flatten(0, 1), 7, 1, 3).view_as(history) > 0
    assert not (out & ~reach).any()  # one token grown, two shifted, and never around to the other side
    assert torch.equal(add_noise(history, active, OFF, generator(seed)).history, history)


def blocks(T: int, K: int) -> tuple[Tensor, Tensor]:
    history = torch.zeros(1, T, K, 8, 8, dtype=torch.bool)
    history[..., 2:6, 2:6] = True
    return history, torch.ones(1, T, K, dtype=torch.bool)


def test_morphing_grows_or_shrinks_by_one_token() -> None:
    out = add_noise(*blocks(8, 200), replace(OFF, morph=0.4), generator(0)).history
    sizes = out.flatten(3).sum(-1).flatten()
    assert set(sizes.tolist()) == {4, 16, 36}
    shares = [float((sizes == n).float().mean()) for n in (4, 16, 36)]
    assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.04)


def test_shifts_move_whole_masks() -> None:
    corners = set()
    for seed in range(40):
        out = add_noise(*blocks(1, 50), replace(OFF, shift=1.0), generator(seed)).history
        assert (out.flatten(3).sum(-1) == 16).all()
        corners |= {tuple(m.nonzero()[0].tolist()) for m in out[0, 0]}
    assert (2, 2) not in corners and corners <= {(y, x) for y in range(5) for x in range(5)}
    assert len(corners) > 10


def test_blackouts_are_runs_of_frames_after_the_first() -> None:
    noise = replace(OFF, blackout=1.0, blackout_frames=(2, 3))
    has = add_noise(*blocks(10, 300), noise, generator(0)).history.flatten(3).any(-1)[0]  # (T, K)
    assert has[0].all()
    lengths = []
    for column in has.T:
        gone = (~column).nonzero().flatten()
        assert len(gone) >= 1 and torch.equal(gone, torch.arange(gone[0], gone[0] + len(gone)))  # one run
        lengths.append(len(gone))
    fixed = add_noise(*blocks(10, 300), noise, generator(0)).fixed[0]
    assert torch.equal(fixed, ~has)  # what is withheld for long, self-feeding must not repair
    assert set(lengths) <= {1, 2, 3} and lengths.count(1) < 60  # cut short only by the end of the clip


def test_dropped_frames_have_the_given_share() -> None:
    has = add_noise(*blocks(11, 300), replace(OFF, drop=0.2), generator(0)).history.flatten(3).any(-1)[0]
    assert has[0].all() and float((~has[1:]).float().mean()) == pytest.approx(0.2, abs=0.03)


def absence(T: int, gone: int, back: int) -> tuple[Tensor, Tensor]:
    """Object 0 without marks on [gone, back), object 1 beside it all the time."""
    history = torch.zeros(1, T, 2, 12, 12, dtype=torch.bool)
    history[:, :, 0, 4:6, 4:6] = True
    history[:, gone:back, 0] = False
    history[:, :, 1, 8:10, 2:8] = True
    return history, torch.ones(1, T, 2, dtype=torch.bool)


@pytest.mark.parametrize(("gone", "back"), [(3, 6), (5, 12)])
def test_a_slipped_mark_stays_until_the_object_is_back(gone: int, back: int) -> None:
    history, active = absence(12, gone, back)
    places = set()
    for seed in range(30):
        out, fixed = add_noise(history, active, replace(OFF, slip=1.0), generator(seed))
        assert torch.equal(out[:, :gone], history[:, :gone]) and torch.equal(out[:, back:], history[:, back:])
        assert torch.equal(out[:, :, 1], history[:, :, 1])  # the object that was never away
        assert fixed[0, :, 0].nonzero().flatten().tolist() == list(range(gone, back)) and not fixed[..., 1].any()
        wrong = out[0, gone:back, 0]
        assert (wrong == wrong[0]).all() and wrong.any()  # here neither the place nor the other object moves
        half = history[0, gone, 1].clone()
        half[:, 5:] = False
        shifted = int(wrong[0].sum()) == 4 and (wrong[0].nonzero() - torch.tensor([4, 4])).abs().max() <= 4
        assert shifted or torch.equal(wrong[0], half)
        places.add(tuple(wrong[0].nonzero()[0].tolist()))
    assert len(places) > 5


def test_a_late_mark_comes_some_frames_after_the_return() -> None:
    history, active = absence(12, 2, 5)
    delays = set()
    for seed in range(40):
        out, fixed = add_noise(history, active, replace(OFF, late=1.0, late_frames=(1, 4)), generator(seed))
        has = out[0, :, 0].flatten(1).any(-1).tolist()
        delay = has.index(True, 2) - 5
        assert has == [True] * 2 + [False] * (3 + delay) + [True] * (7 - delay)
        assert fixed[0, :, 0].nonzero().flatten().tolist() == list(range(5, 5 + delay))
        delays.add(delay)
    assert delays == {1, 2, 3, 4}


def test_slips_of_a_late_mark_last_until_the_object_is_told_again() -> None:
    history, active = absence(12, 2, 5)
    noise = replace(OFF, slip=1.0, late=1.0, late_frames=(3, 3))
    out, fixed = add_noise(history, active, noise, generator(1))
    assert out[0, 2, 0].any() and (out[0, 2:8, 0] == out[0, 2, 0]).all()
    assert fixed[0, :, 0].tolist() == [2 <= t < 8 for t in range(12)]
    assert torch.equal(out[0, 8:], history[0, 8:])


def test_a_slip_is_never_empty_and_never_true() -> None:
    """Objects as they vanish at the border, beside one that is a single token wide."""
    history = torch.zeros(1, 6, 2, 8, 8, dtype=torch.bool)
    history[0, :2, 0, 3:5, 7:] = True
    history[0, :, 1, 2:7, 3] = True
    active = torch.ones(1, 6, 2, dtype=torch.bool)
    seen = set()
    for seed in range(60):
        wrong = add_noise(history, active, replace(OFF, slip=1.0), generator(seed)).history[0, 2:, 0]
        assert wrong.flatten(1).any(-1).all()
        known = {"other": history[0, 2:, 1], "stays": history[0, :1, 0].expand_as(wrong)}
        seen.add(next((name for name, marks in known.items() if torch.equal(wrong, marks)), "moved"))
    assert seen == {"other", "stays", "moved"}  # "stays": would have left the image


def test_an_object_that_is_away_twice() -> None:
    history, active = absence(14, 2, 4)
    history[:, 6:9, 0] = False
    noise = replace(OFF, late=1.0, late_frames=(3, 3))
    out, fixed = add_noise(history, active, noise, generator(0))
    assert out[0, :, 0].flatten(1).any(-1).tolist() == [True] * 2 + [False] * 10 + [True] * 2
    assert fixed[0, :, 0].tolist() == [t in (4, 5, 6, 9, 10, 11) for t in range(14)]


def test_a_slip_may_begin_before_the_object_is_gone() -> None:
    history, active = absence(12, 5, 8)
    noise, starts = replace(OFF, slip=1.0, early_frames=(0, 9)), set()
    for seed in range(40):
        out, fixed = add_noise(history, active, noise, generator(seed))
        start = int(fixed[0, :, 0].int().argmax())
        assert fixed[0, :, 0].tolist() == [start <= t < 8 for t in range(12)] and 1 <= start <= 5
        assert torch.equal(out[0, :start], history[0, :start]) and torch.equal(out[0, 8:], history[0, 8:])
        assert not torch.equal(out[0, start, 0], history[0, 0, 0])
        starts.add(start)
    assert starts == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("wrong", [{"false_id": 2.0}, {"joined": -1.0}, {"late_frames": (3, 1)}, {"slip": 1.01}])
def test_numbers_that_are_no_probability_or_span_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ClipDataError, match=next(iter(wrong))):
        HistoryNoise(**wrong)
