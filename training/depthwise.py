"""Depthwise convolutions of a backbone that is trained on a CPU in bfloat16, in float32 where that is faster.

PyTorch's backward pass of a bfloat16 depthwise convolution is slow for kernels above 3x3 and for strides: on maps of a
photo of 448x608 it takes two to seven times as long as that of float32 with channels last (docs/benchmarks.md).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quicken(module: nn.Module) -> int:
    """Gives these convolutions of `module` such a forward pass, parameters and their names stay. Returns how many."""
    slow = [part for part in module.modules() if type(part) is nn.Conv2d and _is_slow(part)]
    for convolution in slow:
        convolution.forward = functools.partial(_forward, convolution)  # type: ignore[method-assign]
    return len(slow)


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = 1 < convolution.groups == convolution.in_channels == convolution.out_channels
    return depthwise and (max(convolution.kernel_size) > 3 or max(convolution.stride) > 1)


def _forward(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """x (B, C, H, W). The product is rounded to the type that it has without this."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return nn.Conv2d.forward(convolution, x)
    with torch.autocast("cpu", enabled=False):
        wide = x.float().contiguous(memory_format=torch.channels_last)
        c = convolution
        bias = None if c.bias is None else c.bias.float()
        y = F.conv2d(wide, c.weight.float(), bias, c.stride, c.padding, c.dilation, c.groups)
    return y.to(x.dtype)
