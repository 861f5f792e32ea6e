"""The Mamba block: mamba-ssm's names and mathematics; parallel form = recurrent form; nothing from the future."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ausm import ssm, ssm_cpu
from bench.ssm import drift

PATHS = [pytest.param(False, id="torch"), pytest.param(True, id="native")]


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the native kernels, or with them switched off."""
    if not request.param:
        monkeypatch.setattr(ssm_cpu, "library", lambda: None)
    elif ssm_cpu.library() is None:
        pytest.skip("no C++ compiler here")


def oracle(mamba: ssm.Mamba, x: Tensor) -> Tensor:
    """The block of Gu & Dao (2023), Alg. 2, for one sequence x (T, D), element by element in float64."""
    p = {name: value.detach().double() for name, value in mamba.named_parameters()}
    xz = x.double() @ p["in_proj.weight"].T
    inner, gate = xz.chunk(2, dim=-1)  # (T, E)
    T, E = inner.shape
    weight, taps = p["conv1d.weight"][:, 0], mamba.d_conv
    h, outputs = torch.zeros(E, mamba.d_state, dtype=torch.float64), []
    for t in range(T):
        u = p["conv1d.bias"].clone()
        for k in range(taps):
            if t - k >= 0:
                u += weight[:, taps - 1 - k] * inner[t - k]
        u = u / (1 + torch.exp(-u))
        dt, B, C = (p["x_proj.weight"] @ u).split([mamba.dt_rank, mamba.d_state, mamba.d_state])
        dt = torch.log1p(torch.exp(p["dt_proj.weight"] @ dt + p["dt_proj.bias"]))
        for e in range(E):
            h[e] = torch.exp(-dt[e] * torch.exp(p["A_log"][e])) * h[e] + dt[e] * u[e] * B
        y = h @ C + p["D"] * u
        outputs.append(p["out_proj.weight"] @ (y * gate[t] / (1 + torch.exp(-gate[t]))))
    return torch.stack(outputs)


def make(d_model: int = 32, d_state: int = 8, seed: int = 0, **options: int) -> ssm.Mamba:
    """A block with every parameter moved off its regular initial value."""
    torch.manual_seed(seed)
    mamba = ssm.Mamba(d_model, d_state, **options)
    with torch.no_grad():
        mamba.A_log.add_(0.3 * torch.randn_like(mamba.A_log))
        mamba.D.add_(0.3 * torch.randn_like(mamba.D))
    return mamba


