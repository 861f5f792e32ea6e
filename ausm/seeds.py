"""Seeds: detection queries V taken from the frame, where the middle of something new seems to be.

A learned query must find an object anywhere; one that starts on it only has to tell its outline. With little data that
decides whether discovery is learned at all (docs/model.md).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.attention import pool_tokens
from ausm.position import sine_position

BELOW = 1e4  # taken off the score of tokens that are no peak: they come after all that are
PRIOR = -4.0  # logit of the score at first: few tokens are the middle of an object
START, LIMIT = 4.0, 3.5  # k at first: one logit at half an image height; k within START * exp(+-2 LIMIT)


class SeedQueries(NamedTuple):
    """Detection queries of B' frames, best score first, and the map they were chosen from."""

    content: Tensor  # (B', N_det, D)
    position: Tensor  # (B', N_det, D)
    centre: Tensor  # (B', N_det, 2) y, x in image heights
    prior: Tensor  # (B', N_det) their scores, added to the objectness logits; no gradient
    scores: Tensor  # (B', h', w') logits: middle of an object that no id follows yet


class Seeds(nn.Module):
    """G_t -> queries at the N_det highest peaks of a score map on the pooled grid."""

    def __init__(self, D: int, N_det: int, pool: int) -> None:
        super().__init__()
        self.N_det, self.pool = N_det, pool
        self.context = nn.Conv2d(D, D, 3, padding=1)
        self.act = nn.ReLU()
        self.score = nn.Conv2d(D, 1, 1)
        self.content = nn.Linear(D, D)
        self.place = nn.Linear(D, D)
        self.where = nn.Linear(D, D, bias=False)  # lets the very first mask keep to the seed's surroundings
        nn.init.zeros_(self.where.weight)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.constant_(self.score.bias, PRIOR)  # type: ignore[arg-type]  # nn.Conv2d: "Tensor | None"

    def forward(self, G: Tensor, size: tuple[int, int]) -> SeedQueries:
        """G (B', N, D) on the grid `size`. Where that has fewer than N_det tokens when pooled, the last repeats."""
        tokens, (h, w) = pool_tokens(G, size, self.pool)
        grid = self.act(self.context(tokens.transpose(1, 2).unflatten(-1, (h, w))))
        scores = self.score(grid)[:, 0].float()
        with torch.no_grad():
            peak = scores == F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0]
            ranked = (scores - BELOW * ~peak).flatten(1)
            index = ranked.topk(min(self.N_det, h * w), dim=1).indices
            index = index[:, torch.arange(self.N_det, device=G.device).clamp(max=h * w - 1), None]  # (B', N_det, 1)
        position = sine_position(h, w, G.shape[-1], G.device, G.dtype).expand(len(G), -1, -1)
        found = grid.flatten(2).transpose(1, 2)
        wide = index.expand(-1, -1, G.shape[-1])
        position = position.gather(1, wide)
        content = self.content(found.gather(1, wide)) + self.where(position)
        centre = (torch.cat((index // w, index % w), -1).float() + 0.5) / h
        prior = scores.detach().flatten(1).gather(1, index[..., 0])
        return SeedQueries(content, self.place(position), centre, prior, scores)


class Extent(nn.Module):
    """How far from its seed a query's mask reaches: -k_y (y - c_y)^2 - k_x (x - c_x)^2 on its logits, in image heights.

    k and the way from the seed to c are read from the query. Without it one query takes in all that looks alike.
    """

    def __init__(self, D: int) -> None:
        super().__init__()
        self.shape = nn.Linear(D, 4)
        nn.init.zeros_(self.shape.weight)
        nn.init.zeros_(self.shape.bias)

    def forward(self, embeddings: Tensor, centre: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """embeddings (B', n, D), centre (B', n, 2), size (H, W) -> terms (B', n, H) of the rows and (B', n, W) of the
        columns of a mask, float32; their sum over the axes is what is added."""
        H, W = size
        shape = self.shape(embeddings).float()
        at = centre + shape[..., :2]
        k = START * torch.exp(2 * shape[..., 2:].clamp(-LIMIT, LIMIT))
        y, x = ((torch.arange(n, device=centre.device) + 0.5) / H for n in (H, W))
        rows, columns = (-k[..., i, None] * (axis - at[..., i, None]) ** 2 for i, axis in enumerate((y, x)))
        return rows, columns
