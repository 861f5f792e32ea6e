"""History Compressor: per-pixel temporal Mamba -> spatial self-attention -> FFN (Fig. 2, section 2.2)."""

from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import CompressorConfig
from ausm.position import sine_position
from ausm.ssm import Mamba


class CompressorLayer(nn.Module):
    """Pre-norm residual layer. The only part of the model that looks across frames is `mamba`."""

    def __init__(self, D: int, config: CompressorConfig) -> None:
        super().__init__()
        self.norm_t = nn.LayerNorm(D)
        self.mamba = Mamba(D, config.d_state, config.d_conv, config.expand)
        self.norm_s = nn.LayerNorm(D)
        self.attn = Attention(D, config.heads)
        self.norm_f = nn.LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn)
        self.kv_stride = config.kv_stride

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """All frames of B clips at once: x (B, T, N, D), grid (h, w) -> (B, T, N, D)."""
        x = x + self.mamba(self.norm_t(x))
        return self.spatial(x.flatten(0, 1), size).unflatten(0, x.shape[:2])

    def spatial(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attention over one frame's grid and FFN: (B', N, D) -> (B', N, D)."""
        y = self.norm_s(x)
        keys, pooled = pool_tokens(y, size, self.kv_stride)
        q = y + sine_position(*size, y.shape[-1], y.device, y.dtype)
        k = keys + sine_position(*pooled, y.shape[-1], y.device, y.dtype)
        x = x + self.attn(q, k, keys)
        return x + self.ffn(self.norm_f(x))


class HistoryCompressor(nn.Module):
    """E_{1..T} -> F_{1..T}; one state of fixed size per pixel and layer."""

    def __init__(self, D: int, config: CompressorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompressorLayer(D, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(D)

    def forward(self, E: Tensor, size: tuple[int, int]) -> Tensor:
        """Parallel form: E (B, T, N, D), grid (h, w) -> F (B, T, N, D), zero state before the first frame."""
        x = E
        for layer in self.layers:
            x = layer(x, size)
        return self.norm(x)

    def step(self, E: Tensor, conv: Tensor, ssm: Tensor, size: tuple[int, int]) -> Tensor:
        """Recurrent form: E (C, N, D) of C streams -> F (C, N, D).

        conv (L, C * N, d_inner, d_conv - 1) and ssm (L, C * N, d_inner, d_state) are updated in place.
        """
        x = E
        for i, layer in enumerate(self.layers):
            x = x + layer.mamba.step(layer.norm_t(x).flatten(0, 1), conv[i], ssm[i]).view_as(x)
            x = layer.spatial(x, size)
        return self.norm(x)
