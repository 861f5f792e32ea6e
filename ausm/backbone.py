"""Frame-independent image backbone: timm models at any image size, channels last between blocks."""

from typing import Any

from torch import Tensor, nn

from ausm.config import BackboneConfig
from ausm.torchvision_shim import import_torchvision

import_torchvision()
import timm  # noqa: E402  (needs torchvision importable)


class Backbone(nn.Module):
    """Image (B, 3, H, W), normalised -> maps at strides 4, 8, 16, 32, each (B, C_s, H/s, W/s).

    Swin: timm's feature list has no output norms, Mask2Former's has one per level (norm0..norm3); kept here so that
    its official weights load.
    """

    def __init__(self, config: BackboneConfig, pretrained: bool = False) -> None:
        super().__init__()
        if not timm.is_model(config.name):  # "hf-hub:..." and "local-dir:..." would be fetched and executed
            raise ValueError(f"backbone {config.name!r} is no model of timm's own")
        self.is_swin = config.name.startswith("swin")
        if self.is_swin:
            # strict_img_size=False also builds the shifted-window masks per call, needed for any size
            self.body = timm.create_model(
                config.name,
                pretrained=pretrained,
                features_only=True,
                strict_img_size=False,
                drop_path_rate=config.drop_path,
            )
        else:
            self.body = timm.create_model(
                config.name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3, 4)
            )
        info: Any = self.body.feature_info  # timm's, which the type of a module does not know
        self.channels: tuple[int, ...] = tuple(info.channels())
        strides = tuple(info.reduction())
        if strides != (4, 8, 16, 32):
            raise ValueError(f"{config.name} has strides {strides}, AUSM needs (4, 8, 16, 32)")
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels) if self.is_swin else None

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(images)
        if self.norms is None:
            return maps
        # timm's Swin emits (B, H, W, C); the permuted view is channels_last in memory, so no copy is made
        return [norm(m).permute(0, 3, 1, 2) for norm, m in zip(self.norms, maps, strict=True)]