def test_state_dict_has_the_names_and_shapes_of_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in ssm.Mamba(256).state_dict().items()}
    assert shapes == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (48, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 437_760


def test_loads_a_foreign_state_dict_strictly() -> None:
    foreign = {name: torch.randn_like(value) for name, value in ssm.Mamba(256).state_dict().items()}
    foreign["A_log"] = foreign["A_log"].abs()
    mamba = ssm.Mamba(256)
    mamba.load_state_dict(foreign, strict=True)
    assert all(torch.equal(value, foreign[name]) for name, value in mamba.state_dict().items())


def test_initial_values_and_marks_for_the_optimiser() -> None:
    mamba = ssm.Mamba(64, d_state=16)
    assert torch.equal(mamba.A_log.exp()[5].round(), torch.arange(1.0, 17.0))
    assert torch.equal(mamba.D, torch.ones(128))
    dt = F.softplus(mamba.dt_proj.bias)
    assert dt.min() >= 0.99e-3 and dt.max() <= 0.101 and dt.log().std() > 0.8  # log-uniform: 1.33
    assert mamba.dt_proj.weight.abs().max() <= mamba.dt_rank**-0.5
    assert mamba.A_log._no_weight_decay and mamba.D._no_weight_decay and mamba.dt_proj.bias._no_reinit
    assert ssm.Mamba(40).dt_rank == 3 and ssm.Mamba(40, dt_rank=7).dt_rank == 7


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("d_state", [8, 16])
def test_forward_is_the_mathematics_of_the_paper(path: None, d_state: int) -> None:
    mamba = make(24, d_state)
    x = torch.randn(2, 7, 3, 24)
    y = mamba(x)
    for b in range(2):
        for n in range(3):
            torch.testing.assert_close(y[b, :, n].double(), oracle(mamba, x[b, :, n]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, indirect=True)
# The fixture patches once for all examples, which is what is wanted.
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 9),
    pixels=st.integers(1, 20),
    width=st.sampled_from([8, 20, 32]),
    d_state=st.sampled_from([4, 8, 16]),
    expand=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_recurrent_form_equals_parallel_form(
    path: None, clips: int, frames: int, pixels: int, width: int, d_state: int, expand: int, seed: int
) -> None:
    mamba = make(width, d_state, seed, expand=expand)
    x = torch.randn(clips, frames, pixels, width)
    parallel = mamba(x)
    conv, state = mamba.init_state(clips * pixels)
    for t in range(frames):
        y = mamba.step(x[:, t].flatten(0, 1), conv, state)
        torch.testing.assert_close(y.view(clips, pixels, width), parallel[:, t], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_forward_continues_from_a_state_and_advances_it(path: None) -> None:
    mamba, x = make(), torch.randn(2, 9, 5, 32)
    whole, state = mamba(x), mamba.init_state(10)
    parts = torch.cat([mamba(x[:, :4], state), mamba(x[:, 4:], state)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_pixels_are_apart_and_the_past_does_not_see_the_future(path: None) -> None:
    mamba, x = make(), torch.randn(2, 6, 5, 32)
    changed = x.clone()
    changed[1, 3, 2] += 1
    difference = (mamba(changed) - mamba(x)).abs().sum(-1)
    assert difference[1, 3:, 2].min() > 1e-6
    difference[1, 3:, 2] = 0
    assert difference.max() == 0


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_step_works_in_place_and_keeps_the_storage_type(path: None, dtype: torch.dtype) -> None:
    mamba, state = make(), make().init_state(6, dtype)
    conv, hidden, x = state.conv, state.ssm, torch.randn(4, 6, 32)
    addresses = conv.data_ptr(), hidden.data_ptr()
    reference = mamba.init_state(6)
    outputs = [(mamba.step(frame, conv, hidden), mamba.step(frame, *reference)) for frame in x]
    assert addresses == (conv.data_ptr(), hidden.data_ptr())
    assert conv.dtype == hidden.dtype == dtype
    torch.testing.assert_close(hidden.float(), reference.ssm, rtol=2e-2, atol=1e-3)
    inner = mamba.in_proj(x)[:, :, : mamba.d_inner]
    torch.testing.assert_close(conv.float(), inner[1:].permute(1, 2, 0), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(*outputs[-1], rtol=5e-2, atol=5e-3)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_float16_storage_saturates_instead_of_becoming_infinite(path: None) -> None:
    state = torch.full((1, 16, 8), 6e4, dtype=torch.float16)
    one, many = torch.ones(1, 16), torch.full((1, 8), 1e6)
    step = ssm_cpu.scan_step if ssm_cpu.available(one, 8) else ssm.scan_step_torch
    y = step(one, one, torch.full((16, 8), -1e-3), many, torch.ones(1, 8), one[0], one, state)
    assert state.max() == ssm.FP16_MAX and torch.isfinite(y).all()


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("run", [lambda m, x: m(x), lambda m, x: m(x, m.init_state(10, torch.float16))])
def test_bfloat16_by_autocast_and_by_weights(path: None, run: Callable[[ssm.Mamba, Tensor], Tensor]) -> None:
    mamba, x = make(), torch.randn(2, 5, 5, 32)
    exact = run(mamba, x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(mamba, x)
    low = run(mamba.bfloat16(), x.bfloat16())
    assert mixed.dtype == low.dtype == torch.bfloat16
    for y in (mixed, low):
        torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.03 * float(exact.abs().max()))


def test_training_under_autocast_gives_every_parameter_a_gradient() -> None:
    mamba, x = make(), torch.randn(2, 5, 5, 32, requires_grad=True)
    mamba(x).square().sum().backward()
    exact = {name: p.grad.clone() for name, p in mamba.named_parameters()}
    mamba.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = mamba(x)
    y.float().square().sum().backward()
    for name, p in mamba.named_parameters():
        assert p.grad.dtype == torch.float32
        assert (p.grad - exact[name]).norm() <= 0.05 * exact[name].norm(), name


def test_drift_of_the_storage_types_has_the_order_and_size_of_the_documented_table() -> None:
    rows = {(row["decays"], row["storage"]): row["state error %"] for row in drift(steps=200, pixels=4)}
    for decays in ("initial", "slow"):
        single, half, brain = (rows[decays, kind] for kind in ("float32", "float16", "bfloat16"))
        assert single < 1e-4 and 0.01 < half < 0.3 and 0.3 < brain < 4


def test_mamba_ssm_path_transposes_as_its_kernel_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_softplus: bool):
        """mamba-ssm's convention: (sequence, channel, t), contiguous."""
        assert delta_softplus and all(v.is_contiguous() for v in (u, delta, B, C, z))
        h, ys = torch.zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            dt = F.softplus(delta[:, :, t, None])
            h = torch.exp(dt * A) * h + dt * u[:, :, t, None] * B[:, None, :, t]
            ys.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
        return torch.stack(ys, dim=-1) * F.silu(z)

    monkeypatch.setattr(ssm, "_mamba_ssm_scan", lambda: kernel)
    u, delta, z = torch.randn(3, 2, 5, 7, 12)
    B, C = torch.randn(2, 2, 5, 7, 8)
    arguments = (u, delta, -torch.rand(12, 8), B, C, torch.randn(12), z)
    torch.testing.assert_close(ssm.selective_scan_mamba_ssm(*arguments), ssm.selective_scan_torch(*arguments))
