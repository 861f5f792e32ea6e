"""The Triton kernels: under Triton's interpreter where there is no GPU, compiled where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ausm import ssm

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def check(device: str, sizes: list[tuple[int, int, int, int, int]]) -> None:
    """Values and gradients of scan and step against the PyTorch path in float64."""
    from ausm import ssm_triton

    for clips, T, N, E, S in sizes:
        torch.manual_seed(0)
        xz, dBC = torch.randn(clips, T, N, 2 * E), torch.randn(clips, T, N, 2 * S + 8)
        delta, A, D = torch.randn(clips, T, N, E) - 3, -torch.rand(E, S) * S - 0.1, torch.randn(E)
        inputs = [v.to(device).requires_grad_() for v in (xz, delta, dBC, A, D)]
        exact = [v.detach().double().requires_grad_() for v in inputs]
        weight = torch.randn(clips, T, N, E, device=device)

        def results(function, values: list[Tensor], S: int = S, weight: Tensor = weight) -> list[Tensor]:
            u, z = values[0].chunk(2, dim=-1)
            _, B, C = values[2].split([8, S, S], dim=-1)
            y = function(u, values[1], values[3], B, C, values[4], z)
            return [y, *torch.autograd.grad((y * weight).sum(), values)]

        for ours, theirs in zip(
            results(ssm_triton.selective_scan, inputs), results(ssm.selective_scan_torch, exact), strict=True
        ):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1e-12)
        for stored in (torch.float32, torch.float16):
            state = torch.randn(N, E, S, device=device).to(stored)
            ours, theirs = state.clone(), state.clone()
            frame = [v.detach()[0, 0].contiguous() for v in (inputs[0], inputs[1], inputs[2])]
            B, C = frame[2][:, 8:].chunk(2, dim=-1)
            arguments = (frame[0][:, :E], frame[1], inputs[3].detach(), B, C, inputs[4].detach(), frame[0][:, E:])
            torch.testing.assert_close(
                ssm_triton.scan_step(*arguments, ours), ssm.scan_step_torch(*arguments, theirs), rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-3, atol=1e-5)


@needs_triton
def test_under_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    root = Path(__file__).parents[2]
    code = "from tests.ausm.test_ssm_triton import check; check('cpu', [(2, 3, 5, 24, 8), (1, 4, 3, 70, 16)])"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@needs_triton
@needs_gpu
def test_on_a_gpu() -> None:
    check("cuda", [(2, 5, 100, 200, 16), (1, 16, 70_000, 32, 8), (3, 1, 7, 64, 16)])


@needs_triton
@needs_gpu
def test_gradients_are_the_same_bits_in_every_run() -> None:
    from ausm import ssm_triton

    torch.manual_seed(0)
    u, delta, z = torch.randn(3, 2, 4, 500, 128, device="cuda")
    B, C = torch.randn(2, 2, 4, 500, 16, device="cuda")
    A = (-torch.rand(128, 16, device="cuda")).requires_grad_()
    D = torch.ones(128, device="cuda", requires_grad=True)
    runs = [torch.autograd.grad(ssm_triton.selective_scan(u, delta, A, B, C, D, z).sum(), (A, D)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_gpu
def test_recurrent_form_equals_parallel_form_on_a_gpu() -> None:
    torch.manual_seed(0)
    mamba, x = ssm.Mamba(64).cuda(), torch.randn(2, 6, 50, 64, device="cuda")
    torch.testing.assert_close(mamba(x, mamba.init_state(100)), mamba(x), rtol=1e-4, atol=1e-5)
