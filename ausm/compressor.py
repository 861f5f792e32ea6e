"""History Compressor: per-pixel temporal Mamba -> spatial self-attention -> FFN (Fig. 2, section 2.2)."""

from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import CompressorConfig
from ausm.norm import LayerNorm
from ausm.position import sine_position
from ausm.ssm import Mamba


class CompressorLayer(nn.Module):
    """Pre-norm residual layer. The only part of the model that looks across frames is `mamba`.

    Input and output are two addends (x, y), y None in the first layer: the sum is left to the norm that comes next.
    """

    def __init__(self, D: int, config: CompressorConfig) -> None:
        super().__init__()
        self.norm_t = LayerNorm(D)
        self.mamba = Mamba(D, config.d_state, config.d_conv, config.expand)
        self.norm_s = LayerNorm(D)
        self.attn = Attention(D, config.heads)
        self.norm_f = LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn)
        self.kv_stride = config.kv_stride

    def forward(self, x: Tensor, y: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """All frames of B clips at once: x, y (B, T, N, D), grid (h, w) -> two addends (B, T, N, D)."""
        clips = x.shape[:2]
        x, normed, _ = self.norm_t.pre(x, y)
        x, y = self.spatial(x.flatten(0, 1), self.mamba(normed).flatten(0, 1), size)
        return x.unflatten(0, clips), y.unflatten(0, clips)

    def step(
        self, x: Tensor, y: Tensor | None, conv: Tensor, ssm: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """One frame of C streams: x, y (C, N, D) -> two addends (C, N, D); the states are updated in place."""
        x, normed, _ = self.norm_t.pre(x, y)
        return self.spatial(x, self.mamba.step(normed.flatten(0, 1), conv, ssm).view_as(x), size)

    def spatial(self, x: Tensor, y: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Attention over one frame's grid and FFN: x, y (B', N, D) -> two addends (B', N, D)."""
        D = x.shape[-1]
        x, y, q = self.norm_s.pre(x, y, sine_position(*size, D, x.device, x.dtype))
        keys, pooled = pool_tokens(y, size, self.kv_stride)
        k = keys + sine_position(*pooled, D, y.device, y.dtype)
        x, y, _ = self.norm_f.pre(x, self.attn(q, k, keys))
        return x, self.ffn(y)


class HistoryCompressor(nn.Module):
    """E_{1..T} -> F_{1..T}; one state of fixed size per pixel and layer."""

    def __init__(self, D: int, config: CompressorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompressorLayer(D, config) for _ in range(config.layers))
        self.norm = LayerNorm(D)

    def forward(self, E: Tensor, size: tuple[int, int]) -> Tensor:
        """Parallel form: E (B, T, N, D), grid (h, w) -> F (B, T, N, D), zero state before the first frame."""
        x, y = E, None
        for layer in self.layers:
            x, y = layer(x, y, size)
        return self.norm.pre(x, y)[1]

    def step(self, E: Tensor, conv: Tensor, ssm: Tensor, size: tuple[int, int]) -> Tensor:
        """Recurrent form: E (C, N, D) of C streams -> F (C, N, D).

        conv (L, C * N, d_inner, d_conv - 1) and ssm (L, C * N, d_inner, d_state) are updated in place.
        """
        x, y = E, None
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, CompressorLayer)
            x, y = layer.step(x, y, conv[i], ssm[i], size)
        return self.norm.pre(x, y)[1]
