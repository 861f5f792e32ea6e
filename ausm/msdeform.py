"""Multi-scale deformable attention encoder of Mask2Former in plain PyTorch (no compiled operator).

Levels: strides 32, 16, 8 in that order, as in the official weights. Only the stride-8 output is X_t; the encoder's own
FPN step to stride 4 is replaced by the mask features of the Pixel Decoder, which take G_t in its place.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.config import NeckConfig
from ausm.position import sine_position


class MSDeformAttention(nn.Module):
    """Each token samples `points` locations per level and head around its own position."""

    def __init__(self, D: int, heads: int, points: int, levels: int = 3) -> None:
        super().__init__()
        self.heads, self.points, self.levels = heads, points, levels
        self.sampling_offsets = nn.Linear(D, heads * levels * points * 2)
        self.attention_weights = nn.Linear(D, heads * levels * points)
        self.value_proj = nn.Linear(D, D)
        self.output_proj = nn.Linear(D, D)
        self._reset()

    def _reset(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        theta = torch.arange(self.heads) * (2 * math.pi / self.heads)
        grid = torch.stack((theta.cos(), theta.sin()), -1)
        grid = grid / grid.abs().max(-1, keepdim=True).values  # directions on the unit square
        grid = grid.view(self.heads, 1, 1, 2).repeat(1, self.levels, self.points, 1)
        grid = grid * torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        self.sampling_offsets.bias.data.copy_(grid.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """query (B, N, D), reference (N, 2) as x, y in 0..1, value (B, N, D), level sizes (h, w) -> (B, N, D)."""
        B, N, D = query.shape
        H, L, P = self.heads, self.levels, self.points
        value = self.value_proj(value).unflatten(-1, (H, -1))  # (B, N, H, d)
        offsets = self.sampling_offsets(query).view(B, N, H, L, P, 2)
        weights = self.attention_weights(query).view(B, N, H, L * P).softmax(-1).view(B, N, H, L, P)
        scale = torch.tensor([(w, h) for h, w in sizes], device=query.device, dtype=query.dtype)  # (L, 2)
        points = reference.to(query.dtype)[None, :, None, None, None] + offsets / scale[:, None]
        grid = 2 * points - 1  # grid_sample coordinates, align_corners=False
        out = query.new_zeros(B * H, D // H, N)
        start = 0
        for level, (h, w) in enumerate(sizes):
            v = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(B * H, D // H, h, w)
            g = grid[:, :, :, level].transpose(1, 2).reshape(B * H, N, P, 2)
            # positions as they are (float32 under autocast): bfloat16 has steps of a third of a cell at width 160
            sampled = F.grid_sample(v.to(g.dtype), g, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).reshape(B * H, 1, N, P)
            out = out + (sampled * weight).sum(-1)
            start += h * w
        projected: Tensor = self.output_proj(out.view(B, D, N).transpose(1, 2))
        return projected


class MSDeformLayer(nn.Module):
    """Deformable self-attention and FFN, post-norm (Mask2Former)."""

    def __init__(self, D: int, config: NeckConfig) -> None:
        super().__init__()
        self.self_attn = MSDeformAttention(D, config.heads, config.points)
        self.norm1 = nn.LayerNorm(D)
        self.linear1 = nn.Linear(D, config.ffn)
        self.linear2 = nn.Linear(config.ffn, D)
        self.norm2 = nn.LayerNorm(D)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        x = self.norm1(x + self.self_attn(x + pos, reference, x, sizes))
        x = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return x


class MSDeformEncoder(nn.Module):
    """Four maps (B, C_s, H/s, W/s), strides 4..32 -> X_t (B, D, H/8, W/8)."""

    def __init__(self, channels: tuple[int, ...], D: int, config: NeckConfig) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, D, 1), nn.GroupNorm(32, D)) for c in reversed(channels[1:])
        )
        self.level_embed = nn.Parameter(torch.randn(3, D))
        self.layers = nn.ModuleList(MSDeformLayer(D, config) for _ in range(config.layers))
        self.D = D

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = [proj(m) for proj, m in zip(self.input_proj, reversed(maps[1:]), strict=True)]
        sizes = [(m.shape[-2], m.shape[-1]) for m in levels]
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in levels], 1)
        codes = [sine_position(h, w, self.D, x.device, x.dtype) for h, w in sizes]
        pos = torch.cat([code + e for code, e in zip(codes, self.level_embed, strict=True)])
        reference = torch.cat([_centres(h, w, x.device) for h, w in sizes])
        for layer in self.layers:
            x = layer(x, pos, reference, sizes)
        h, w = sizes[-1]
        finest: Tensor = x[:, -h * w :].transpose(1, 2).unflatten(-1, (h, w))
        return finest


def _centres(h: int, w: int, device: torch.device) -> Tensor:
    """(h * w, 2): centres of the cells as x, y in 0..1."""
    y = (torch.arange(h, device=device) + 0.5) / h
    x = (torch.arange(w, device=device) + 0.5) / w
    return torch.stack((x[None].expand(h, w), y[:, None].expand(h, w)), -1).reshape(-1, 2)
