"""The kernels of `ausm/csrc/maps.cpp`: norms, sums and maps of the frame path in bfloat16, one pass over the data each.

PyTorch runs them as two to six operations with float32 copies between them (docs/benchmarks.md). No gradient. Every
function returns None for tensors that its kernel does not take.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ausm.native import FLOAT, INT, LONG, Held, library, threads

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
LANES, WIDEST = 16, 1024  # channels: a multiple of, at most


class Normed(NamedTuple):
    """What one pass over tokens gives; None where it was not asked for."""

    sum: Tensor | None  # x + y, float32
    normed: Tensor | None  # float32
    half: Tensor | None  # normed in bfloat16
    placed: Tensor | None  # normed + place in bfloat16


def add_norm(
    x: Tensor, y: Tensor | None, norm: nn.LayerNorm, place: Tensor | None = None, wanted: tuple[str, ...] = ("normed",)
) -> Normed | None:
    """x + y (..., D), its layer norm, and that plus position codes place (..., D), repeated over leading axes.

    x float32 or bfloat16, y bfloat16 or None; wanted: names of fields of `Normed`.
    """
    native, D = library(), x.shape[-1]
    fits = x.is_cpu and x.dtype in _TYPES and x.is_contiguous() and D % LANES == 0 and D <= WIDEST
    if y is not None:
        fits = fits and y.shape == x.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
    if native is None or not fits or norm.weight.dtype != torch.float32 or norm.bias is None:
        return None
    if place is not None:
        place = place.float().contiguous()
        if place.shape[-1] != D or x.numel() % place.numel():
            return None
    types = {"sum": torch.float32, "normed": torch.float32, "half": torch.bfloat16, "placed": torch.bfloat16}
    out = {name: torch.empty(x.shape, dtype=t) if name in wanted else None for name, t in types.items()}
    status = native.ausm_add_norm(
        INT(_TYPES[x.dtype]), threads(), LONG(x.numel() // D), LONG(D), Held(x), Held(y), Held(norm.weight),
        Held(norm.bias), FLOAT(norm.eps), Held(place), LONG(place.numel() // D if place is not None else 1),
        *map(Held, out.values()),
    )  # fmt: skip
    return Normed(**out) if status == 0 else None


def group_norm_up(x: Tensor, norm: nn.GroupNorm, small: Tensor | None = None, relu: bool = False) -> Tensor | None:
    """Group norm of maps x (B, C, H, W), plus `small` (B, C, H/2, W/2) at twice its size, negatives to zero if `relu`.

    bfloat16, channels last.
    """
    if len(x) > 1:
        return _each(lambda x, small: group_norm_up(x, norm, small, relu), x, small)
    native, C = library(), x.shape[1]
    if native is None or not _takes(x, small) or norm.weight.dtype != torch.float32:
        return None
    scale, shift = torch.empty(C), torch.empty(C)
    status = native.ausm_group_scale(
        threads(), LONG(x.shape[2] * x.shape[3]), LONG(C), LONG(norm.num_groups), Held(x), Held(norm.weight),
        Held(norm.bias), FLOAT(norm.eps), Held(scale), Held(shift),
    )  # fmt: skip
    return _mix(x, scale, shift, small, relu) if status == 0 else None


def add_up(x: Tensor, small: Tensor) -> Tensor | None:
    """x (B, C, H, W) + `small` (B, C, H/2, W/2) at twice its size (bilinear). bfloat16, channels last."""
    if len(x) > 1:
        return _each(add_up, x, small)
    return _mix(x, None, None, small, False) if _takes(x, small) else None


def normalise(image: Tensor, factor: Tensor, addend: Tensor, size: tuple[int, int]) -> Tensor | None:
    """image (H, W, 3) uint8 -> image * factor + addend per channel, (1, 3, *size) bfloat16, channels last, zero beyond
    the image."""
    native = library()
    taken = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.is_contiguous()
    if native is None or not image.is_cpu or not taken or image.shape[0] > size[0] or image.shape[1] > size[1]:
        return None
    out = torch.empty(1, *size, 3, dtype=torch.bfloat16)
    factor, addend = factor.float().contiguous(), addend.float().contiguous()
    native.ausm_normalise(
        threads(), *map(LONG, (*image.shape[:2], *size)), Held(image), Held(factor), Held(addend), Held(out)
    )
    return out.permute(0, 3, 1, 2)


def _each(work: Callable[[Tensor, Any], Tensor | None], x: Tensor, small: Tensor | None) -> Tensor | None:
    """`work` on the maps of every frame of a batch."""
    if small is not None and len(small) != len(x):
        return None
    done = [work(x[b : b + 1], None if small is None else small[b : b + 1]) for b in range(len(x))]
    return None if any(out is None for out in done) else torch.cat([out for out in done if out is not None])


def _mix(x: Tensor, scale: Tensor | None, shift: Tensor | None, small: Tensor | None, relu: bool) -> Tensor | None:
    native = library()
    if native is None:
        return None
    _, C, H, W = x.shape
    y = torch.empty_like(x)
    status = native.ausm_mix(
        threads(), *map(LONG, (H // 2, W // 2, C)), Held(x), Held(scale), Held(shift), Held(small), INT(relu), Held(y)
    )
    return y if status == 0 else None


def _takes(x: Tensor, small: Tensor | None) -> bool:
    """Whether these are maps of one bfloat16 frame, channels last, the small one of half the size."""
    _, C, H, W = x.shape
    for t, shape in ((x, (1, C, H, W)), (small, (1, C, H // 2, W // 2))):
        if t is not None and not (
            t.shape == shape and t.dtype == torch.bfloat16 and t.is_cpu
            and t.is_contiguous(memory_format=torch.channels_last)
        ):  # fmt: skip
            return False
    return C % LANES == 0 and H % 2 == 0 and W % 2 == 0
