"""Models small enough to build and run in tests, with every kind of module of the presets."""

from dataclasses import replace

import torch

from ausm.config import AusmConfig, nano, swin_t
from ausm.model import AUSM


def small_nano() -> AusmConfig:
    """nano with fewer queries and ids; all else is the preset."""
    return replace(nano(), N_det=6, N_id=12)


def small_swin_t() -> AusmConfig:
    """swin_t with two or three of each kind of layer, D = 64."""
    full = swin_t()
    return replace(
        full,
        D=64,
        N_det=6,
        N_id=12,
        neck=replace(full.neck, layers=2, heads=4, points=2, ffn=64),
        compressor=replace(full.compressor, layers=2, ffn=64),
        decoder=replace(full.decoder, layers=2, ffn=64),
        pixel_decoder=replace(full.pixel_decoder, layers=3, heads=4, ffn=64, mask_dim=32),
        heads=(("coco", 80), ("sim", 13)),
    )


SMALL = {"nano": small_nano, "swin_t": small_swin_t}


def build(config: AusmConfig, seed: int = 0) -> AUSM:
    """The model in eval mode. What starts at zero gets small random values, or tests would not see it at all."""
    torch.manual_seed(seed)
    model = AUSM(config).eval()
    if model.backbone.is_swin:
        model.backbone.body.layers_2.blocks = model.backbone.body.layers_2.blocks[:2]  # plain, shifted; 4 more of these
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        if model.pixel_decoder.seeds is not None:  # far apart, so that rounding does not change which are the highest
            model.pixel_decoder.seeds.score.weight.mul_(100)
    return model
