"""Pixel Decoder: Mask2Former's masked-attention decoder over the query set [A_{t-1}; V] with KV = G_t (Alg. 1 l.14)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import PixelDecoderConfig
from ausm.norm import LayerNorm
from ausm.position import sine_position
from ausm.seeds import Extent, SeedQueries, Seeds

Codes = tuple[Tensor, Tensor]


class Predictions(NamedTuple):
    """One set of predictions for Q queries of B' frames."""

    masks: Tensor  # (B', Q, H/4, W/4) logits
    objectness: Tensor  # (B', Q) logits
    embeddings: Tensor  # (B', Q, D) normalised queries; class heads read them (`PixelDecoder.classify`)
    seeds: SeedQueries | None = None  # where the detections started; with `every_layer` only


class GroupNorm(nn.GroupNorm):
    """PyTorch's; on channels-last maps its backward pass on a CPU is 18 times slower, so training turns them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if x.requires_grad and x.device.type == "cpu" else x)


class MaskFeatures(nn.Module):
    """G_t at stride 8 + backbone level at stride 4 -> mask features (B', mask_dim, H/4, W/4).

    Mask2Former's FPN step with G_t in place of the encoder's stride-8 map, so that tracking queries find their history.
    """

    def __init__(self, D: int, c2: int, mask_dim: int) -> None:
        super().__init__()
        groups = 32 if mask_dim % 32 == 0 else 8
        self.reduce = nn.Conv2d(D, mask_dim, 1) if mask_dim != D else nn.Identity()
        self.lateral = nn.Sequential(nn.Conv2d(c2, mask_dim, 1, bias=False), GroupNorm(groups, mask_dim))
        self.output = nn.Sequential(
            nn.Conv2d(mask_dim, mask_dim, 3, padding=1, bias=False), GroupNorm(groups, mask_dim), nn.ReLU()
        )
        self.mask_features = nn.Conv2d(mask_dim, mask_dim, 1)

    def forward(self, G: Tensor, c2: Tensor, extra: Tensor | None) -> Tensor:
        """G (B', D, H/8, W/8), c2 (B', C, H/4, W/4); extra (B', mask_dim, H/8, W/8) is added to the result."""
        lateral = self.lateral(c2)
        size = (lateral.shape[-2], lateral.shape[-1])
        return self.add(self.mask_features(self.output(lateral + _resize(self.reduce(G), size))), extra)

    @staticmethod
    def add(features: Tensor, extra: Tensor | None) -> Tensor:
        """`features` plus `extra` at their size."""
        size = (features.shape[-2], features.shape[-1])
        return features if extra is None else features + _resize(extra, size)


class PixelLayer(nn.Module):
    """cross (masked) -> self -> FFN, post-norm (Mask2Former)."""

    def __init__(self, D: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.cross_attn = Attention(D, config.heads)
        self.norm_cross = LayerNorm(D)
        self.self_attn = Attention(D, config.heads)
        self.norm_self = LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn, nn.ReLU)
        self.norm_ffn = LayerNorm(D)

    def forward(
        self, q: Tensor, placed: Tensor, q_pos: Tensor, k: Tensor, v: Tensor, open_keys: Tensor, active: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """q, q_pos and placed = q + q_pos (B', Q, D) -> the new q and placed.

        k, v (B', n, D); open_keys (B', Q, n) bool; active (B', 1, 1, Q) bool or None.
        """
        q, placed = self.norm_cross.post(q, self.cross_attn(placed, k, v, open_keys[:, None]), q_pos)
        q, placed = self.norm_self.post(q, self.self_attn(placed, placed, q, active), q_pos)
        return self.norm_ffn.post(q, self.ffn(q), q_pos)


class PixelDecoder(nn.Module):
    """Predictions for ID queries and detection queries, before the first layer and after each."""

    def __init__(self, D: int, c2: int, N_det: int, heads: tuple[tuple[str, int], ...], config: PixelDecoderConfig):
        super().__init__()
        self.pools = config.pools
        self.seeds = Seeds(D, N_det, config.seed_pool) if config.seed_pool else None
        self.extent = Extent(D) if config.seed_pool else None
        if self.seeds is None:
            self.query_feat = nn.Embedding(N_det, D)  # V, content
            self.query_embed = nn.Embedding(N_det, D)  # V, position
        self.track_type = nn.Parameter(torch.zeros(D))
        self.level_embed = nn.Embedding(len(config.pools), D)
        self.layers = nn.ModuleList(PixelLayer(D, config) for _ in range(config.layers))
        self.norm = LayerNorm(D)
        m = config.mask_dim
        self.mask_features = MaskFeatures(D, c2, m)
        self.mask_embed = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D), nn.ReLU(), nn.Linear(D, m))
        # one projection for ids as queries and for ids found in G_t: their product is large where they agree
        self.id_skip = nn.Linear(D, m, bias=False) if config.id_skip else None
        # without it queries read what is at a place but never where it is: look-alikes all get the id
        self.place_value = nn.Linear(D, D, bias=False) if config.place else None
        self.place_mask = nn.Linear(D, m, bias=False) if config.place else None
        for layer in (self.place_value, self.place_mask):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        hidden = config.objectness_hidden
        self.objectness: nn.Linear | nn.Sequential = (
            nn.Sequential(nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, 1)) if hidden else nn.Linear(D, 1)
        )
        self.class_heads = nn.ModuleDict({name: nn.Linear(D, n + 1) for name, n in heads})  # last = no object

    def forward(
        self,
        A: Tensor,
        G: Tensor,
        c2: Tensor,
        size: tuple[int, int],
        active: Tensor | None = None,
        every_layer: bool = False,
    ) -> list[Predictions]:
        """A (B', K, D) ID vectors; G (B', N, D); c2 (B', C, H/4, W/4); active (B', K) bool: which rows of A are in use.

        Returns one `Predictions` (of the last layer), or layers + 1 of them with `every_layer`. Queries: K ids, N_det.
        """
        b = len(A)
        if self.seeds is not None:
            seeds = self.seeds(G, size)
            V, V_pos = seeds.content, seeds.position
        else:
            V, V_pos = (v.weight[None].expand(b, -1, -1) for v in (self.query_feat, self.query_embed))
            seeds = None
        q = torch.cat((A + self.track_type, V.to(A.dtype)), 1)
        q_pos = torch.cat((A, V_pos.to(A.dtype)), 1)
        open_queries = None
        if active is not None:
            everyone = torch.ones(b, V.shape[1], dtype=torch.bool, device=A.device)
            open_queries = torch.cat((active, everyone), 1)[:, None, None]
        pixels = self._pixels(G, c2, size)
        H, W = pixels.shape[-2:]
        levels = []
        for i, pool in enumerate(self.pools):
            v, grid = pool_tokens(G, size, pool)
            key_code, value_code = self._codes(i, grid, v.device, v.dtype)
            levels.append((v + key_code, v + value_code, grid))
        # A mask resized equals the product with resized pixels: masks nobody asked for are computed at the keys only
        looks = [] if every_layer else [_resize(pixels, grid).flatten(2) for _, _, grid in levels[: len(self.layers)]]
        embeddings, vectors = self._read(q)
        placed = q + q_pos
        outputs = []
        if every_layer or not self.layers:
            outputs.append(self._predict(embeddings, vectors, pixels, seeds))
        for i, layer in enumerate(self.layers):
            at = i % len(levels)
            k, v, grid = levels[at]
            if every_layer:
                masks = _resize(outputs[-1].masks.detach().float(), grid).flatten(2)
            else:
                masks = vectors @ looks[at]
                masks = self._within_reach(masks.unflatten(2, grid), embeddings, seeds, (H, W)).flatten(2)
            q, placed = layer(q, placed, q_pos, k, v, self._open_keys(masks), open_queries)
            embeddings, vectors = self._read(q)
            if every_layer or i == len(self.layers) - 1:
                outputs.append(self._predict(embeddings, vectors, pixels, seeds))
        return [out._replace(seeds=seeds) for out in outputs] if every_layer else outputs

    def classify(self, embeddings: Tensor, head: str) -> Tensor:
        """Class logits (..., C + 1) of one dataset's head, the last one "no object"."""
        if head not in self.class_heads:
            raise KeyError(f"no class head {head!r}; this model has {sorted(self.class_heads)}")
        return self.class_heads[head](embeddings)

    def _pixels(self, G: Tensor, c2: Tensor, size: tuple[int, int]) -> Tensor:
        extra = None  # (B', N, mask_dim) at stride 8
        if self.id_skip is not None:
            extra = self.id_skip(G)
        place = self._mask_code(size, G.device, G.dtype)
        if place is not None:
            extra = place.expand(len(G), -1, -1) if extra is None else extra + place

        def as_map(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(-1, size)

        return self.mask_features(as_map(G), c2, None if extra is None else as_map(extra))

    def _codes(self, level: int, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Codes:
        """What is added to the pooled tokens of a level: for its keys (n, D), for its values (n, D) or (D,)."""
        embed = self.level_embed.weight[level]
        pos = sine_position(*grid, embed.shape[0], device, dtype)
        return embed + pos, embed + self.place_value(pos) if self.place_value is not None else embed

    def _mask_code(self, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The place of every token in the mask features, (N, mask_dim)."""
        if self.place_mask is None:
            return None
        return self.place_mask(sine_position(*size, self.level_embed.embedding_dim, device, dtype))

    def _read(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B', Q, D) -> normalised ones, and their vectors (B', Q, mask_dim) to compare with the pixels."""
        embeddings = self.norm(q)
        vectors = self.mask_embed(embeddings)
        if self.id_skip is not None:
            vectors = vectors + self.id_skip(embeddings) / vectors.shape[-1] ** 0.5
        return embeddings, vectors

    def _within_reach(
        self, masks: Tensor, embeddings: Tensor, seeds: SeedQueries | None, size: tuple[int, int]
    ) -> Tensor:
        """masks (B', Q, h, w) with what `Extent` adds to those of detections, computed at `size` = (H/4, W/4).

        Without gradient `masks` itself is changed.
        """
        if seeds is None or self.extent is None:
            return masks
        N_det = seeds.centre.shape[1]
        rows, columns = self.extent(embeddings[:, -N_det:], seeds.centre, size)
        h, w = masks.shape[-2:]
        reach = _shrink(rows, h)[..., None] + _shrink(columns, w)[..., None, :]
        if masks.requires_grad:
            return torch.cat((masks[:, :-N_det], masks[:, -N_det:] + reach.to(masks.dtype)), 1)
        masks[:, -N_det:] += reach
        return masks

    def _predict(self, embeddings: Tensor, vectors: Tensor, pixels: Tensor, seeds: SeedQueries | None) -> Predictions:
        b, _, H, W = pixels.shape
        masks = (vectors @ pixels.flatten(2)).view(b, -1, H, W)
        masks = self._within_reach(masks, embeddings, seeds, (H, W))
        objectness = self.objectness(embeddings).squeeze(-1)
        if seeds is not None:
            K = masks.shape[1] - seeds.centre.shape[1]
            objectness = torch.cat((objectness[:, :K], objectness[:, K:] + seeds.prior.to(objectness.dtype)), 1)
        return Predictions(masks, objectness, embeddings)

    @staticmethod
    def _open_keys(logits: Tensor) -> Tensor:
        """Where each query may look, (B', Q, n): inside its own mask; everywhere if that is empty (Mask2Former)."""
        inside = logits > 0
        return inside | ~inside.any(-1, keepdim=True)


def _shrink(lines: Tensor, size: int) -> Tensor:
    """(B', n, L) -> (B', n, size): one axis of `_resize`."""
    return lines if lines.shape[-1] == size else F.interpolate(lines, size=size, mode="linear", align_corners=False)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
