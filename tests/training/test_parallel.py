"""Layers computed twice have the same gradients; a sharded run has the same losses and files as a data-parallel one."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_swin_t
from tiny_training import STAGE, batch, same, tiny_config, trainer
from torch import Tensor, nn

from ausm.config import swin_t
from ausm.errors import InputError
from ausm.model import AUSM
from training import train
from training.clip_loss import ClipLoss
from training.parallel import checkpoint_activations, layers_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def kept_bytes(step: Any) -> int:
    """Memory that the forward pass of `step` keeps for the backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storages.values())


def check_computed_twice(trained: nn.Module, model: AUSM, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The same gradients for less memory once the layers of `model` compute their forward pass again; returns them."""

    def measure() -> tuple[dict[str, Tensor], int]:
        trained.zero_grad()
        total = []

        def forward() -> None:
            torch.manual_seed(1)
            total.append(loss())

        size = kept_bytes(forward)
        total[0].backward()
        return {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}, size

    before, all_kept = measure()
    checkpoint_activations(model)
    after, kept = measure()
    assert before.keys() == after.keys()
    for name, grad in before.items():
        assert torch.allclose(grad, after[name], rtol=1e-6, atol=1e-6 * float(grad.abs().max())), name
    print(f"kept for the backward pass: {all_kept / 1e6:.2f} MB, computed twice {kept / 1e6:.2f} MB")
    assert kept < 0.7 * all_kept
    return before


@pytest.mark.parametrize(("self_fed", "stream"), [(False, False), (True, False), (True, True)])
def test_layers_computed_twice(self_fed: bool, stream: bool) -> None:
    full = tiny_config()
    config = dataclasses.replace(
        full,
        compressor=dataclasses.replace(full.compressor, layers=2),
        decoder=dataclasses.replace(full.decoder, layers=2),
    )
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(config), dataclasses.replace(STAGE, self_fed_stream=stream)).train()
    targets = clip_loss.targets(batch([0, 1]), torch.Generator().manual_seed(0))
    names = [name for name, _ in clip_loss.named_parameters()]

    def loss() -> Tensor:
        return torch.stack(list(clip_loss(batch([0, 1]), targets, self_fed).values())).sum()

    grads = check_computed_twice(clip_loss, clip_loss.model, loss)
    assert [name for name, _ in clip_loss.named_parameters()] == names  # checkpoints stay readable
    assert any("compressor" in n for n in grads)


def test_layers_of_a_large_preset() -> None:
    with torch.device("meta"):
        model = AUSM(swin_t())
    c = model.config
    expected = c.neck.layers + c.compressor.layers + c.decoder.layers + c.pixel_decoder.layers
    blocks = 2 + 2 + 6 + 2  # of Swin-T
    assert len(layers_of(model)) == expected + blocks > 24


def test_blocks_of_a_backbone_computed_twice() -> None:
    """With stochastic depth on: the second pass must drop what the first one dropped."""
    torch.manual_seed(0)
    config = swin_t()
    model = AUSM(dataclasses.replace(small_swin_t(), backbone=dataclasses.replace(config.backbone, drop_path=0.3)))
    model.backbone.train()
    images = torch.rand(1, 3, 64, 96)

    def loss() -> Tensor:
        return torch.stack([m.square().mean() for m in model.backbone(images)]).sum()

    grads = check_computed_twice(model.backbone, model, loss)
    assert any("blocks" in n for n in grads)


def test_one_process_has_nothing_to_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fsdp divides the model among processes: start them with torchrun"):
        trainer(tmp_path, fsdp=True)


def test_sharded_equals_data_parallel(tmp_path: Path) -> None:
    """Two processes, four iterations, the sharded run restarted after two: losses to 1e-4, files the same in form."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command += [str(HERE / "sharded_run.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("whole", "sharded")
    rows = [[json.loads(s) for s in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in names]
    assert [r["iteration"] for r in rows[1]] == [1, 2, 3, 4]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["grad_norm"] == pytest.approx(b["grad_norm"], 1e-3)
        for key in ("trk_mask", "trk_obj", "det_mask", "det_obj", "class", "seed"):
            assert abs(a[key] - b[key]) < 1e-4 * a["loss"], (a["iteration"], key)
    assert "validation_J" in rows[1][-1]  # gathered for it
    whole, sharded = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in names)
    assert whole.keys() == sharded.keys()
    torch.manual_seed(0)
    start = dict(AUSM(tiny_config()).named_parameters())
    for part in ("model", "average"):
        assert [(k, v.shape) for k, v in whole[part].items()] == [(k, v.shape) for k, v in sharded[part].items()]
        apart = sum(float((whole[part][k] - sharded[part][k]).abs().sum()) for k in start)
        moved = sum(float((whole[part][k] - p.detach()).abs().sum()) for k, p in start.items())
        assert apart < 0.02 * moved, (part, apart, moved)
    assert whole["optimizer"]["param_groups"] == sharded["optimizer"]["param_groups"]
    for name in ("step", "exp_avg", "exp_avg_sq"):
        pairs = [(s[name], sharded["optimizer"]["state"][i][name]) for i, s in whole["optimizer"]["state"].items()]
        assert all(a.shape == b.shape for a, b in pairs)
        assert sum(float((a - b).abs().sum()) for a, b in pairs) < 0.02 * sum(float(a.abs().sum()) for a, _ in pairs)
    stage = dataclasses.replace(STAGE, iterations=4, lr=3e-4, backbone_lr_scale=0.1)
    alone = trainer(tmp_path / "alone", stage)  # a sharded run goes on in one process
    alone.resume(tmp_path / "sharded/last.pt")
    assert alone.iteration == 4 and same(alone.model.state_dict(), sharded["model"])
    assert train.weights.read_metadata(tmp_path / "sharded/ema.safetensors")[1]["recipe"][0]["processes"] == 2
