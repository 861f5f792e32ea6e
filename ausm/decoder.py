"""History Decoder: the current frame reads the compressed history (section 2.2, Alg. 1 l.13)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import DecoderConfig
from ausm.position import locality_bias, sine_position


class History(NamedTuple):
    """F_t as every layer reads it: pooled tokens (B', n, D) with position codes (k) and without (v), on `size`."""

    k: Tensor
    v: Tensor
    size: tuple[int, int]


class DecoderLayer(nn.Module):
    """Pre-norm: self-attention over X (optional), cross-attention X -> F, FFN."""

    def __init__(self, D: int, config: DecoderConfig) -> None:
        super().__init__()
        self.kv_stride = config.kv_stride
        self.reach = config.locality
        if self.reach and len(self.reach) != config.heads:
            raise ValueError(f"locality {self.reach} for {config.heads} heads")
        self.self_attn = Attention(D, config.heads) if config.self_attn else None
        self.norm_self = nn.LayerNorm(D) if config.self_attn else None
        self.norm_cross = nn.LayerNorm(D)
        self.cross_attn = Attention(D, config.heads)
        self.norm_ffn = nn.LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn)

    def forward(self, x: Tensor, history: History, size: tuple[int, int]) -> Tensor:
        D = x.shape[-1]
        pos = sine_position(*size, D, x.device, x.dtype)
        if self.self_attn is not None:
            y = self.norm_self(x)
            keys, pooled = pool_tokens(y, size, self.kv_stride)
            x = x + self.self_attn(y + pos, keys + sine_position(*pooled, D, x.device, x.dtype), keys)
        bias = None
        if self.reach:
            dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            bias = locality_bias(size, history.size, self.kv_stride, self.reach, x.device, dtype)
        x = x + self.cross_attn(self.norm_cross(x) + pos, history.k, history.v, bias)
        return x + self.ffn(self.norm_ffn(x))


class HistoryDecoder(nn.Module):
    """Q = X_t (B', N, D), KV = F_t (B', N, D) -> G_t (B', N, D)."""

    def __init__(self, D: int, config: DecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(D, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(D)
        self.kv_stride = config.kv_stride

    def forward(self, X: Tensor, F_t: Tensor, size: tuple[int, int]) -> Tensor:
        v, pooled = pool_tokens(F_t, size, self.kv_stride)
        history = History(v + sine_position(*pooled, v.shape[-1], X.device, X.dtype), v, pooled)
        x = X
        for layer in self.layers:
            x = layer(x, history, size)
        return self.norm(x)
