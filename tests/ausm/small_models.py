"""Models small enough to build and run in tests, with every kind of module of the presets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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


def assert_steps_alike(model: AUSM, halves: Any, size: tuple[int, int], counts: Sequence[int]) -> None:
    """`halves` predicts and absorbs as `model` does, frame by frame with so many ids: outputs, F and the state."""
    plain, other, random = model.new_state(*size), model.new_state(*size), torch.Generator().manual_seed(0)
    for K in counts:
        ids = torch.randperm(model.config.N_id, generator=random)[:K]
        M = torch.rand(K, *plain.size, generator=random) > 0.7
        image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=random)
        model.absorb(plain, ids, M)
        halves.absorb(other, ids, M)
        torch.testing.assert_close(other.F, plain.F, rtol=1e-4, atol=1e-5)
        expected, out = model.predict(plain, image, ids), halves.predict(other, image, ids)
        wanted = (1, K + model.config.N_det, size[0] // 4, size[1] // 4)
        assert out.masks.shape == expected.masks.shape == wanted and other.absorbed is False
        for name in ("masks", "objectness", "embeddings"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.ssm, plain.ssm, rtol=1e-4, atol=1e-5)
