"""Parts of a packed copy (`ausm.inference`) that are more than one product: classes that a copied module turns into.

Each computes what its parent does, through the kernels of `ausm.maps_cpu` and `ausm.attention_cpu` where they take the
tensors, and as its parent elsewhere.
"""

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
        return super().forward(x) if done is None else done.normed

    def pre(self, x: Tensor, y: Tensor | None, place: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        wanted = ("half",) + ("sum",) * (y is not None) + ("placed",) * (place is not None)
        done = maps_cpu.add_norm(x, y, self, place, wanted)
        if done is None:
            return super().pre(x, y, place)
        return x if done.sum is None else done.sum, done.half, done.half if done.placed is None else done.placed

    def post(self, x: Tensor, y: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        done = maps_cpu.add_norm(x, y, self, place, ("normed", "placed"))
        return super().post(x, y, place) if done is None else (done.normed, done.placed)


class FrameAttention(Attention):
    """`Attention` through the kernel of `ausm.attention_cpu`."""

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = attention_cpu.attend(q, k, v, self.heads, mask)
        return super().read(q, k, v, mask) if out is None else out


class FrameMaskFeatures(MaskFeatures):
    """Group norms with what is added to them, in one pass."""

    def forward(self, G: Tensor, c2: Tensor, extra: Tensor | None) -> Tensor:
        lateral = maps_cpu.group_norm_up(self.lateral[0](c2), self.lateral[1], self.reduce(G))
        if lateral is None:
            return super().forward(G, c2, extra)
        smooth = maps_cpu.group_norm_up(self.output[0](lateral), self.output[1], relu=True)
        features = self.mask_features(self.output[1:](self.output[0](lateral)) if smooth is None else smooth)
        return self.add(features, extra)

    @staticmethod
    def add(features: Tensor, extra: Tensor | None) -> Tensor:
        """`features` plus `extra` at their size."""
        both = features if extra is None else maps_cpu.add_up(features, extra)
        return MaskFeatures.add(features, extra) if both is None else both


class FramePixelDecoder(PixelDecoder):
    """Position codes, which only depend on weights and size, from tables."""

    def _codes(self, level: int, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Codes:
        key = (level, grid, dtype)
        if key not in self._tables():
            self._keep(key, tuple(code.to(dtype) for code in super()._codes(level, grid, device, dtype)))
        return self._tables()[key]

    def _mask_code(self, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        key = (size, dtype)
        if key not in self._tables():
            self._keep(key, super()._mask_code(size, device, dtype))
        return self._tables()[key]

    def _tables(self) -> dict:
        return self.__dict__.setdefault("tables", {})

    def _keep(self, key: tuple, table: object) -> None:
        if len(self._tables()) >= TABLES:
            self._tables().clear()
        self._tables()[key] = table


class FrameModel(AUSM):
    """Pixels to normalised numbers in one pass."""

    def normalise(self, images: Tensor) -> Tensor:
        d = self.config.size_divisor
        if len(images) == 1 and images.dtype == torch.uint8 and images.ndim == 4 and images.shape[-1] == 3:
            size = tuple(-(-n // d) * d for n in images.shape[1:3])
            factor = 1 / (255 * self.std)
            out = maps_cpu.normalise(images[0], factor.flatten(), (-self.mean / self.std).flatten(), size)
            if out is not None:
                return out
        return super().normalise(images)


FRAME_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    LayerNorm: FrameNorm,
    Attention: FrameAttention,
    MaskFeatures: FrameMaskFeatures,
    PixelDecoder: FramePixelDecoder,
    AUSM: FrameModel,
}
