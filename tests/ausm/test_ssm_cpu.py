"""The C++ kernels against the PyTorch functions in float64; building, caching and doing without a compiler."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ausm import native, ssm, ssm_cpu
from ausm.errors import AusmError, SizeError

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
CASES = [(2, 5, 33, 40, 8), (1, 16, 70, 128, 16), (3, 1, 4, 16, 16), (1, 4, 130, 17, 8)]


def scan_inputs(B: int, T: int, N: int, E: int, S: int) -> list[Tensor]:
    """xz (B, T, N, 2E) and dBC (B, T, N, 8 + 2S), sliced as in `Mamba.forward`; time steps from 1e-3 up; A; D."""
    torch.manual_seed(B + T)
    xz, delta = torch.randn(B, T, N, 2 * E), 3 * torch.randn(B, T, N, E) - 3
    return [xz, delta, torch.randn(B, T, N, 2 * S + 8), -torch.rand(E, S) * S - 0.1, torch.randn(E)]


def scan(function: Callable[..., Tensor], xz: Tensor, delta: Tensor, dBC: Tensor, A: Tensor, D: Tensor) -> Tensor:
    u, z = xz.chunk(2, dim=-1)
    _, B, C = dBC.split([8, A.shape[1], A.shape[1]], dim=-1)
    return function(u, delta, A, B, C, D, z)


def value_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    inputs = [v.detach().clone().requires_grad_() for v in inputs]
    y = function(*inputs)
    torch.manual_seed(9)
    return y.detach(), *torch.autograd.grad((y.double() * torch.randn(y.shape)).sum(), inputs)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_scan_and_its_gradients(case: tuple[int, ...]) -> None:
    inputs = scan_inputs(*case)
    native_results = value_and_gradients(lambda *v: scan(ssm_cpu.selective_scan, *v), inputs)
    torch_results = value_and_gradients(lambda *v: scan(ssm.selective_scan_torch, *v), inputs)
    exact = value_and_gradients(lambda *v: scan(ssm.selective_scan_torch, *v), [v.double() for v in inputs])
    for a, b, c in zip(native_results, torch_results, exact, strict=True):
        assert relative(a, c) < 1e-6 and relative(a, b) < 1e-5


@needs_compiler
def test_scan_and_its_gradients_in_bfloat16() -> None:
    inputs = [v.bfloat16() if i < 3 else v for i, v in enumerate(scan_inputs(*CASES[1]))]
    native_results = value_and_gradients(lambda *v: scan(ssm_cpu.selective_scan, *v), inputs)
    exact = value_and_gradients(lambda *v: scan(ssm.selective_scan_torch, *v), [v.double() for v in inputs])
    assert [v.dtype for v in native_results] == [torch.bfloat16] * 4 + [torch.float32] * 2
    assert all(relative(a, c) < 2**-7 for a, c in zip(native_results, exact, strict=True))


@needs_compiler
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_and_its_gradients(case: tuple[int, ...], dtype: torch.dtype) -> None:
    xz, *_ = scan_inputs(*case)
    inputs = [xz.to(dtype), torch.randn(case[3], 4), torch.randn(case[3])]
    results = value_and_gradients(lambda v, w, b: ssm_cpu.causal_conv_silu(v.chunk(2, dim=-1)[0], w, b), inputs)
    exact = value_and_gradients(
        lambda v, w, b: ssm.causal_conv_silu_torch(v.chunk(2, dim=-1)[0], w, b), [v.double() for v in inputs]
    )
    limit = 3e-6 if dtype == torch.float32 else 2**-7
    assert all(relative(a, c) < limit for a, c in zip(results, exact, strict=True))


@needs_compiler
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 40, 8), (33, 128, 16), (1, 7, 16), (3, 20, 8)])
def test_steps(shape: tuple[int, int, int], stored: torch.dtype) -> None:
    N, E, S = shape
    torch.manual_seed(N)
    u, delta, z = torch.randn(N, 3 * E).split(E, dim=-1)
    B, C = torch.randn(N, 2 * S).split(S, dim=-1)
    A, D, weight, bias = -torch.rand(E, S) * S, torch.randn(E), torch.randn(E, 4), torch.randn(E)
    hidden, conv = torch.randn(N, E, S).to(stored), torch.randn(N, E, 3).to(stored)
    guard = torch.full((2, 64), 7.0)  # the kernels write by address: nothing beside the state may change
    arena = torch.cat([guard[0], hidden.float().flatten(), guard[1]]).to(stored)
    ours = arena[64:-64].view(N, E, S)
    exact = hidden.clone()
    y = ssm_cpu.scan_step(u, delta, A, B, C, D, z, ours)
    torch.testing.assert_close(y, ssm.scan_step_torch(u, delta, A, B, C, D, z, exact), rtol=1e-5, atol=1e-5)
    ulp = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[stored]
    torch.testing.assert_close(ours.float(), exact.float(), rtol=ulp, atol=1e-6)
    assert (arena[:64] == 7).all() and (arena[-64:] == 7).all()
    ours, exact = conv.clone(), conv.clone()
    y = ssm_cpu.conv_step(u, weight, bias, ours)
    torch.testing.assert_close(y, ssm.conv_step_torch(u, weight, bias, exact), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours, exact)


@needs_compiler
def test_extreme_time_steps_and_gates_stay_finite_and_exact() -> None:
    delta = torch.tensor([-80.0, -20.0, -7.0, 0.0, 25.0, 90.0, 1e4]).view(7, 1).expand(1, 3, 7, 16)
    z = torch.linspace(-120, 120, 16).expand(1, 3, 7, 16)
    arguments = [torch.ones(1, 3, 7, 16), delta, -torch.ones(16, 8), *torch.ones(2, 1, 3, 7, 8), torch.zeros(16), z]
    ours = ssm_cpu.selective_scan(*arguments)
    exact = ssm.selective_scan_torch(*(v.double() for v in arguments))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-30)


@needs_compiler
def test_nan_is_not_hidden() -> None:
    inputs = scan_inputs(1, 3, 4, 16, 8)
    inputs[1][0, 1, 2, 5] = float("nan")
    y = scan(ssm_cpu.selective_scan, *inputs)
    assert y[0, 1:, 2, 5].isnan().all() and y.isnan().sum() == 2


@needs_compiler
def test_number_of_threads_changes_no_value() -> None:
    inputs, threads = scan_inputs(*CASES[3]), torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(value_and_gradients(lambda *v: scan(ssm_cpu.selective_scan, *v), inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(results[0][:4], results[1][:4], strict=True))
    assert all(relative(a, b) < 1e-7 for a, b in zip(*results, strict=True))  # sums over pixels: another order


@needs_compiler
def test_wrong_shapes_are_refused_before_anything_is_written() -> None:
    mamba, x = ssm.Mamba(16, d_state=8), torch.randn(6, 16)
    conv, hidden = mamba.init_state(6)
    with pytest.raises(SizeError, match=r"\(5, 32, 8\).*\(6, 32, 8\)"):
        mamba.step(x, conv.clone(), hidden[:5])
    with pytest.raises(SizeError, match=r"\(7, 32, 3\)"):
        mamba.step(x, torch.zeros(7, 32, 3), hidden)
    with pytest.raises(AusmError, match="contiguous"):
        mamba.step(x, conv, torch.zeros(6, 8, 32).transpose(1, 2))
    assert hidden.abs().max() == 0


def test_without_a_compiler_one_line_is_logged_and_results_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mamba, x = ssm.Mamba(16, d_state=8), torch.randn(1, 4, 6, 16)
    expected = mamba(x)
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    native.library.cache_clear()
    try:
        with caplog.at_level("WARNING", logger="ausm"):
            torch.testing.assert_close(mamba(x), expected, rtol=1e-5, atol=1e-6)
            mamba(x)
        assert len(caplog.records) == 1 and "no C++ compiler" in caplog.text
    finally:
        native.library.cache_clear()


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUSM_NATIVE", "0")
    native.library.cache_clear()
    try:
        assert not ssm_cpu.available(torch.zeros(1), 8)
    finally:
        native.library.cache_clear()


@needs_compiler
def test_builds_at_once_share_one_whole_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    (tmp_path / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    with ThreadPoolExecutor(4) as pool:  # each finds an empty cache
        paths = list(pool.map(lambda _: native.build(), range(4)))
    assert len(set(paths)) == 1 and native._load(paths[0]).answer() == 42
    assert list((tmp_path / "cache" / "ausm").iterdir()) == [paths[0]]


@needs_compiler
def test_a_change_of_the_sources_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    source, paths = tmp_path / "small.cpp", []
    for value in (1, 2, 1):
        source.write_text(f'extern "C" int answer() {{ return {value}; }}')
        paths.append(native.build())
    assert paths[0] == paths[2] != paths[1]


def test_a_broken_compiler_is_reported_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho internal error >&2; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="status 3: internal error"):
        native.build()
