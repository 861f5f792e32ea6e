"""The CPU kernels of `ausm/csrc` behind the functions of `ausm.ssm`: fused scan, convolution and recurrent step.

Same arguments, shapes and results as the plain PyTorch functions of the same names there. float32 and bfloat16 tensors,
float32 arithmetic; training keeps only the inputs and recomputes the states. Threads follow `torch.get_num_threads()`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ausm.errors import AusmError, SizeError
from ausm.native import INT, LONG, Held, library, threads

STATES = (8, 16)  # S that are compiled
TAPS = 4  # K that is compiled
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def available(u: Tensor, states: int = 16, taps: int = TAPS) -> bool:
    """Whether the kernels can take this tensor, with S states and K taps; compiles them on the first call."""
    fits = u.device.type == "cpu" and u.dtype in _TYPES and states in STATES and taps == TAPS
    return fits and library() is not None


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """See `ausm.ssm.selective_scan`. u, delta, z: (B, T, N, E); B, C: (B, T, N, S); A: (E, S); D: (E)."""
    _require_scan(u, delta, A, B, C, D, z)
    delta, B, C, z = (v.to(u.dtype) for v in (delta, B, C, z))
    y: Tensor = _Scan.apply(u, delta, A.float(), B, C, D.float(), z)  # type: ignore[no-untyped-call]
    return y


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `ausm.ssm.causal_conv_silu`. x: (B, T, N, E); weight: (E, 4); bias: (E)."""
    _require_taps(x, weight, bias)
    y: Tensor = _Conv.apply(x, weight.float(), bias.float())  # type: ignore[no-untyped-call]
    return y


def conv_step(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
    """See `ausm.ssm.conv_step_torch`. x: (N, E); weight: (E, 4); state: (N, E, 3) contiguous, shifted in place."""
    _require_taps(x, weight, bias)
    _require_state(state, *x.shape, TAPS - 1)
    x, stride = _rows(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    taps, bias = weight.detach().float().t().contiguous(), bias.detach().float().contiguous()
    _call(
        "ausm_conv_step", INT(_TYPES[x.dtype]), INT(_STORAGE[state.dtype]), threads(), *map(LONG, x.shape),
        Held(x), stride, Held(taps), Held(bias), Held(state), Held(y),
    )  # fmt: skip
    return y


def scan_step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, state: Tensor) -> Tensor:
    """See `ausm.ssm.scan_step_torch`. u, delta, z: (N, E); B, C: (N, S); state: (N, E, S) contiguous, in place."""
    _require_scan(u, delta, A, B, C, D, z)
    _require_state(state, *u.shape, A.shape[1])
    rows = [_rows(v.to(u.dtype)) for v in (u, delta, B, C, z)]
    (u, su), (delta, sd), (B, sB), (C, sC), (z, sz) = rows
    A, D = A.detach().float().contiguous(), D.detach().float().contiguous()
    y = torch.empty(u.shape, dtype=u.dtype)
    _call(
        "ausm_scan_step", INT(_TYPES[u.dtype]), INT(_STORAGE[state.dtype]), threads(), *map(LONG, state.shape),
        Held(u), su, Held(delta), sd, Held(A), Held(B), sB, Held(C), sC, Held(D), Held(z), sz, Held(state), Held(y),
    )  # fmt: skip
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(u, delta, A, B, C, D, z)
        y = torch.empty(u.shape, dtype=u.dtype)
        _call("ausm_scan_forward", *_scan_head(u, A), *_scan_inputs(u, delta, A, B, C, D, z), Held(y))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        u, _, A = inputs[:3]
        dy, sy = _rows(dy)
        grads = tuple(torch.empty(v.shape, dtype=v.dtype) for v in inputs)
        _call(
            "ausm_scan_backward", *_scan_head(u, A), *_scan_inputs(*inputs), Held(dy), sy, *map(Held, grads)
        )  # order of the gradients = order of the inputs
        return grads


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        y = torch.empty(x.shape, dtype=x.dtype)
        _call("ausm_conv_forward", *_conv_inputs(x, weight, bias), Held(y))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias = ctx.saved_tensors
        dy, sy = _rows(dy)
        grads = tuple(torch.empty(v.shape, dtype=v.dtype) for v in (x, weight, bias))
        _call("ausm_conv_backward", *_conv_inputs(x, weight, bias), Held(dy), sy, *map(Held, grads))
        return grads


def _rows(v: Tensor) -> tuple[Tensor, Any]:
    """(rows, channels) with adjacent channels, copied only where it is not laid out so, and the stride between rows."""
    flat = v.flatten(0, -2)  # a view for slices of the last dimension, such as the halves of in_proj's output
    flat = flat if flat.stride(-1) == 1 else flat.contiguous()
    return flat, LONG(flat.stride(0))


def _scan_head(u: Tensor, A: Tensor) -> tuple[Any, ...]:
    return INT(_TYPES[u.dtype]), threads(), *map(LONG, u.shape), LONG(A.shape[1])


def _scan_inputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> tuple[Any, ...]:
    (u, su), (delta, sd), (B, sB), (C, sC), (z, sz) = (_rows(v) for v in (u, delta, B, C, z))
    A, D = A.contiguous(), D.contiguous()
    return Held(u), su, Held(delta), sd, Held(A), Held(B), sB, Held(C), sC, Held(D), Held(z), sz


def _conv_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    rows, stride = _rows(x)
    head = INT(_TYPES[x.dtype]), threads(), *map(LONG, x.shape)
    return *head, Held(rows), stride, Held(weight.contiguous()), Held(bias.contiguous())


def _require_state(state: Tensor, *shape: int) -> None:
    """The kernels write into the state by address: a wrong shape would be a wild write."""
    if tuple(state.shape) != shape:
        raise SizeError(f"state {tuple(state.shape)}, expected {shape}")
    if not state.is_contiguous() or state.dtype not in _STORAGE:
        raise AusmError(f"a state must be contiguous float32, float16 or bfloat16: {state.dtype}, {state.stride()}")


def _require_rows(like: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[:-1] != like.shape[:-1]:
            raise SizeError(f"{name} {tuple(tensor.shape)} beside u {tuple(like.shape)}")


def _require_taps(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if weight.shape != (x.shape[-1], TAPS) or bias.shape != x.shape[-1:]:
        raise SizeError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} beside x {tuple(x.shape)}")


def _require_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> None:
    _require_rows(u, delta=delta, B=B, C=C, z=z)
    E, S = A.shape
    wrong = [v for v in (u, delta, D, z) if v.shape[-1] != E] + [v for v in (B, C) if v.shape[-1] != S]
    if wrong:
        raise SizeError(f"A {tuple(A.shape)} beside {tuple(wrong[0].shape)}")


def _call(name: str, *arguments: Any) -> None:
    native = library()
    if native is None or getattr(native, name)(*arguments) != 0:
        raise RuntimeError(f"{name} is not available for these shapes; ask `available` first")
