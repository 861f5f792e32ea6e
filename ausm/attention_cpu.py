"""The attention kernel of `ausm/csrc` for inference in bfloat16, where the CPU multiplies bfloat16 pairs (AVX512-BF16).

PyTorch's own kernel widens to float32 there: this one takes less than half its time (docs/benchmarks.md).
"""

import functools

import torch
from torch import Tensor

from ausm.native import LONG, Held, library, threads

WIDTHS = (16, 32, 64)  # channels per head that are compiled


@functools.cache
def available(width: int) -> bool:
    """Whether the kernel takes heads of `width` channels on this machine; compiles it on the first call."""
    if width not in WIDTHS or library() is None:
        return False
    q, k = (torch.zeros(1, n, width, dtype=torch.bfloat16) for n in (1, 2))
    return attend(q, k, k, heads=1) is not None


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor | None:
    """softmax(q k^T / sqrt(D / heads)) v per head. q (B, Nq, D), k and v (B, Nk, D) bfloat16 -> (B, Nq, D).

    mask: bool (B, 1, Nq or 1, Nk), which keys may be read, at least one per query, or bfloat16 (1, heads, Nq, Nk),
    added to the scores, or None. Returns None for tensors that the kernel does not take. No gradient.
    """
    native = library()
    B, queries, D = q.shape
    keys = k.shape[1]
    fits = k.shape == v.shape == (B, keys, D) and keys > 0 and D % heads == 0
    if native is None or not fits or any(t.dtype != torch.bfloat16 or not t.is_cpu for t in (q, k, v)):
        return None
    shapes = {torch.bool: (B, 1, queries, keys), torch.bfloat16: (1, heads, queries, keys)}
    if mask is not None:
        if mask.dtype == torch.bool and mask.shape == (B, 1, 1, keys):  # the same for all queries
            mask = mask.expand(-1, -1, queries, -1)
        if mask.shape != shapes.get(mask.dtype):
            return None
        mask = mask.contiguous()
    allowed, bias = (mask if mask is not None and mask.dtype == t else None for t in shapes)
    q, k, v = (t if t.stride(2) == 1 and t.stride(0) == t.shape[1] * t.stride(1) else t.contiguous() for t in (q, k, v))
    out = torch.empty(B, queries, D, dtype=torch.bfloat16)
    status = native.ausm_attention(
        threads(), *map(LONG, (B, heads, queries, keys, D // heads)), Held(q), LONG(q.stride(1)),
        Held(k), LONG(k.stride(1)), Held(v), LONG(v.stride(1)), Held(allowed), Held(bias), Held(out),
    )  # fmt: skip
    return out if status == 0 else None
