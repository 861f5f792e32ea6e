"""Pixel Decoder: Mask2Former's masked-attention decoder over the query set [A_{t-1}; V] with KV = G_t (Alg. 1 l.14)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.attention import Attention, FeedForward, pool_tokens
from ausm.config import PixelDecoderConfig
from ausm.position import sine_position
from ausm.seeds import Extent, SeedQueries, Seeds


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

    def forward(self, G: Tensor, c2: Tensor) -> Tensor:
        lateral = self.lateral(c2)
        up = F.interpolate(self.reduce(G), size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(self.output(lateral + up))


class PixelLayer(nn.Module):
    """cross (masked) -> self -> FFN, post-norm (Mask2Former)."""

    def __init__(self, D: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.cross_attn = Attention(D, config.heads)
        self.norm_cross = nn.LayerNorm(D)
        self.self_attn = Attention(D, config.heads)
        self.norm_self = nn.LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn, nn.ReLU)
        self.norm_ffn = nn.LayerNorm(D)

    def forward(
        self, q: Tensor, q_pos: Tensor, k: Tensor, v: Tensor, open_keys: Tensor, active: Tensor | None
    ) -> Tensor:
        """q, q_pos (B', Q, D); k, v (B', n, D); open_keys (B', Q, n) bool; active (B', 1, 1, Q) bool or None."""
        q = self.norm_cross(q + self.cross_attn(q + q_pos, k, v, open_keys[:, None]))
        q = self.norm_self(q + self.self_attn(q + q_pos, q + q_pos, q, active))
        return self.norm_ffn(q + self.ffn(q))


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
        self.norm = nn.LayerNorm(D)
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
        self.objectness = nn.Linear(D, 1)
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
        b, K, D = A.shape
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
        levels = []
        for i, pool in enumerate(self.pools):
            v, (h, w) = pool_tokens(G, size, pool)
            v = v + self.level_embed.weight[i]
            pos = sine_position(h, w, D, v.device, v.dtype)
            k = v + pos
            if self.place_value is not None:
                v = v + self.place_value(pos)
            levels.append((k, v, (h, w)))
        # A mask resized equals the product with resized pixels: masks nobody asked for are computed at the keys only
        looks = [] if every_layer else [_resize(pixels, grid).flatten(2) for _, _, grid in levels[: len(self.layers)]]
        embeddings, vectors = self._read(q)
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
                if seeds is not None:
                    rows, columns = self._reach(embeddings, seeds, pixels.shape[-2:])
                    reach = _shrink(rows, grid[0])[..., None] + _shrink(columns, grid[1])[..., None, :]
                    masks = torch.cat((masks[:, :K], masks[:, K:] + reach.flatten(2)), 1)
            q = layer(q, q_pos, k, v, self._open_keys(masks), open_queries)
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
        grid = G.transpose(1, 2).unflatten(-1, size)
        features = self.mask_features(grid, c2)
        extra = None  # (B', N, mask_dim) at stride 8
        if self.id_skip is not None:
            extra = self.id_skip(G)
        if self.place_mask is not None:
            place = self.place_mask(sine_position(*size, G.shape[-1], G.device, G.dtype))
            extra = place[None].expand(len(G), -1, -1) if extra is None else extra + place
        if extra is not None:
            extra = extra.transpose(1, 2).unflatten(-1, size)
            features = features + F.interpolate(extra, size=features.shape[-2:], mode="bilinear", align_corners=False)
        return features

    def _read(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B', Q, D) -> normalised ones, and their vectors (B', Q, mask_dim) to compare with the pixels."""
        embeddings = self.norm(q)
        vectors = self.mask_embed(embeddings)
        if self.id_skip is not None:
            vectors = vectors + self.id_skip(embeddings) / vectors.shape[-1] ** 0.5
        return embeddings, vectors

    def _reach(self, embeddings: Tensor, seeds: SeedQueries, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What `Extent` adds to the detections' masks: (B', N_det, H) of rows and (B', N_det, W) of columns."""
        return self.extent(embeddings[:, -seeds.centre.shape[1] :], seeds.centre, size)

    def _predict(
        self, embeddings: Tensor, vectors: Tensor, pixels: Tensor, seeds: SeedQueries | None
    ) -> Predictions:
        b, _, H, W = pixels.shape
        masks = (vectors @ pixels.flatten(2)).view(b, -1, H, W)
        objectness = self.objectness(embeddings).squeeze(-1)
        if seeds is not None:
            K = masks.shape[1] - seeds.centre.shape[1]
            rows, columns = self._reach(embeddings, seeds, (H, W))
            reach = (rows[..., None] + columns[..., None, :]).to(masks.dtype)
            masks = torch.cat((masks[:, :K], masks[:, K:] + reach), 1)
            objectness = torch.cat((objectness[:, :K], objectness[:, K:] + seeds.prior.to(objectness.dtype)), 1)
        return Predictions(masks, objectness, embeddings)

    @staticmethod
    def _open_keys(logits: Tensor) -> Tensor:
        """Where each query may look, (B', Q, n): inside its own mask; everywhere if that is empty (Mask2Former)."""
        inside = logits > 0
        return inside | ~inside.any(-1, keepdim=True)


def _shrink(lines: Tensor, size: int) -> Tensor:
    """(B', n, L) -> (B', n, size): one axis of `_resize`."""
    return F.interpolate(lines, size=size, mode="linear", align_corners=False)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
