"""From logits to masks at the size of the input, against plain float64 arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ausm.assemble import (
    Geometry,
    all_finite,
    duplicates,
    exclusive,
    full_size_masks,
    keep_detections,
    mask_confidence,
    resize_image,
    resize_prompts,
)
from ausm.pixel_decoder import Predictions

FAST = settings(max_examples=40, deadline=None, derandomize=True)


def bilinear(logits: np.ndarray, g: Geometry) -> np.ndarray:
    """(H', W') -> (height, width) float64: pixel centres of the input mapped to the grid of 4-pixel cells."""

    def axis(n: int, inner: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = (np.arange(n) + 0.5) * inner / n / 4 - 0.5
        x = np.clip(x, 0, cells - 1)
        low = np.minimum(np.floor(x).astype(int), max(cells - 2, 0))
        return low, np.minimum(low + 1, cells - 1), x - low

    y0, y1, fy = axis(g.height, g.inner_height, logits.shape[0])
    x0, x1, fx = axis(g.width, g.inner_width, logits.shape[1])
    v = logits.astype(np.float64)
    top = v[y0][:, x0] * (1 - fx) + v[y0][:, x1] * fx
    bottom = v[y1][:, x0] * (1 - fx) + v[y1][:, x1] * fx
    return top * (1 - fy)[:, None] + bottom * fy[:, None]


@FAST
@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 80), st.integers(0, 4), st.integers(0, 2**31))
def test_full_size_masks_are_bilinear_and_the_best_wins(H: int, W: int, side: int, K: int, seed: int) -> None:
    g = Geometry.of(H, W, side)
    h, w = -(-g.inner_height // 32) * 8, -(-g.inner_width // 32) * 8
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 2, (K, h, w)).astype(np.float32)
    if K:
        logits[0] = -np.abs(logits[0]) - 1  # an object that is nowhere
    if K > 1:
        logits[1] = -0.4  # one cell whose reach is as wide as interpolation goes
        logits[1, rng.integers(h), rng.integers(w)] = 9
    masks = full_size_masks(logits, g)
    assert masks.shape == (K, H, W) and masks.dtype == bool and masks.sum(0).max(initial=0) <= 1
    values = np.stack([np.zeros((H, W)), *(bilinear(m, g) for m in logits)])  # background = 0
    ranked = np.sort(values, 0)
    # cv2 rounds positions to 1/32
    clear = ranked[-1] - ranked[max(-2, -len(ranked))] > 0.3 if K else np.ones((H, W), bool)
    winner = values.argmax(0)
    for k in range(K):
        assert np.array_equal(masks[k][clear], (winner == k + 1)[clear])
    if K:
        assert not masks[0].any() and clear.mean() > 0.5


def test_a_square_comes_back_where_it_was() -> None:
    g = Geometry.of(480, 640, 240)
    logits = np.full((1, 64, 80), -6, np.float32)  # 240 x 320 padded to 256 x 320
    logits[0, 10:30, 20:50] = 6
    (mask,) = full_size_masks(logits, g)
    expected = np.zeros((480, 640), bool)
    expected[80:240, 160:400] = True
    assert (mask ^ expected).sum() <= 40  # of 38,400: the corners are rounded
    assert not (mask ^ expected)[:, 170:390].any()
    assert full_size_masks(np.zeros((0, 64, 80), np.float32), g).shape == (0, 480, 640)
    again = full_size_masks(np.concatenate((logits, logits)), g)
    assert np.array_equal(again[0], mask) and not again[1].any()  # of equals the first


@pytest.mark.parametrize(
    ("size", "side", "inner"),
    [
        ((480, 640), 320, (320, 427)),
        ((720, 1280), 1024, (1024, 1820)),
        ((100, 50), 320, (200, 100)),
        ((8, 8), 8, (8, 8)),
    ],
)
def test_geometry(size: tuple[int, int], side: int, inner: tuple[int, int]) -> None:
    g = Geometry.of(*size, side)
    assert (g.inner_height, g.inner_width) == inner  # at most twice as large
    assert resize_image(np.zeros((*size, 3), np.uint8), g).shape == (*inner, 3)


@FAST
@given(st.integers(8, 70), st.integers(8, 70), st.integers(8, 60), st.integers(0, 2**31))
def test_prompt_marks_cover_what_is_half_object(H: int, W: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = Geometry.of(H, W, side)
    size = (-(-g.inner_height // 32) * 4, -(-g.inner_width // 32) * 4)
    y, x = rng.integers(0, H), rng.integers(0, W)
    masks = np.zeros((2, H, W), bool)
    masks[0] = True
    masks[1, y, x] = True
    marks = resize_prompts(masks, g, size).numpy()
    assert marks.shape == (2, *size)
    inside = [np.clip((n - 8 * np.arange(cells)) / 8, 0, 1) for n, cells in zip(g[2:], size, strict=True)]
    cover = np.outer(*inside)  # of each token by the image
    clear = np.abs(cover - 0.5) > 1e-3  # exactly half is a matter of rounding
    assert np.array_equal(marks[0][clear], cover[clear] > 0.5)
    where = np.argwhere(marks[1])
    assert len(where) >= 1  # one pixel is still an object, at its place
    centre = ((y + 0.5) / H * g.inner_height, (x + 0.5) / W * g.inner_width)
    assert np.all(np.abs((where + 0.5) * 8 - centre) <= 4 + 2 * max(g.inner_height / H, 1) + 1)


def test_exclusive_leaves_one_positive_at_most() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 7)
    out = exclusive(logits)
    assert (out > 0).sum(0).max() == 1
    best = logits.argmax(0)
    assert torch.equal(out.argmax(0), best) and torch.equal(out.amax(0), logits.amax(0))  # winners keep their value
    assert torch.equal(out.abs(), logits.abs())
    assert torch.equal(exclusive(logits[:1]), logits[:1]) and exclusive(logits[:0]).shape == (0, 6, 7)


def box(y0: int, x0: int, y1: int, x1: int) -> torch.Tensor:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_keep_detections_drops_duplicates_best_first() -> None:
    masks = torch.stack([box(0, 0, 10, 10), box(0, 0, 10, 9), box(10, 10, 20, 20), box(0, 0, 0, 0), box(0, 0, 4, 4)])
    scores = torch.tensor([0.7, 0.9, 0.6, 0.99, 0.95])
    none = torch.zeros(0, 20, 20, dtype=torch.bool)
    assert keep_detections(masks, scores, none, 0.95) == [4, 1, 0, 2]
    assert keep_detections(masks, scores, none, 0.85) == [4, 1, 2]  # 0 has IoU 0.9 with 1
    inside = torch.tensor([0.7, 0.9, 0.6, 0.99, 0.5])
    assert keep_detections(masks, inside, none, 0.85) == [1, 2]  # 4 lies inside 1: a part of it
    assert keep_detections(masks, scores, none, 1.0) == [4, 1, 0, 2]  # no limit: all but the empty one
    assert keep_detections(masks, scores, box(9, 9, 20, 20)[None], 0.7) == [4, 1]  # a live track is there already
    assert keep_detections(masks[:0], scores[:0], none, 0.7) == []


def test_duplicates_by_iou() -> None:
    masks = torch.stack([box(0, 0, 10, 10), box(0, 0, 5, 10), box(0, 0, 0, 0)]).numpy()
    others = torch.stack([box(0, 0, 10, 9)]).numpy()
    assert duplicates(masks, others, 0.7) == [True, False, False]
    assert duplicates(masks[2:], masks[2:], 0.0) == [False]  # two empty masks are not the same thing


def test_mask_confidence() -> None:
    logits = torch.tensor([[[0.0, 2.0], [4.0, -9.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    expected = (torch.tensor(2.0).sigmoid() + torch.tensor(4.0).sigmoid()) / 2
    assert torch.allclose(mask_confidence(logits), torch.stack((expected, torch.tensor(1.0))))
    assert mask_confidence(logits[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_logit_is_noticed_and_large_ones_are_no_fault(dtype: torch.dtype) -> None:
    masks, objectness = torch.full((1, 5, 40, 60), 3e4, dtype=dtype), torch.full((1, 5), -3e4, dtype=dtype)
    good = Predictions(masks, objectness, torch.zeros(1, 5, 8))
    assert all_finite(good)  # though the sum is more than float16 can hold
    for value in (torch.nan, torch.inf, -torch.inf):
        for name in ("masks", "objectness"):
            bad = getattr(good, name).clone()
            bad.view(-1)[3] = value
            assert not all_finite(good._replace(**{name: bad}))
    opposite = masks.clone()
    opposite[0, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    assert not all_finite(good._replace(masks=opposite))
