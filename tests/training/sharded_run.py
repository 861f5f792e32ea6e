"""Run by torchrun with two processes (test_parallel.py): the same iterations data-parallel, and sharded with a restart
in between."""

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_training import STAGE, trainer

from training.stages import Stage
from training.trainer import Trainer

ITERATIONS = 4


def start(out: Path, stage: Stage, **run: object) -> Trainer:
    """A trainer whose backbone learns but normalises by its running statistics.

    Those of its own few pixels, all but equal after random weights, turn rounding into other gradients.
    """
    one = trainer(out, stage, **run)
    one.model.backbone.eval()
    return one


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # slow enough that steps along gradients of mere rounding (Adam takes them whole) stay small; backbone sharded, too
    stage = dataclasses.replace(STAGE, iterations=ITERATIONS, lr=3e-4, backbone_lr_scale=0.1)
    start(out / "whole", stage).run({})
    sharded = {"fsdp": True, "checkpoint_activations": True, "validate_every": 1e9}
    start(out / "sharded", stage, stop_at=2, **sharded).run({})
    dist.barrier()
    again = start(out / "sharded", stage, **sharded)
    again.resume(out / "sharded/last.pt")
    again.run({})
    local = sum(p.to_local().numel() for p in again.trained)
    assert local < 0.6 * sum(p.numel() for p in again.trained), "every process holds everything"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
