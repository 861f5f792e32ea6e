"""Everything a killed run needs to go on exactly: weights, average, optimizer, position. Random numbers need no state:
every draw is a function of (seed, iteration, part of the batch)."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ausm.errors import CheckpointError


class MovingAverage:
    """Exponential moving average of a state dict; integer entries are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Early on the average follows faster, or it would remember the initial weights."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        live = {k: _local(v) for k, v in model.state_dict().items()}
        own = {k: _local(v) for k, v in self.values.items()}
        names = [k for k, v in own.items() if v.is_floating_point()]
        torch._foreach_lerp_([own[k] for k in names], [live[k] for k in names], 1 - decay)
        for k, v in own.items():
            if not v.is_floating_point():
                v.copy_(live[k])


def _local(tensor: Tensor) -> Tensor:
    """The slice that this process holds of a sharded tensor, as a plain one on the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def save_run(path: Path, **parts: Any) -> None:
    """torch.save to a temporary file, flushed, then renamed: a kill at any moment leaves the old or the new file."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as f:
        torch.save(parts, f)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def load_run(path: Path) -> dict[str, Any]:
    """The parts of `save_run`. Raises CheckpointError if the file is missing or unreadable."""
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist")
    try:
        parts: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return parts


def parameter_groups(model: nn.Module, lr: float, backbone_scale: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: no decay on vectors, embeddings, tables, A_log, D; the backbone at its own rate (Mask2Former)."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}  # by (backbone, plain), so that no setting changes who is where
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        table = name.split(".")[-1] in ("B", "relative_position_bias_table")  # ids; Swin's positions
        plain = p.ndim < 2 or id(p) in embeddings or table or getattr(p, "_no_weight_decay", False)
        groups.setdefault((".backbone." in f".{name}", plain), []).append(p)
    made = []
    for (backbone, plain), parameters in groups.items():
        rate = lr * (backbone_scale if backbone else 1.0)
        decay = 0.0 if plain else weight_decay
        made.append({"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return made
