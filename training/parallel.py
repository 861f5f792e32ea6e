"""One process or many: data-parallel (DDP), sharded (FSDP2), and layers that are computed twice instead of kept.

Sharded, every process holds a slice of each parameter, its gradient, its average and its optimizer state. Files never
tell: what is saved is gathered first, what is loaded is cut.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ausm.errors import InputError
from ausm.model import AUSM
from training.clip_loss import ClipLoss


def layers_of(model: AUSM) -> list[nn.Module]:
    """The layers that are sharded, or computed twice, one by one. A convolutional backbone has none of them."""
    blocks = [module for module in model.backbone.modules() if isinstance(module, SwinTransformerBlock)]
    neck = getattr(model.neck, "layers", ())  # the deformable one; the light one is a few convolutions
    return [*blocks, *neck, *model.compressor.layers, *model.decoder.layers, *model.pixel_decoder.layers]


# --- activation checkpointing ---------------------------------------------------------------------------------------


def checkpoint_activations(model: AUSM) -> None:
    """From now on a layer's backward pass computes its forward pass again: less memory, the same gradients."""
    for layer in layers_of(model):
        # on the layer, not around it: names of parameters stay, and hooks of FSDP stay outside
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Any, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)


# --- many processes -------------------------------------------------------------------------------------------------


def distribute(clip_loss: ClipLoss, groups: list[dict[str, Any]], sharded: bool) -> nn.Module:
    """The module to call for the loss. The optimizer's `groups` are replaced by shards where there are any.

    Raises InputError for `sharded` in a process that is alone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if sharded:
            raise InputError("--fsdp divides the model among processes: start them with torchrun (docs/training.md)")
        return clip_loss
    if not sharded:
        # unused: class heads of other datasets; no buffer changes in training
        return DistributedDataParallel(clip_loss, forward_sync_buffers=False, find_unused_parameters=True)
    names = {id(p): name for name, p in clip_loss.named_parameters()}
    _shard(clip_loss)
    shards = dict(clip_loss.named_parameters())
    for group in groups:
        group["params"] = [shards[names[id(p)]] for p in group["params"]]
    return clip_loss


def _shard(clip_loss: ClipLoss) -> None:
    """FSDP2 per layer, the rest with the root. What is frozen stays whole: it has neither gradient nor moments."""
    model = clip_loss.model
    mesh = init_device_mesh(model.X_0.device.type, (dist.get_world_size(),))
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for layer in layers_of(model):
        if any(p.requires_grad for p in layer.parameters()):
            fully_shard(layer, mesh=mesh, ignored_params=frozen)
    fully_shard(clip_loss, mesh=mesh, ignored_params=frozen)
    clip_loss.packs = False  # a packed copy would be one of the shards


def exchange_gradients(module: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over processes; accumulation does so with its last part only."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = now
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)


def agree(flags: list[bool], device: torch.device) -> list[bool]:
    """What process 0 says, in all of them: clocks differ, and gathering needs everyone."""
    said = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.broadcast(said, 0)
    return [bool(flag) for flag in said.tolist()]


# --- shards and whole tensors ---------------------------------------------------------------------------------------


def gathered(node: Any) -> Any:
    """The same dicts and lists with every shard replaced by the whole tensor. All processes must call it."""
    if isinstance(node, dict):
        return {key: gathered(value) for key, value in node.items()}
    if isinstance(node, list):
        return [gathered(value) for value in node]
    return node.full_tensor() if isinstance(node, DTensor) else node


def cut_like(whole: Tensor, shard: Tensor) -> Tensor:
    """This process's slice of a whole tensor, cut as `shard` is; the tensor itself where that is whole, too."""
    if not isinstance(shard, DTensor):
        return whole
    return distribute_tensor(whole.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)


def cut_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimizer state, its moments cut as the optimizer's parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(index: int, value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.shape == parameters[index].shape
        return cut_like(value, parameters[index]) if fits else value

    moments = {i: {name: cut(i, value) for name, value in entry.items()} for i, entry in state["state"].items()}
    return {**state, "state": moments}
