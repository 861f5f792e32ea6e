"""Parts of a packed copy (`ausm.inference`) that are more than one product: classes that a copied module turns into.

Each computes what its parent does, through the kernels of `ausm.maps_cpu` and `ausm.attention_cpu` where they take the
tensors, and as its parent elsewhere.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ausm import attention_cpu, maps_cpu
from ausm.attention import Attention
from ausm.model import AUSM
from ausm.norm import LayerNorm
from ausm.pixel_decoder import Codes, MaskFeatures, PixelDecoder

TABLES = 16  # tables of position codes that a pixel decoder keeps: a few image sizes


class FrameNorm(LayerNorm):
    """Sum, norm and position codes in one pass; residual sums stay float32, what products read is bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        done = maps_cpu.add_norm(x, None, self)
        return super().forward(x) if done is None or done.normed is None else done.normed

    def pre(self, x: Tensor, y: Tensor | None, place: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        wanted = ("half",) + ("sum",) * (y is not None) + ("placed",) * (place is not None)
        done = maps_cpu.add_norm(x, y, self, place, wanted)
        if done is None or done.half is None:
            return super().pre(x, y, place)
        return x if done.sum is None else done.sum, done.half, done.half if done.placed is None else done.placed

    def post(self, x: Tensor, y: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        done = maps_cpu.add_norm(x, y, self, place, ("normed", "placed"))
        if done is None or done.normed is None or done.placed is None:
            return super().post(x, y, place)
        return done.normed, done.placed


class FrameAttention(Attention):
    """`Attention` through the kernel of `ausm.attention_cpu`."""

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = attention_cpu.attend(q, k, v, self.heads, mask)
        return super().read(q, k, v, mask) if out is None else out


class FrameMaskFeatures(MaskFeatures):
    """Group norms with what is added to them, in one pass."""

    def forward(self, G: Tensor, c2: Tensor, extra: Tensor | None) -> Tensor:
        first, second = self.lateral[1], self.output[1]
        assert isinstance(first, nn.GroupNorm) and isinstance(second, nn.GroupNorm)
        both = maps_cpu.group_norm_up(self.lateral[0](c2), first, self.reduce(G))
        if both is None:
            return super().forward(G, c2, extra)
        convolved = self.output[0](both)
        smooth = maps_cpu.group_norm_up(convolved, second, relu=True)
        return self.add(self.mask_features(self.output[1:](convolved) if smooth is None else smooth), extra)

    @staticmethod
    def add(features: Tensor, extra: Tensor | None) -> Tensor:
        """`features` plus `extra` at their size."""
        both = features if extra is None else maps_cpu.add_up(features, extra)
        return MaskFeatures.add(features, extra) if both is None else both


class FramePixelDecoder(PixelDecoder):
    """Position codes, which only depend on weights and size, from tables."""

    def _codes(self, level: int, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Codes:
        make = super()._codes
        return self._kept((level, grid, dtype), lambda: tuple(c.to(dtype) for c in make(level, grid, device, dtype)))

    def _mask_code(self, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        make = super()._mask_code
        return self._kept((size, dtype), lambda: make(size, device, dtype))

    def _kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The table of this key. Cameras share the copy, so another thread may empty `tables` at any moment."""
        tables = self.__dict__.setdefault("tables", {})
        found = tables.get(key)
        if found is None:
            if len(tables) >= TABLES:
                tables.clear()
            found = tables[key] = make()
        return found


class FrameModel(AUSM):
    """Pixels to normalised numbers in one pass."""

    def normalise(self, images: Tensor) -> Tensor:
        d = self.config.size_divisor
        if images.ndim == 4:
            size = (-(-images.shape[1] // d) * d, -(-images.shape[2] // d) * d)
            factor, addend = (1 / (255 * self.std)).flatten(), (-self.mean / self.std).flatten()
            done = [maps_cpu.normalise(image, factor, addend, size) for image in images]
            taken = [out for out in done if out is not None]
            if len(taken) == len(images) > 0:
                return taken[0] if len(taken) == 1 else torch.cat(taken)
        return super().normalise(images)


FRAME_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    LayerNorm: FrameNorm,
    Attention: FrameAttention,
    MaskFeatures: FrameMaskFeatures,
    PixelDecoder: FramePixelDecoder,
    AUSM: FrameModel,
}
