"""The one-pass kernels of the frame path against the PyTorch operations that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm import maps_cpu
from ausm.native import library
from ausm.norm import LayerNorm

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")
BF16 = {"atol": 0.02, "rtol": 0.01}  # one rounding to 8 bits


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def frame_map(C: int, H: int, W: int, seed: int = 0) -> Tensor:
    return random(1, C, H, W, seed=seed, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


def learned(norm: nn.Module, seed: int = 7) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(norm.parameters()):
            p.copy_(random(*p.shape, seed=seed + i))
    return norm


@pytest.mark.parametrize("D", [16, 48, 128, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_add_norm(D: int, dtype: torch.dtype, threads: int) -> None:
    norm = learned(LayerNorm(D))
    x, y, place = random(2, 37, D, dtype=dtype), random(2, 37, D, seed=1, dtype=torch.bfloat16), random(37, D, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = maps_cpu.add_norm(x, y, norm, place, ("sum", "normed", "half", "placed"))
    finally:
        torch.set_num_threads(before)
    total = x.float() + y.float()
    expected = norm(total)
    torch.testing.assert_close(got.sum, total)
    torch.testing.assert_close(got.normed, expected, atol=2e-5, rtol=2e-5)
    assert torch.equal(got.half, got.normed.to(torch.bfloat16))
    assert torch.equal(got.placed, (got.normed + place).to(torch.bfloat16))


def test_add_norm_gives_what_was_asked_for() -> None:
    norm, x = learned(LayerNorm(32)), random(5, 32)
    got = maps_cpu.add_norm(x, None, norm, None, ("half",))
    assert got.sum is None and got.normed is None and got.placed is None
    torch.testing.assert_close(got.half.float(), norm(x), **BF16)


@pytest.mark.parametrize("D", [24, 1040])
def test_widths_that_are_not_compiled_are_left_to_pytorch(D: int) -> None:
    assert maps_cpu.add_norm(random(3, D), None, LayerNorm(D)) is None


def test_shapes_that_do_not_fit_are_left_to_pytorch() -> None:
    x = random(4, 32)
    assert maps_cpu.add_norm(x, random(3, 32, dtype=torch.bfloat16), LayerNorm(32)) is None
    assert maps_cpu.add_norm(x, random(4, 32), LayerNorm(32)) is None  # y in float32
    assert maps_cpu.add_norm(x.T.contiguous().T, None, LayerNorm(32)) is None  # not contiguous
    assert maps_cpu.add_norm(x, None, LayerNorm(32), random(3, 32)) is None  # 4 tokens, 3 codes
    assert maps_cpu.add_up(frame_map(32, 8, 8), frame_map(32, 4, 5)) is None
    assert maps_cpu.add_up(frame_map(32, 8, 8).contiguous(), frame_map(32, 4, 4)) is None
    assert maps_cpu.group_norm_up(frame_map(32, 7, 8), nn.GroupNorm(8, 32)) is None


@pytest.mark.parametrize("shape", [(32, 2, 2), (64, 10, 26), (256, 6, 14)])
@pytest.mark.parametrize("relu", [False, True])
def test_group_norm_up(shape: tuple[int, int, int], relu: bool) -> None:
    C, H, W = shape
    norm, x = learned(nn.GroupNorm(16, C)), frame_map(*shape) + 3
    small = frame_map(C, H // 2, W // 2, seed=3)
    got = maps_cpu.group_norm_up(x, norm, small, relu)
    up = F.interpolate(small.float(), size=(H, W), mode="bilinear", align_corners=False)
    expected = norm(x.float()) + up
    torch.testing.assert_close(got.float(), expected.relu() if relu else expected, **BF16)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_is_the_same_with_any_number_of_threads() -> None:
    norm, x = learned(nn.GroupNorm(32, 64)), frame_map(64, 34, 46)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(maps_cpu.group_norm_up(x, norm))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_add_up() -> None:
    x, small = frame_map(48, 12, 20), frame_map(48, 6, 10, seed=4)
    up = F.interpolate(small.float(), size=(12, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps_cpu.add_up(x, small).float(), x.float() + up, **BF16)


def test_maps_of_a_batch_are_those_of_its_frames() -> None:
    norm = learned(nn.GroupNorm(16, 64))
    x, small = (torch.cat([frame_map(64, *size, seed=seed) for seed in (1, 2, 3)]) for size in ((10, 26), (5, 13)))
    for work in (lambda x, small: maps_cpu.group_norm_up(x, norm, small, True), maps_cpu.add_up):
        together, each = work(x, small), [work(x[b : b + 1], small[b : b + 1]) for b in range(3)]
        assert torch.equal(together, torch.cat(each)) and together.is_contiguous(memory_format=torch.channels_last)
        assert work(x, small[:2]) is None


@pytest.mark.parametrize("size", [(32, 32), (30, 33), (1, 1), (17, 64)])
def test_normalise(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    factor, addend = torch.tensor([0.01, 0.02, 0.03]), torch.tensor([-1.0, -2.0, 0.5])
    got = maps_cpu.normalise(image, factor, addend, (32, 64))
    expected = torch.zeros(1, 3, 32, 64)
    expected[0, :, : size[0], : size[1]] = (image.float() * factor + addend).permute(2, 0, 1)
    assert got.shape == expected.shape and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.float(), expected, **BF16)
