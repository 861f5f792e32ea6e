"""`Preprocess` of Alg. 2: Fig. 3 drawn by hand, the formulas of section 2.3 on random clips, the draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.preprocess import preprocess, sample_ids, sample_switch

FAST = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(*rows: str) -> Tensor:
    """One instance per row, one frame per character: '#' visible, '.' absent -> masks (1, T, K, 16, 16)."""
    seen = torch.tensor([[c == "#" for c in row] for row in rows]).T
    masks = torch.zeros(1, *seen.shape, 16, 16, dtype=torch.bool)
    for k in range(seen.shape[1]):
        masks[0, :, k, 8 * (k // 2) : 8 * (k // 2) + 8, 8 * (k % 2) : 8 * (k % 2) + 8] = seen[:, k, None, None]
    return masks


def shown(values: Tensor) -> list[str]:
    """(1, T, K) bool as rows of '#' and '.'."""
    return ["".join("#" if v else "." for v in row) for row in values[0].T]


def test_fig_3_drawn_by_hand() -> None:
    """Five frames. a: always seen, switches at 2; b: prompted before the first frame, hidden on 3; c: appears on 3 and
    switches there; d: never tracked inside the clip; padding."""
    masks = drawn("#####", "##.##", "..###", "#.##.", ".....")
    ts = torch.tensor([[2, 0, 3, 5, 6]])
    t = preprocess(masks, ts, (2, 2), torch.tensor([[7, 3, 9, 1, 0]]))
    assert shown(t.visible) == ["#####", "##.##", "..###", "#.##.", "....."]
    assert shown(t.det) == ["##...", ".....", "..#..", "#.##.", "....."]  # y_det: t <= ts
    assert shown(t.active) == ["..###", "#####", "...##", ".....", "....."]  # y_trk: t > ts, empty ones included
    history = t.history.flatten(3).any(-1)
    assert shown(history) == ["..###", "###.#", "...##", ".....", "....."]  # frame t reads M_{t-1}; M_0 = y_1
    # each mark is one token, at the object's place
    for k, token in enumerate([(0, 0), (0, 1), (1, 0)]):
        frame = int(history[0, :, k].nonzero()[-1])
        assert t.history[0, frame, k].nonzero().tolist() == [list(token)]
    assert torch.equal(t.ids, torch.tensor([[7, 3, 9, 1, 0]])) and torch.equal(t.masks, masks)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    B, T, K = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    masks = torch.rand(B, T, K, 16, 24, generator=g) < torch.rand(B, T, K, 1, 1, generator=g)
    masks &= torch.rand(B, T, K, 1, 1, generator=g) < 0.7
    return masks, torch.randint(0, T + 2, (B, K), generator=g)


@FAST
@given(cases())
def test_formulas_of_the_paper(case: tuple[Tensor, Tensor]) -> None:
    masks, ts = case
    B, T, K, H, W = masks.shape
    out = preprocess(masks, ts, (2, 3), torch.zeros(B, K, dtype=torch.long))
    empty = torch.zeros(H, W, dtype=torch.bool)
    for b, i in np.ndindex(B, K):
        switch, y = int(ts[b, i]), masks[b, :, i]
        used = switch <= T
        for t in range(1, T + 1):
            y_det = y[t - 1] if used and t <= switch else empty
            y_trk = y[t - 1] if used and t > switch else empty
            assert out.det[b, t - 1, i] == y_det.any()
            assert out.active[b, t - 1, i] == (used and t > switch)
            got = out.masks[b, t - 1, i] if out.active[b, t - 1, i] else empty
            assert torch.equal(got, y_trk)
            before = y[max(t - 2, 0)]  # y_{t-1}; M_0 = y_1 for those prompted before the first frame
            M = before if used and t - 1 >= switch else empty
            cover = M.view(2, 8, 3, 8).float().mean((1, 3))
            marks = cover >= 0.5 if (cover >= 0.5).any() else cover > 0
            assert torch.equal(out.history[b, t - 1, i], marks)
            # one target at most; nothing is marked that is not in A
            assert not (out.det[b, t - 1, i] and out.active[b, t - 1, i])
            assert out.active[b, t - 1, i] or not out.history[b, t - 1, i].any()


@FAST
@given(cases(), st.integers(0, 2**31))
def test_switch_times_are_frames_on_which_the_instance_is_seen(case: tuple[Tensor, Tensor], seed: int) -> None:
    visible = case[0].flatten(3).any(-1)
    B, T, K = visible.shape
    valid = torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) < 0.8
    g = torch.Generator().manual_seed(seed)
    ts = sample_switch(visible, valid, 0.3, g)
    assert torch.equal(ts, sample_switch(visible, valid, 0.3, torch.Generator().manual_seed(seed)))
    for b, i in np.ndindex(B, K):
        switch, seen = int(ts[b, i]), visible[b, :, i]
        if not valid[b, i] or not seen.any():
            assert switch == T + 1
        elif switch == 0:
            assert seen[0]
        else:
            assert seen[switch - 1] or switch == T


def test_switch_times_are_uniform_over_the_candidates() -> None:
    visible = drawn("##.#.").flatten(3).any(-1).expand(4000, -1, -1)  # candidates 0, 1, 2, 4, 5
    valid = torch.ones(4000, 1, dtype=torch.bool)
    ts = sample_switch(visible, valid, 0.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(ts.flatten(), minlength=7) / 4000
    assert shares[3] == shares[6] == 0
    assert torch.allclose(shares[[0, 1, 2, 4, 5]], torch.tensor(0.2), atol=0.03)
    late = drawn("..##.").flatten(3).any(-1).expand(4000, -1, -1)
    ts = sample_switch(late, valid, 0.8, torch.Generator().manual_seed(0))
    assert float((ts == 3).float().mean()) == pytest.approx(0.8 + 0.2 / 3, abs=0.03)  # A3: first appearance


def test_a_clip_that_begins_unknown_has_nothing_prompted() -> None:
    visible = drawn("##.#.").flatten(3).any(-1).expand(4000, -1, 3)  # candidates 0, 1, 2, 4, 5
    ts = sample_switch(visible, torch.ones(4000, 3, dtype=torch.bool), 0.0, torch.Generator().manual_seed(0), 0.5)
    prompted = (ts == 0).sum(1)
    # half of the clips know nothing; in the others each instance is prompted by one in five, independently
    assert float((prompted == 0).float().mean()) == pytest.approx(0.5 + 0.5 * 0.8**3, abs=0.03)
    always = sample_switch(visible, torch.ones(4000, 3, dtype=torch.bool), 0.0, torch.Generator().manual_seed(0), 1.0)
    assert int(always.min()) == 1


@FAST
@given(st.integers(1, 3), st.integers(0, 8), st.integers(0, 2**31))
def test_sampler_never_gives_one_vector_twice(B: int, K: int, seed: int) -> None:
    ids = sample_ids(B, K, 8, torch.Generator().manual_seed(seed))
    assert ids.shape == (B, K) and ids.dtype == torch.long
    for row in ids.tolist():
        assert len(set(row)) == K and all(0 <= i < 8 for i in row)


def test_sampler_uses_every_vector_and_refuses_too_many() -> None:
    ids = sample_ids(3000, 2, 5, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.bincount(ids.flatten()) / 6000, torch.tensor(0.2), atol=0.02)
    with pytest.raises(ValueError, match="9 instances in a clip, N_id=8"):
        sample_ids(1, 9, 8, torch.Generator())
