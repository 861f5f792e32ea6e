"""The selective scan of `ausm.ssm` as Triton kernels for NVIDIA GPUs; import it only where `triton` is installed.

One program owns one pixel and a block of channels: its state (BLOCK, S) stays in registers while it walks over t.
Pixels lie on grid.x, since grid.y ends at 65,535 and a few streams of megapixel frames have more pixels than that.
Training keeps the inputs only: the backward kernel recomputes the states into a scratch of T states per program. Its
programs are few and loop over pixels, so the scratch stays in the L2 cache and gradients of A and D are summed
without atomics: equal runs, equal bits.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Channels per program. ptxas for sm_90, S = 16: forward 72 registers a thread; backward 230 at 64 channels, 128 at 32.
BLOCK, BACKWARD_BLOCK = 64, 32
PROGRAMS_PER_SM = 4  # of the backward kernel: what its registers let run at once


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors' is; under its interpreter there is none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """See `ausm.ssm.selective_scan`. S must be a power of two."""
    delta, B, C, z = (v.to(u.dtype) for v in (delta, B, C, z))
    y: Tensor = _Scan.apply(u, delta, A.float(), B, C, D.float(), z)  # type: ignore[no-untyped-call]
    return y


@torch.no_grad()
def scan_step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, state: Tensor) -> Tensor:
    """See `ausm.ssm.scan_step_torch`. state: (N, E, S) contiguous, S a power of two."""
    (u, su), (delta, sd), (B, sB), (C, sC), (z, sz) = (_rows(v.to(u.dtype)) for v in (u, delta, B, C, z))
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    N, E, S = state.shape
    A, D = A.float().contiguous(), D.float().contiguous()
    with _on(u.device):
        _step_kernel[N, triton.cdiv(E, BLOCK)](
            u, delta, A, B, C, D, z, state, y, su, sd, sB, sC, sz, E, S=S, BLOCK=BLOCK
        )  # fmt: skip
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(u, delta, A, B, C, D, z)
        clips, T, N, E = u.shape
        tensors, strides = _arguments(u, delta, A, B, C, D, z)
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        grid = (clips * N, triton.cdiv(E, BLOCK))
        with _on(u.device):
            _forward_kernel[grid](*tensors, y, *strides, T, N, E, S=A.shape[1], BLOCK=BLOCK)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, z = ctx.saved_tensors
        clips, T, N, E = u.shape
        S, blocks, rows = A.shape[1], triton.cdiv(E, BACKWARD_BLOCK), clips * T * N
        programs = min(clips * N, triton.cdiv(_multiprocessors(u.device) * PROGRAMS_PER_SM, blocks))
        like = {"device": u.device, "dtype": torch.float32}
        du, ddelta, dz = (torch.empty(v.shape, dtype=v.dtype, device=u.device) for v in (u, delta, z))
        dA, dD = torch.empty(programs, E, S, **like), torch.empty(programs, E, **like)
        dB, dC = torch.empty(blocks, rows, S, **like), torch.empty(blocks, rows, S, **like)
        tape = torch.empty(programs * blocks * T * BACKWARD_BLOCK * S, **like)
        tensors, strides = _arguments(u, delta, A, B, C, D, z)
        dy, sy = _rows(dy)
        with _on(u.device):
            _backward_kernel[programs, blocks](
                *tensors, dy, tape, du, ddelta, dA, dB, dC, dD, dz, *strides, sy, clips * N, T, N, E, rows,
                S=S, BLOCK=BACKWARD_BLOCK,
            )  # fmt: skip
        dB, dC = (v.sum(0).view(B.shape).to(B.dtype) for v in (dB, dC))
        return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz


@triton.jit
def _softplus(x):
    # log1p(e) = e log(w) / (w - 1) with w = 1 + e rounded: exact to rounding where e is tiny (time steps below 1e-3).
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, e, e * tl.log(w) / tl.where(w == 1.0, 1.0, w - 1.0))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _load(p, mask):
    return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(u, delta, A, B, C, D, z, y, su, sd, sB, sC, sz, T, N, E, S: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, S)
    live = e < E
    a = tl.load(A + e[:, None] * S + s[None, :], mask=live[:, None], other=0.0)
    skip = tl.load(D + e, mask=live, other=0.0)
    h = tl.zeros([BLOCK, S], tl.float32)
    row = (p // N).to(tl.int64) * T * N + p % N  # rows times channels pass 2^31
    for _ in range(T):
        x = _load(u + row * su + e, live)
        dt = _softplus(_load(delta + row * sd + e, live))
        b = tl.load(B + row * sB + s).to(tl.float32)
        c = tl.load(C + row * sC + s).to(tl.float32)
        gate = _load(z + row * sz + e, live)
        h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
        out = (tl.sum(h * c[None, :], axis=1) + skip * x) * gate * _sigmoid(gate)
        tl.store(y + row * E + e, out.to(y.dtype.element_ty), mask=live)
        row += N


@triton.jit
def _backward_kernel(
    u, delta, A, B, C, D, z, dy, tape, du, ddelta, dA, dB, dC, dD, dz,
    su, sd, sB, sC, sz, sy, P, T, N, E, rows, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, block = tl.program_id(0), tl.program_id(1)
    e = block * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, S)
    live = e < E
    cell = tl.arange(0, BLOCK)[:, None] * S + s[None, :]
    a = tl.load(A + e[:, None] * S + s[None, :], mask=live[:, None], other=0.0)
    skip = tl.load(D + e, mask=live, other=0.0)
    tape += (program * tl.num_programs(1) + block).to(tl.int64) * T * BLOCK * S
    sum_A = tl.zeros([BLOCK, S], tl.float32)
    sum_D = tl.zeros([BLOCK], tl.float32)
    for p in range(program, P, tl.num_programs(0)):
        first = (p // N).to(tl.int64) * T * N + p % N
        h = tl.zeros([BLOCK, S], tl.float32)
        for t in range(T):  # the tape keeps the state before each frame
            tl.store(tape + t * BLOCK * S + cell, h)
            row = first + t * N
            dt = _softplus(_load(delta + row * sd + e, live))
            dtx = dt * _load(u + row * su + e, live)
            b = tl.load(B + row * sB + s).to(tl.float32)
            h = tl.exp(dt[:, None] * a) * h + dtx[:, None] * b[None, :]
        tl.debug_barrier()
        dh = tl.zeros([BLOCK, S], tl.float32)
        for i in range(T):
            t = T - 1 - i
            row = first + t * N
            before = tl.load(tape + t * BLOCK * S + cell)
            x = _load(u + row * su + e, live)
            raw = _load(delta + row * sd + e, live)
            b = tl.load(B + row * sB + s).to(tl.float32)
            c = tl.load(C + row * sC + s).to(tl.float32)
            gate = _load(z + row * sz + e, live)
            g = _load(dy + row * sy + e, live)
            dt = _softplus(raw)
            decay = tl.exp(dt[:, None] * a)
            h = decay * before + (dt * x)[:, None] * b[None, :]
            out = tl.sum(h * c[None, :], axis=1) + skip * x
            opened = _sigmoid(gate)
            dout = g * gate * opened
            to_gate = g * out * opened * (1.0 + gate * (1.0 - opened))
            tl.store(dz + row * E + e, to_gate.to(dz.dtype.element_ty), mask=live)
            tl.store(dC + (block.to(tl.int64) * rows + row) * S + s, tl.sum(dout[:, None] * h, axis=0))
            now = dh + dout[:, None] * c[None, :]
            tl.store(dB + (block.to(tl.int64) * rows + row) * S + s, tl.sum(now * (dt * x)[:, None], axis=0))
            to_dtx = tl.sum(now * b[None, :], axis=1)
            dh = now * decay
            to_exponent = dh * before
            to_raw = (tl.sum(to_exponent * a, axis=1) + to_dtx * x) * _sigmoid(raw)
            tl.store(du + row * E + e, (dout * skip + to_dtx * dt).to(du.dtype.element_ty), mask=live)
            tl.store(ddelta + row * E + e, to_raw.to(ddelta.dtype.element_ty), mask=live)
            sum_A += to_exponent * dt[:, None]
            sum_D += dout * x
        tl.debug_barrier()  # the next pixel overwrites the tape
    tl.store(dA + program.to(tl.int64) * E * S + e[:, None] * S + s[None, :], sum_A, mask=live[:, None])
    tl.store(dD + program.to(tl.int64) * E + e, sum_D, mask=live)


@triton.jit
def _step_kernel(
    u, delta, A, B, C, D, z, state, y, su, sd, sB, sC, sz, E, S: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, S)
    live = e < E
    cells = e[:, None] * S + s[None, :]
    a = tl.load(A + cells, mask=live[:, None], other=0.0)
    x = _load(u + n * su + e, live)
    dt = _softplus(_load(delta + n * sd + e, live))
    b = tl.load(B + n * sB + s).to(tl.float32)
    c = tl.load(C + n * sC + s).to(tl.float32)
    gate = _load(z + n * sz + e, live)
    at = state + n * E * S + cells
    h = tl.exp(dt[:, None] * a) * _load(at, live[:, None]) + (dt * x)[:, None] * b[None, :]
    if state.dtype.element_ty == tl.float16:  # saturate: an infinite state would stay infinite
        h = tl.minimum(tl.maximum(h, -65504.0), 65504.0)
    tl.store(at, h.to(state.dtype.element_ty), mask=live[:, None])
    out = (tl.sum(h * c[None, :], axis=1) + _load(D + e, live) * x) * gate * _sigmoid(gate)
    tl.store(y + n * E + e, out.to(y.dtype.element_ty), mask=live)


def _rows(v: Tensor) -> tuple[Tensor, int]:
    """(rows, channels) with adjacent channels, copied only where it is not laid out so, and the stride between rows."""
    flat = v.flatten(0, -2)
    flat = flat if flat.stride(-1) == 1 else flat.contiguous()
    return flat, flat.stride(0)


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> tuple[list[Tensor], list[int]]:
    (u, su), (delta, sd), (B, sB), (C, sC), (z, sz) = (_rows(v) for v in (u, delta, B, C, z))
    return [u, delta, A.contiguous(), B, C, D.contiguous(), z], [su, sd, sB, sC, sz]


def _multiprocessors(device: torch.device) -> int:
    """4 where there is no GPU: kernels under Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
