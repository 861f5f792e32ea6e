"""The recurrent step with ids padded to a few sizes, so that tensors have few shapes while objects come and go.

Padded ids have empty masks, so that the marker ignores them, and no query may look at theirs: results agree with the
plain step's to rounding. oneDNN compiles and keeps a set of kernels for every number of rows; without padding a stream
holds one set for each number of objects it has had.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm.model import AUSM
from ausm.pixel_decoder import Predictions
from ausm.state import StreamState

MULTIPLE = 8  # of queries: the attention kernel of ausm/csrc takes as many at a time


def unpad(out: Predictions, K: int, P: int) -> Predictions:
    """Predictions of P ids and N_det queries without ids K..P, as copies."""

    def kept(x: Tensor) -> Tensor:
        return torch.cat((x[:, :K], x[:, P:]), 1)

    return out._replace(masks=kept(out.masks), objectness=kept(out.objectness), embeddings=kept(out.embeddings))


class PaddedStep:
    """`AUSM.absorb` and `AUSM.predict` with padded ids, in new tensors every time."""

    def __init__(self, model: AUSM) -> None:
        self.model = model

    def absorb(self, state: StreamState, ids: Tensor, M: Tensor) -> None:
        """As `AUSM.absorb`."""
        more = self._size(len(ids)) - len(ids)
        self.model.absorb(state, F.pad(ids, (0, more)), torch.cat((M, M.new_zeros(more, *M.shape[1:]))))

    def predict(self, state: StreamState, image: Tensor, ids: Tensor) -> Predictions:
        """As `AUSM.predict`."""
        return self.predict_together([state], image[None], [ids])[0]

    def predict_together(
        self, states: Sequence[StreamState], images: Tensor, ids: Sequence[Tensor]
    ) -> list[Predictions]:
        """`predict` for one frame of each of several streams: images (B, H, W, 3), ids of each (K,)."""
        P = self._size(max(len(own) for own in ids))
        padded = torch.stack([F.pad(own, (0, P - len(own))) for own in ids])
        active = None
        if any(len(own) < P for own in ids):
            active = torch.stack([torch.arange(P, device=own.device) < len(own) for own in ids])
        out = self.model.predict_together(states, images, padded, active)
        rows = []
        for b, own in enumerate(ids):
            row = Predictions(out.masks[b : b + 1], out.objectness[b : b + 1], out.embeddings[b : b + 1])
            rows.append(row if len(own) == P else unpad(row, len(own), P))
        return rows

    def _size(self, K: int) -> int:
        """Ids P >= K with which there are a multiple of `MULTIPLE` queries, or all N_id."""
        c = self.model.config
        return min(-(-(K + c.N_det) // MULTIPLE) * MULTIPLE - c.N_det, c.N_id)
