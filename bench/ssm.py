"""The Mamba block: speed of its kernels against the PyTorch path, and drift of each state storage type.

    python -m bench.ssm speed [--device cuda] [--threads 1] [--repeats 5]
    python -m bench.ssm drift [--steps 10000]

Both print a Markdown table; `--json FILE` also writes the rows. Speed is the least of paired repetitions: the paths
take turns, so that a busy machine slows all of them alike.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ausm import ssm, ssm_cpu

TRAINING = ((2, 4, 1792, 128, 8), (4, 8, 1792, 128, 8), (2, 8, 1792, 256, 16))  # B, T, N, E, S
INFERENCE = ((2160, 128, 8), (2160, 128, 16), (2160, 256, 16))  # N, E, S
STORAGE = (torch.float32, torch.float16, torch.bfloat16)

Row = dict[str, Any]


def paired(functions: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Least time of each function in ms, taking turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for i, function in enumerate(functions):
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if turn:  # the first turn compiles and warms caches
                times[i].append(1e3 * (time.perf_counter() - start))
    return [min(t) for t in times]


def speed(device: str, repeats: int) -> list[Row]:
    """Fused kernels against PyTorch: scan and convolution in training, both in one recurrent step."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in TRAINING:
            for name, make in (("scan", _scan_runs), ("conv", _conv_runs)):
                fused, plain = make(*shape, dtype=dtype, device=device)
                for mode, fn in (("forward", torch.no_grad()(lambda f: f())), ("forward + backward", _backward)):
                    ours, theirs = paired([partial(fn, fused), partial(fn, plain)], repeats, device)
                    rows.append(_row(f"{name} {mode}", shape, dtype, ours, theirs))
    for stored in (torch.float32, torch.float16):
        for size in INFERENCE:
            ours, theirs = paired(_step_runs(*size, stored=stored, device=device), 6 * repeats, device)
            rows.append(_row("recurrent step", size, stored, ours, theirs))
    return rows


@torch.inference_mode()
def drift(steps: int, d_model: int = 64, pixels: int = 32) -> list[Row]:
    """State and output error of each storage type against a float64 run of the same weights on a slowly varying input.

    "initial" has the decays of a fresh block (time constants of up to 1,000 frames); "slow" slows them 20 times.
    """
    rows = []
    for name, shift in (("initial", 0.0), ("slow", -3.0)):
        torch.manual_seed(0)
        exact = ssm.Mamba(d_model).double()
        exact.A_log.add_(shift)
        block = ssm.Mamba(d_model)
        block.load_state_dict(exact.state_dict())
        reference = exact.init_state(pixels, torch.float64)
        states = [block.init_state(pixels, dtype) for dtype in STORAGE]
        x, report = torch.randn(pixels, d_model), sorted({min(k, steps) for k in (100, 1_000, 10_000, steps)})
        for step in range(1, steps + 1):
            x = 0.95 * x + 0.05**0.5 * torch.randn(pixels, d_model)
            y = exact.step(x.double(), *reference)
            outputs = [block.step(x, *state) for state in states]
            if step in report:
                for dtype, state, output in zip(STORAGE, states, outputs, strict=True):
                    row = {"decays": name, "steps": step, "storage": str(dtype).removeprefix("torch.")}
                    row["state error %"] = 100 * _error(state.ssm, reference.ssm)
                    row["output error %"] = 100 * _error(output, y)
                    rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table; numbers with three digits."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scan_runs(B: int, T: int, N: int, E: int, S: int, dtype: torch.dtype, device: str) -> list[Callable[[], Any]]:
    torch.manual_seed(0)
    xz, dBC = torch.randn(B, T, N, 2 * E), torch.randn(B, T, N, 8 + 2 * S)
    delta, A, D = torch.randn(B, T, N, E) - 3, -torch.rand(E, S) * S - 0.1, torch.ones(E)
    xz, delta, dBC = (v.to(device, dtype).requires_grad_() for v in (xz, delta, dBC))
    A, D = (v.to(device).requires_grad_() for v in (A, D))

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
        u, z = xz.split(E, dim=-1)
        _, b, c = dBC.split([8, S, S], dim=-1)
        return function(u, delta, A, b, c, D, z), [xz, delta, dBC, A, D]

    return [lambda: run(ssm.selective_scan), lambda: run(ssm.selective_scan_torch)]


def _conv_runs(B: int, T: int, N: int, E: int, S: int, dtype: torch.dtype, device: str) -> list[Callable[[], Any]]:
    torch.manual_seed(0)
    xz = torch.randn(B, T, N, 2 * E).to(device, dtype).requires_grad_()
    weight, bias = (torch.randn(*size, device=device, requires_grad=True) for size in ((E, 4), (E,)))

    def run(function: Callable[..., Tensor], as_type: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        return function(xz.split(E, dim=-1)[0], weight.to(as_type), bias.to(as_type)), [xz, weight, bias]

    fused, plain = ssm.causal_conv_silu, ssm.causal_conv_silu_torch
    return [lambda: run(fused, torch.float32), lambda: run(plain, dtype)]


def _step_runs(N: int, E: int, S: int, stored: torch.dtype, device: str) -> list[Callable[[], Any]]:
    torch.manual_seed(0)
    u, delta, z = torch.randn(3, N, E, device=device)
    B, C = torch.randn(2, N, S, device=device)
    A, D = -torch.rand(E, S, device=device) - 0.1, torch.ones(E, device=device)
    weight, bias = torch.randn(E, 4, device=device), torch.randn(E, device=device)
    conv, state = (torch.zeros(N, E, k, dtype=stored, device=device) for k in (3, S))
    conv_step, scan_step = ssm.conv_step_torch, ssm.scan_step_torch
    if ssm_cpu.available(u, S):
        conv_step, scan_step = ssm_cpu.conv_step, ssm_cpu.scan_step
    elif device == "cuda":
        from ausm import ssm_triton

        scan_step = ssm_triton.scan_step

    @torch.inference_mode()
    def run(convolve: Callable[..., Tensor], update: Callable[..., Tensor]) -> Tensor:
        return update(convolve(u, weight, bias, conv), delta, A, B, C, D, z, state)

    return [lambda: run(conv_step, scan_step), lambda: run(ssm.conv_step_torch, ssm.scan_step_torch)]


def _backward(run: Callable[[], tuple[Tensor, list[Tensor]]]) -> None:
    y, inputs = run()
    torch.autograd.grad(y.sum(), inputs)


def _row(what: str, shape: tuple[int, ...], dtype: torch.dtype, ours: float, theirs: float) -> Row:
    size = " x ".join(map(str, shape))
    kind = str(dtype).removeprefix("torch.")
    return {"what": what, "size": size, "type": kind, "fused ms": ours, "PyTorch ms": theirs, "ratio": theirs / ours}


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "drift"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = speed(arguments.device, arguments.repeats) if arguments.what == "speed" else drift(arguments.steps)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
