"""Depthwise convolutions in float32: which ones, the same numbers to rounding, and the type of before."""

import torch
from torch import nn

from training.depthwise import quicken


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),  # fast as it is
        nn.Conv2d(6, 6, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False),
        nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6),  # two channels out of each: not depthwise
        nn.Conv2d(12, 4, 5, padding=2),
    )


def _pass(layers: nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(x)
    return y, list(torch.autograd.grad(y.float().square().sum(), [*layers.parameters()]))


def test_the_same_to_the_rounding_of_bfloat16() -> None:
    plain, quick = _layers(), _layers()
    names = list(quick.state_dict())
    assert quicken(quick) == 2
    assert list(quick.state_dict()) == names
    x = torch.randn(2, 6, 20, 24)
    (y, gradients), (y_quick, gradients_quick) = _pass(plain, x), _pass(quick, x)
    assert y.dtype == y_quick.dtype == torch.bfloat16
    for a, b in zip((y, *gradients), (y_quick, *gradients_quick), strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.03, atol=0.03 * float(a.float().abs().max()))


def test_only_where_a_gradient_in_bfloat16_is_asked_for() -> None:
    plain, quick = _layers(), _layers()
    quicken(quick)
    x = torch.randn(1, 6, 16, 16)
    assert torch.equal(quick(x), plain(x))
    for one, other in zip(plain[1:3], quick[1:3], strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                assert torch.equal(other(x.bfloat16()), one(x.bfloat16()))
            y = other(x.bfloat16())
        assert torch.equal(y, one(x.bfloat16().float()).bfloat16())  # one rounding, at the end
