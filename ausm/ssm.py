"""Mamba-1 (Gu & Dao 2023) over time, one sequence per pixel: the temporal half of a History Compressor layer.

Parameter names, shapes and initial values are those of `mamba_ssm.Mamba`, so checkpoints interchange. Two forms, one
model: `Mamba.forward` runs T frames at once (training), `Mamba.step` one frame on a state of fixed size (inference).

    B clips, T frames, N pixels, D = d_model, E = d_inner = expand * D, S = d_state, K = d_conv, R = dt_rank

    x, z  = in_proj(input)                    x = silu(causal depthwise conv over t, K taps)
    dt, B, C = x_proj(x)                      delta = softplus(dt_proj(dt)),  A = -exp(A_log)
    h_t   = exp(delta A) h_{t-1} + delta B x  y_t = (C . h_t + D x) silu(z),  output = out_proj(y)

Tensors stay (B, T, N, ...) throughout: a scan over t needs no transpose when each pixel's row is read at stride N.
"""

import functools
import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ausm import ssm_cpu

HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
FP16_MAX = 65504.0  # an infinite state would stay infinite (inf * decay) for the rest of a stream: saturate instead


class MambaState(NamedTuple):
    """What one layer carries from frame to frame. Both tensors are updated in place by `Mamba.step`.

    `conv` (N, E, K-1), oldest tap first; `ssm` (N, E, S). Contiguous.
    """

    conv: Tensor
    ssm: Tensor


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """(C . h + D u) silu(z) with h_t = exp(dt A) h_{t-1} + dt B u, dt = softplus(delta), from a zero state.

    u, delta, z: (B, T, N, E), any float type; B, C: (B, T, N, S); A: (E, S), negative; D: (E). Returns (B, T, N, E) in
    the type of `u`; the arithmetic is float32 (float64 stays float64). The device chooses the path.
    """
    if ssm_cpu.available(u, A.shape[1]):
        return ssm_cpu.selective_scan(u, delta, A, B, C, D, z)
    if u.is_cuda and u.dtype in HALF_AND_SINGLE:  # not "does triton import": it does on machines without a GPU
        kernels = _triton_kernels(A.shape[1])
        if kernels is not None:
            y: Tensor = kernels.selective_scan(u, delta, A, B, C, D, z)
            return y
        if _mamba_ssm_scan() is not None:
            return selective_scan_mamba_ssm(u, delta, A, B, C, D, z)
    return selective_scan_torch(u, delta, A, B, C, D, z)


def selective_scan_mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """`selective_scan` by mamba-ssm's CUDA kernel, which wants (sequence, channel, t): all is transposed for it."""
    clips, _, N, _ = u.shape
    u, delta, B, C, z = (v.transpose(1, 2).flatten(0, 1).transpose(1, 2).contiguous() for v in (u, delta, B, C, z))
    y = _mamba_ssm_scan()(u, delta, A, B, C, D=D, z=z, delta_softplus=True)
    out: Tensor = y.transpose(1, 2).unflatten(0, (clips, N)).transpose(1, 2)
    return out


@functools.cache
def _mamba_ssm_scan() -> Any:
    """mamba-ssm's `selective_scan_fn`; None where it, or the CUDA extension that it needs, is not installed."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError:
        return None


@functools.cache
def _triton_kernels(states: int) -> Any:
    """`ausm.ssm_triton`; None where triton is not installed or S is no power of two."""
    try:
        return importlib.import_module("ausm.ssm_triton") if states & (states - 1) == 0 else None
    except ImportError:
        return None


def selective_scan_torch(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """`selective_scan` in plain PyTorch: any device, any float type, autograd by recording each of the T updates."""
    with torch.autocast(u.device.type, enabled=False):  # autocast would run the sums below in bfloat16
        out_dtype, dtype = u.dtype, torch.promote_types(u.dtype, torch.float32)
        u, delta, B, C, z = (v.to(dtype) for v in (u, delta, B, C, z))
        dt = F.softplus(delta)
        dtu = dt * u
        h = u.new_zeros(u.shape[0], *u.shape[2:], A.shape[1])  # (B, N, E, S)
        ys = []
        for t in range(u.shape[1]):
            h = torch.exp(dt[:, t, :, :, None] * A) * h + dtu[:, t, :, :, None] * B[:, t, :, None, :]
            ys.append((h @ C[:, t, :, :, None]).squeeze(-1))
        y = torch.stack(ys, dim=1) + D * u
        return (y * F.silu(z)).to(out_dtype)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu of a depthwise convolution over t that sees frames t-K+1..t. x: (B, T, N, E); weight: (E, K); bias: (E)."""
    if ssm_cpu.available(x, taps=weight.shape[1]):
        return ssm_cpu.causal_conv_silu(x, weight, bias)
    return causal_conv_silu_torch(x, weight.to(x.dtype), bias.to(x.dtype))


