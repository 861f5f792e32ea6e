"""A model that sees perfectly: objects are rectangles given frame by frame, so the life of ids can be told exactly."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ausm.config import AusmConfig, BackboneConfig, CompressorConfig, NeckConfig
from ausm.pixel_decoder import Predictions
from ausm.state import StreamState, new_state

Rect = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels of a 64 x 96 image
HEIGHT, WIDTH = 64, 96


class ScriptedModel:
    """Stands in for AUSM in a Stream. `world[t]`: name -> rectangle (optionally with a foreground logit) at frame t.

    An id follows the object its marks cover most; marks that cover nothing leave it with the object it had. Every
    object that no id follows is detected, each by a query of its own.
    """

    def __init__(self, world: list[dict[str, Rect | tuple[Rect, float]]], N_id: int = 100, N_det: int = 20) -> None:
        self.config = AusmConfig(
            name="scripted",
            backbone=BackboneConfig("none"),
            neck=NeckConfig("fpn"),
            compressor=CompressorConfig(layers=1, d_state=1, expand=1),
            D=N_id,
            N_id=N_id,
            N_det=N_det,
            short_side=HEIGHT,
        )
        self.world, self.X_0 = world, torch.zeros(N_id)
        self.follows: dict[int, str] = {}  # row of B -> name
        self.t = -1
        self.absorbed: list[tuple[list[int], Tensor]] = []
        self.pixel_decoder = SimpleNamespace(class_heads={"coco": None, "sim": None}, classify=self.classify)

    def new_state(self, height: int, width: int, dtype: torch.dtype) -> StreamState:
        return new_state(self.config, (-(-height // 32) * 4, -(-width // 32) * 4), self.X_0, dtype)

    def absorb(self, state: StreamState, ids: Tensor, M: Tensor) -> None:
        assert not state.absorbed and len(ids) == len(M)
        shown = self.world[max(self.t, 0)]
        for slot, marks in zip(ids.tolist(), M, strict=True):
            covers = {name: int((marks & _grid(_rect(r), 8)).sum()) for name, r in shown.items()}
            best = max(covers, key=covers.__getitem__, default=None)
            if best is not None and covers[best] > 0:
                self.follows[slot] = best
        self.absorbed.append((ids.tolist(), M.clone()))
        state.absorbed = True

    def predict(self, state: StreamState, image: Tensor, ids: Tensor) -> Predictions:
        assert state.absorbed and image.shape == (HEIGHT, WIDTH, 3)
        state.absorbed = False
        self.t += 1
        shown = self.world[self.t]
        names: list[str | None] = [self.follows.get(slot) for slot in ids.tolist()]
        found = [name for name in shown if name not in names]
        assert len(found) <= self.config.N_det
        names += found + [None] * (self.config.N_det - len(found))
        masks = torch.full((1, len(names), HEIGHT // 4, WIDTH // 4), -5.0)
        objectness = torch.full((1, len(names)), -5.0)
        for q, name in enumerate(names):
            if name in shown:
                masks[0, q][_grid(_rect(shown[name]), 4)] = 5.0
                objectness[0, q] = shown[name][1] if isinstance(shown[name][0], tuple) else 5.0
        return Predictions(masks, objectness, torch.eye(len(names), self.config.D)[None])

    @staticmethod
    def classify(embeddings: Tensor, head: str) -> Tensor:
        """Class 1 of 3 ("coco") or 2 of 5 ("sim") with certainty, whatever the query."""
        logits = torch.zeros(*embeddings.shape[:-1], {"coco": 4, "sim": 6}[head])
        logits[..., {"coco": 1, "sim": 2}[head]] = 20.0
        return logits


def _rect(value: Rect | tuple[Rect, float]) -> Rect:
    return value[0] if isinstance(value[0], tuple) else value  # type: ignore[return-value]


def _grid(rect: Rect, cell: int) -> Tensor:
    """The rectangle on cells of `cell` pixels."""
    out = torch.zeros(HEIGHT // cell, WIDTH // cell, dtype=torch.bool)
    y0, x0, y1, x1 = (v // cell for v in rect)
    out[y0:y1, x0:x1] = True
    return out
