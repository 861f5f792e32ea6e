"""The loop of `ausm bench train` is the same training as the parallel form, so its time may be compared."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from ausm.config import nano
from ausm.errors import InputError
from ausm.model import AUSM
from bench import train as bench
from training import losses
from training.stages import RECIPES


@pytest.mark.parametrize("scan", ["auto", "plain"])
def test_the_loop_has_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, scan: str) -> None:
    torch.manual_seed(0)
    full = nano()
    model = AUSM(replace(full, D=32, N_det=4, N_id=8, pixel_decoder=replace(full.pixel_decoder, ffn=32, mask_dim=16)))
    stage = replace(RECIPES["nano"](1), frames=6, size=(32, 64), batch=2, noise=None)
    stage = replace(stage, loss=replace(stage.loss, points=64))
    iteration = bench.Iteration(model, stage, objects=3, bf16=False)
    fixed = torch.quasirandom.SobolEngine(2).draw(512)
    monkeypatch.setattr(losses.torch, "rand", lambda *n, device=None: fixed[: n[-2]].expand(*n))

    def gradients(parallel: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        arguments = (iteration.batch, iteration.targets)
        model.zero_grad()
        if parallel:
            terms = iteration.clip_loss(*arguments, False, iteration.num_masks)
        else:
            terms = bench.iterative_terms(iteration.clip_loss, *arguments, iteration.num_masks)
        torch.stack(list(terms.values())).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {k: float(v.detach()) for k, v in terms.items()}, grads

    with bench.scan_of(scan):
        (a, whole), (b, loop) = gradients(True), gradients(False)
    assert a == pytest.approx(b, rel=1e-4) and whole.keys() == loop.keys()
    assert any("mamba" in name for name in whole) and iteration.targets.active.any()
    for name, grad in whole.items():
        assert torch.allclose(grad, loop[name], atol=1e-6 + 1e-3 * float(grad.abs().max())), name


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    arguments = ["--lengths", "1,2", "--size", "32x64", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    assert bench.run(parser.parse_args(arguments)) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["preset"] == "nano" and list(figures["lengths"]) == ["1", "2"]
    for row in figures["lengths"].values():
        assert row["ratio"] == pytest.approx(row["iterative_s"] / row["parallel_s"]) and row["parallel_s"] > 0
    for bad in (["--size", "33x64"], ["--lengths", "0"], ["--size", "a"]):
        with pytest.raises(InputError, match="--lengths"):
            bench.run(parser.parse_args([*arguments, *bad]))