def causal_conv_silu_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv_silu` as K shifted multiply-adds: no transpose to (B N, E, T), which nn.Conv1d would need."""
    taps, frames = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
    y = bias + padded[:, :frames] * weight[:, 0]
    for tap in range(1, taps):
        y = torch.addcmul(y, padded[:, tap : tap + frames], weight[:, tap])
    return F.silu(y)


def conv_step_torch(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
    """One frame of `causal_conv_silu`. x: (N, E); state: (N, E, K-1), shifted in place by one tap."""
    y = torch.addcmul(bias, x, weight[:, -1]) + (state.to(x.dtype) * weight[:, :-1]).sum(-1)
    for tap in range(state.shape[-1] - 1):
        state[..., tap] = state[..., tap + 1]
    state[..., -1] = x
    return F.silu(y)


def scan_step_torch(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, state: Tensor
) -> Tensor:
    """One frame of `selective_scan`. u, delta, z: (N, E); B, C: (N, S); state: (N, E, S), float, updated in place."""
    dt = F.softplus(delta)
    h = torch.exp(dt[..., None] * A).mul_(state).addcmul_((dt * u)[..., None], B[:, None, :])
    y = torch.addcmul((h @ C[..., None]).squeeze(-1), D, u) * F.silu(z)
    state.copy_(h.clamp_(-FP16_MAX, FP16_MAX) if state.dtype == torch.float16 else h)
    return y


class Mamba(nn.Module):
    """The block of `mamba_ssm.Mamba`: same names, shapes and initial values; 437,760 parameters at D = 256."""

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | str = "auto"
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        # Holds parameters under mamba-ssm's names; its own forward would need (B*N, E, T), a transpose of everything.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._init_dt()
        # Read by the trainer: no weight decay on the dynamics, no global re-initialisation of the time steps.
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_dt(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
        """softplus(bias) is log-uniform in [dt_min, dt_max]; the weights keep the variance of the low-rank input."""
        std = self.dt_rank**-0.5
        self.dt_proj.weight.uniform_(-std, std)
        dt = torch.exp(torch.rand(self.d_inner) * math.log(dt_max / dt_min) + math.log(dt_min)).clamp_(min=dt_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def init_state(
        self, n: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> MambaState:
        """The zero state of n pixels; `dtype` (float32, float16, bfloat16) is what it is stored in, not computed in."""
        device = self.A_log.device if device is None else device
        shapes = (n, self.d_inner, self.d_conv - 1), (n, self.d_inner, self.d_state)
        return MambaState(*(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes))

    def forward(self, x: Tensor, state: MambaState | None = None) -> Tensor:
        """x: (B, T, N, D) -> (B, T, N, D), each of the B*N pixels its own sequence over t, from a zero state.

        With `state` (of B*N pixels) the frames are stepped from it and leave it advanced by T, without gradient.
        """
        if state is not None:
            frames = [self.step(x[:, t].flatten(0, 1), *state) for t in range(x.shape[1])]
            return torch.stack(frames).view(x.shape[1], x.shape[0], x.shape[2], -1).transpose(0, 1)
        u, z = self.in_proj(x).split(self.d_inner, dim=-1)
        weight, bias, A, D = self._dynamics()
        u = causal_conv_silu(u, weight, bias)
        delta, B, C = self._select(u)
        out: Tensor = self.out_proj(selective_scan(u, delta, A, B, C, D, z))
        return out

    @torch.no_grad()
    def step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """One frame, x: (N, D) -> (N, D). conv_state (N, E, K-1) and ssm_state (N, E, S) are updated in place."""
        u, z = self.in_proj(x).split(self.d_inner, dim=-1)
        weight, bias, A, D = self._dynamics()
        y: Tensor
        if ssm_cpu.available(u, self.d_state, self.d_conv):
            u = ssm_cpu.conv_step(u, weight, bias, conv_state)
            delta, B, C = self._select(u)
            y = ssm_cpu.scan_step(u, delta, A, B, C, D, z, ssm_state)
        else:
            u = conv_step_torch(u.to(A.dtype), weight, bias, conv_state).to(u.dtype)
            delta, B, C = self._select(u)
            kernels = _triton_kernels(self.d_state) if x.is_cuda and u.dtype in HALF_AND_SINGLE else None
            if kernels is not None:
                y = kernels.scan_step(u, delta, A, B, C, D, z, ssm_state)
            else:
                with torch.autocast(x.device.type, enabled=False):  # autocast would run C . h in bfloat16
                    u32, delta, B, C, z = (v.to(A.dtype) for v in (u, delta, B, C, z))
                    y = scan_step_torch(u32, delta, A, B, C, D, z, ssm_state).to(u.dtype)
        out: Tensor = self.out_proj(y)
        return out

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent part: (..., E) -> delta (..., E) before softplus, B and C (..., S)."""
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return self.dt_proj(dt), B, C

    def _dynamics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Convolution (E, K) and bias (E), A (E, S) and D (E), in float32 at least whatever the module's type."""
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        assert self.conv1d.bias is not None  # made with one
        parameters = (self.conv1d.weight[:, 0], self.conv1d.bias, self.A_log, self.D)
        weight, bias, A_log, D = (p.to(dtype) for p in parameters)
        return weight, bias, -torch.exp(A_log), D
