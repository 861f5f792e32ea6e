"""The bfloat16 attention kernel against float64 arithmetic."""

import pytest
import torch
from torch import Tensor

from ausm import attention_cpu
from ausm.attention_cpu import WIDTHS, attend, available

needs_kernel = pytest.mark.skipif(not available(32), reason="a CPU without AVX512-BF16, or no compiler")
SHAPES = (  # clips, queries, keys, heads, channels per head
    (1, 64, 96, 4, 32),
    (2, 77, 133, 4, 64),
    (1, 5, 1500, 2, 16),  # several runs of keys
    (1, 9, 641, 1, 32),  # one key in the last run
    (3, 1, 1, 8, 16),
    (1, 30, 17, 1, 64),
)


def tensors(clips: int, queries: int, keys: int, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = ((clips, queries), (clips, keys), (clips, keys))
    q, k, v = (torch.randn(*size, heads * width).bfloat16() for size in sizes)
    return 2 * q, 2 * k, v


def exact(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def check(out: Tensor | None, expected: Tensor) -> None:
    assert out is not None and out.dtype == torch.bfloat16 and out.shape == expected.shape
    assert float((out.double() - expected).abs().max()) < 0.02 * float(expected.abs().max()) + 0.01
    assert float((out.double() - expected).norm()) < 0.006 * float(expected.norm())


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_plain(shape: tuple[int, int, int, int, int]) -> None:
    q, k, v = tensors(*shape)
    check(attend(q, k, v, shape[3]), exact(q, k, v, shape[3]))


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_closed_keys(shape: tuple[int, int, int, int, int]) -> None:
    clips, queries, keys, heads, _ = shape
    q, k, v = tensors(*shape)
    mask = torch.rand(clips, 1, queries, keys) < 0.3
    mask[..., -1] = True
    check(attend(q, k, v, heads, mask), exact(q, k, v, heads, mask))
    same = mask[:, :, :1]  # for all queries
    check(attend(q, k, v, heads, same), exact(q, k, v, heads, same))
    one = torch.zeros_like(mask)
    one[..., keys // 2] = True  # a single key: the result is its value
    check(attend(q, k, v, heads, one), v[:, keys // 2 : keys // 2 + 1].double().expand(-1, queries, -1))


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_bias(shape: tuple[int, int, int, int, int]) -> None:
    _, queries, keys, heads, _ = shape
    q, k, v = tensors(*shape)
    bias = (-10 * torch.rand(1, heads, queries, keys)).bfloat16()
    check(attend(q, k, v, heads, bias), exact(q, k, v, heads, bias))


@needs_kernel
def test_large_scores_do_not_overflow() -> None:
    q, k, v = tensors(1, 16, 700, 2, 32)
    q, k = 30 * q, 30 * k
    check(attend(q, k, v, 2), exact(q, k, v, 2))


@needs_kernel
def test_slices_and_threads() -> None:
    wide = torch.randn(1, 50, 3 * 64).bfloat16()
    q, k, v = wide.chunk(3, -1)  # rows 192 apart
    expected = exact(q, k, v, 2)
    check(attend(q, k, v, 2), expected)
    backwards = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]  # channels apart: copied
    check(attend(*backwards, 2), expected)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(attend(q, k, v, 2), attend(q, k, v, 2))
        check(attend(q, k, v, 2), expected)
    finally:
        torch.set_num_threads(before)


def test_what_it_does_not_take() -> None:
    q, k, v = tensors(1, 8, 8, 1, 32)
    assert attend(q.float(), k.float(), v.float(), 1) is None
    assert attend(q, k, v[:, :4], 1) is None
    assert attend(q, k[:, :0], v[:, :0], 1) is None
    assert attend(q, k, v, 5) is None
    assert attend(q, k, v, 1, torch.zeros(1, 1, 8, 8)) is None  # a float32 mask
    assert attend(q, k, v, 1, torch.ones(1, 2, 8, 8, dtype=torch.bool)) is None  # a mask per head
    assert attend(*tensors(1, 8, 8, 1, 48), 1) is None and not available(48) and 48 not in WIDTHS


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "library", lambda: None)
    assert attend(*tensors(1, 8, 8, 1, 32), 1) is None
