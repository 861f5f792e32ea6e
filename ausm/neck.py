"""Neck: backbone levels -> X_t, the (h * w, D) tokens at stride 8 that the temporal modules work on."""

import torch.nn.functional as F
from torch import Tensor, nn

from ausm.config import AusmConfig
from ausm.msdeform import MSDeformEncoder


class FpnNeck(nn.Module):
    """Top-down sum of 1x1 laterals, one 3x3 convolution at stride 8: the light variant for small presets."""

    def __init__(self, channels: tuple[int, ...], D: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, D, 1) for c in channels[1:])
        self.output = nn.Conv2d(D, D, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps[1:], strict=True)]
        top = levels[-1]
        for level in reversed(levels[:-1]):
            top = level + F.interpolate(top, size=level.shape[-2:], mode="nearest")
        X: Tensor = self.output(F.relu(top))
        return X


def build_neck(channels: tuple[int, ...], config: AusmConfig) -> nn.Module:
    """A module: four maps (B, C_s, H/s, W/s) -> (B, D, H/8, W/8)."""
    if config.neck.kind == "fpn":
        return FpnNeck(channels, config.D)
    return MSDeformEncoder(channels, config.D, config.neck)
