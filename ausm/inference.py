"""The frame path on a CPU: a copy of a loaded model in which little is left but its arithmetic, for streams to run.

Batch norms go into the convolutions before them. Each convolution and linear layer becomes one oneDNN call on packed
weights, bias and activation inside, in float32 or bfloat16; attention in bfloat16 has a kernel of its own. Same results
to rounding. The copy cannot be trained or saved; the model it was made from is left as it is.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from itertools import pairwise
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ausm.frame_modules import FRAME_CLASSES
from ausm.model import AUSM

LOG = logging.getLogger("ausm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of the backbone's maps, relative: rounding stays below it, a wrong order of layers does not
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
FASTER = 1.15  # bfloat16 rounds: chosen only if a step gains this much
SELF_TEST_SIDE = 256  # pixels, of the square image of the self-test
SELF_TEST_STEPS = 4
TYPICAL = (48, 64)  # height and width that the layouts of kernels are chosen for; any usual map does

# Activations that oneDNN computes on its output: name, numbers, variant.
Attribute = tuple[str, list[float], str]
PLAIN: Attribute = ("none", [], "")

# Kept beside the models, not in them: packed weights cannot be copied or saved, models can.
_constant: WeakSet[AUSM] = WeakSet()
_copies: WeakKeyDictionary[AUSM, dict[str, AUSM]] = WeakKeyDictionary()
_best: WeakKeyDictionary[AUSM, str] = WeakKeyDictionary()


def mark_constant(model: AUSM) -> AUSM:
    """Promise that the weights of a model in eval mode will not change: its streams may run a packed copy of them."""
    _constant.add(model)
    return model


def frame_model(model: AUSM, precision: str) -> tuple[AUSM, str]:
    """What a stream should run for precision "fp32", "bf16", "fp16" or "auto", and the precision that was chosen.

    A constant model on a CPU is packed, once for all streams that share it; any other is returned as it is. Both want
    autocast for 16 bits.
    """
    if precision == "auto":
        precision = _best_precision(model)
    if not _packable(model, precision):
        return model, precision
    copies = _copies.setdefault(model, {})
    if precision not in copies:
        copies[precision] = pack(model, precision)
    return copies[precision], precision


def can_pack(model: AUSM, precision: str) -> bool:
    """Whether this machine has the operators of packed layers for the model's device and "fp32" or "bf16"."""
    return model.X_0.device.type == "cpu" and _has_operators(precision)


def _packable(model: AUSM, precision: str) -> bool:
    return model in _constant and not model.training and can_pack(model, precision)


