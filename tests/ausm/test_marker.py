"""History Marker: the formula, and the three ways to hard masks on the grid of tokens."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ausm.marker import EPS, mark, marks_from_logits, marks_from_masks

FAST = settings(max_examples=50, deadline=None, derandomize=True)


@FAST
@given(st.integers(0, 5), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_marks_are_the_mean_of_the_ids_on_a_pixel(K: int, N: int, D: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    A, M = torch.randn(K, D, generator=g), torch.rand(K, N, generator=g) < 0.4
    S = mark(A, M)
    assert S.shape == (N, D)
    for n in range(N):
        ids = A[M[:, n]]
        expected = ids.double().sum(0) / (EPS + len(ids))  # section 2.2
        assert torch.allclose(S[n].double(), expected, atol=1e-6)
        if not len(ids):
            assert not S[n].any()


def test_marks_of_a_batch_are_those_of_its_items() -> None:
    torch.manual_seed(0)
    A, M = torch.randn(2, 3, 4, 8), torch.rand(2, 3, 4, 10) < 0.5
    assert torch.allclose(mark(A, M)[1, 2], mark(A[1, 2], M[1, 2]))
    assert mark(A.bfloat16(), M).dtype == torch.bfloat16


def test_a_single_mask_marks_at_full_strength_and_two_share() -> None:
    A = torch.tensor([[4.0, 0.0], [0.0, 2.0]])
    S = mark(A, torch.tensor([[True, True, False], [False, True, False]]))
    assert torch.allclose(S, torch.tensor([[4.0, 0.0], [2.0, 1.0], [0.0, 0.0]]), atol=1e-5)


def test_marks_from_logits_are_bilinear_then_hard() -> None:
    logits = torch.tensor([[1.0, -3.0, 1.0, 1.0], [1.0, 1.5, -1.0, -2.0]])
    assert marks_from_logits(logits[None, None], (1, 2)).tolist() == [[[[True, False]]]]  # means 0.125 and -0.25
    assert marks_from_logits(torch.zeros(3, 0, 8, 8), (4, 4)).shape == (3, 0, 4, 4)
    assert not marks_from_logits(torch.zeros(1, 8, 8), (4, 4)).any()  # 0 is background


@FAST
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_marks_from_masks_are_half_covered_tokens(K: int, h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((K, 8 * h, 8 * w)) < rng.random((K, 1, 1)) ** 2
    marks = marks_from_masks(torch.from_numpy(masks), (h, w)).numpy()
    cover = masks.reshape(K, h, 8, w, 8).mean((2, 4))
    for k in range(K):
        expected = cover[k] >= 0.5
        assert np.array_equal(marks[k], expected if expected.any() else cover[k] > 0)
        assert marks[k].any() == masks[k].any()  # an object never vanishes, and none appears
