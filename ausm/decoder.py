"""History Decoder: the current frame reads the compressed history (section 2.2, Alg. 1 l.13)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import DecoderConfig
from ausm.norm import LayerNorm
from ausm.position import locality_bias, sine_position


class History(NamedTuple):
    """F_t as every layer reads it: pooled tokens (B', n, D) with position codes (k) and without (v), on `size`."""

    k: Tensor
    v: Tensor
    size: tuple[int, int]


class DecoderLayer(nn.Module):
    """Pre-norm: self-attention over X (optional), cross-attention X -> F, FFN.

    Input and output are two addends (x, y), y None in the first layer: the sum is left to the norm that comes next.
    """

    def __init__(self, D: int, config: DecoderConfig) -> None:
        super().__init__()
        self.kv_stride = config.kv_stride
        self.reach = config.locality
        if self.reach and len(self.reach) != config.heads:
            raise ValueError(f"locality {self.reach} for {config.heads} heads")
        self.self_attn = Attention(D, config.heads) if config.self_attn else None
        self.norm_self = LayerNorm(D) if config.self_attn else None
        self.norm_cross = LayerNorm(D)
        self.cross_attn = Attention(D, config.heads)
        self.norm_ffn = LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn)

    def forward(self, x: Tensor, y: Tensor | None, history: History, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """x, y (B', N, D), grid (h, w) -> two addends (B', N, D)."""
        D = x.shape[-1]
        pos = sine_position(*size, D, x.device, x.dtype)
        if self.self_attn is not None and self.norm_self is not None:
            x, y, q = self.norm_self.pre(x, y, pos)
            keys, pooled = pool_tokens(y, size, self.kv_stride)
            y = self.self_attn(q, keys + sine_position(*pooled, D, x.device, keys.dtype), keys)
        bias = None
        if self.reach:
            dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            bias = locality_bias(size, history.size, self.kv_stride, self.reach, x.device, dtype)
        x, _, q = self.norm_cross.pre(x, y, pos)
        x, y, _ = self.norm_ffn.pre(x, self.cross_attn(q, history.k, history.v, bias))
        return x, self.ffn(y)


class HistoryDecoder(nn.Module):
    """Q = X_t (B', N, D), KV = F_t (B', N, D) -> G_t (B', N, D)."""

    def __init__(self, D: int, config: DecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(D, config) for _ in range(config.layers))
        self.norm = LayerNorm(D)
        self.kv_stride = config.kv_stride

    def forward(self, X: Tensor, F_t: Tensor, size: tuple[int, int]) -> Tensor:
        v, pooled = pool_tokens(F_t, size, self.kv_stride)
        history = History(v + sine_position(*pooled, v.shape[-1], X.device, X.dtype), v, pooled)
        x, y = X, None
        for layer in self.layers:
            x, y = layer(x, y, history, size)
        return self.norm.pre(x, y)[1]