def _has_operators(precision: str) -> bool:
    """Whether PyTorch has oneDNN's packed operators for it. They are the ones torch.compile emits, not a public API."""
    wanted = ("_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in wanted):
        return False
    return precision == "fp32" or (precision == "bf16" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _best_precision(model: AUSM) -> str:
    """bfloat16 where the device computes in it and, on a CPU, a few steps show a gain; logged once per model."""
    if model.X_0.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if not _packable(model, "bf16"):
        return "fp32"
    if model not in _best:
        gain = self_test(model)
        _best[model] = "bf16" if gain >= FASTER else "fp32"
        LOG.info("precision auto: %s (a step in bf16 is %.2f times as fast as one in fp32)", _best[model], gain)
    return _best[model]


def self_test(model: AUSM) -> float:
    """How many times faster a step is in bfloat16: median of pairs that take turns, in CPU seconds of one thread, so
    that neither other processes nor threads that spin while they wait count for much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median(_pairs(model))
    finally:
        torch.set_num_threads(threads)


def _pairs(model: AUSM) -> list[float]:
    """Time in float32 / time in bfloat16, of each pair of steps but the first."""
    steps = [_stepper(frame_model(model, precision)[0], precision) for precision in ("fp32", "bf16")]
    ratios = []
    for turn in range(SELF_TEST_STEPS + 1):
        times = []
        for step in steps:
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        if turn:  # the first one allocates
            ratios.append(times[0] / times[1])
    return ratios


def _stepper(model: AUSM, precision: str) -> Callable[[], None]:
    """A function that runs one recurrent step of one object on a blank image."""
    state = model.new_state(SELF_TEST_SIDE, SELF_TEST_SIDE)
    image = torch.zeros(SELF_TEST_SIDE, SELF_TEST_SIDE, 3, dtype=torch.uint8)
    ids, M = torch.tensor([0]), torch.ones(1, *state.size, dtype=torch.bool)

    @torch.inference_mode()
    def step() -> None:
        with _autocast(precision):
            model.absorb(state, ids, M)
            model.predict(state, image, ids)

    return step


# --- the copy ---------------------------------------------------------------------------------------------------------


def pack(model: AUSM, precision: str) -> AUSM:
    """A packed copy of a model in eval mode; what is not packed shares its tensors with `model`.

    What follows a layer is taken from the order in which a module registers its children; if the backbone's maps
    disagree on an image, `model` itself is returned, and logged.
    """
    dtype = DTYPES[precision]
    copy = deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    with torch.no_grad():
        for parent, name, following in list(_neighbours(copy)):
            layer, norm = getattr(parent, name), getattr(parent, following, None)
            if type(layer) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, following, getattr(norm, "act", nn.Identity()))  # timm's norms hold the activation
        for parent, name, following in list(_neighbours(copy)):
            attribute = _attribute(getattr(parent, following, None))
            packed = _pack_layer(getattr(parent, name), dtype, attribute or PLAIN)
            if packed is not None:
                setattr(parent, name, packed)
                if attribute is not None:
                    setattr(parent, following, nn.Identity())
        if dtype == torch.bfloat16:
            for module in copy.modules():
                module.__class__ = FRAME_CLASSES.get(type(module), type(module))
        error = _difference(model, copy, precision)
    if not error < TOLERANCE[precision]:
        LOG.warning("%s is not packed: its maps would differ by %.1e", model.config.backbone.name, error)
        return model
    return copy


def _neighbours(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, child, next child) by name, in the order of registration; "" after the last one."""
    for parent in model.modules():
        names = [name for name, _ in parent.named_children()]
        yield from ((parent, name, following) for name, following in pairwise([*names, ""]))


def _difference(model: AUSM, copy: AUSM, precision: str) -> float:
    """Largest relative difference of a map of the backbone, on a small image of noise."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model.backbone(image)
    with _autocast(precision):
        maps = copy.backbone(image)
    pairs = zip(expected, maps, strict=True)
    return max(float((a - b).norm() / a.norm().clamp(min=1e-6)) for a, b in pairs)


def _autocast(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _attribute(module: nn.Module | None) -> Attribute | None:
    """oneDNN's terms for an activation; None for anything else."""
    if isinstance(module, nn.ReLU6):
        return "hardtanh", [0.0, 6.0], ""
    if isinstance(module, nn.ReLU):
        return "relu", [], ""
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu", [], "none"
    return None


def _pack_layer(layer: nn.Module, dtype: torch.dtype, attribute: Attribute) -> nn.Module | None:
    if type(layer) is nn.Conv2d and isinstance(layer.padding, tuple) and layer.padding_mode == "zeros":
        alone = {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not any(layer.padding)
        return PackedPointwise(layer, dtype, attribute) if alone else PackedConv(layer, dtype, attribute)
    if type(layer) is nn.Linear:
        return PackedLinear(layer.weight, layer.bias, dtype, attribute)
    return None


class PackedConv(nn.Module):
    """A convolution with its activation. x (B, C, H, W), any float type -> the packed type."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, attribute: Attribute) -> None:
        super().__init__()
        self.dtype, self.attribute = dtype, attribute
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach().to(dtype).to_mkldnn()
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self.geometry, [1, conv.in_channels, *TYPICAL])  # type: ignore[call-arg]
        self.bias = conv.bias.detach().to(dtype) if conv.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x.to(self.dtype), self.weight, self.bias, *self.geometry, *self.attribute
        )


class PackedLinear(nn.Module):
    """A linear layer with its activation. x (..., in), any float type -> (..., out) in the packed type."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, attribute: Attribute) -> None:
        super().__init__()
        self.dtype, self.attribute = dtype, attribute
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
        self.bias = bias.detach().to(dtype) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, *self.attribute)


class PackedPointwise(PackedLinear):
    """A 1x1 convolution as a product over the pixels: (B, C, H, W) -> (B, C', H, W), channels last.

    As a convolution its packed layout suits one image size and number of threads, for others it can be 30 times slower.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, attribute: Attribute) -> None:
        super().__init__(conv.weight.flatten(1), conv.bias, dtype, attribute)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
