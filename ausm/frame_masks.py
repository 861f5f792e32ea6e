"""Masks of one frame from what the model said of it: those of the tracked objects, then those of new ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ausm.assemble import detections, exclusive, shown_masks
from ausm.config import StreamConfig
from ausm.parts import keep_own_parts
from ausm.pixel_decoder import Predictions


class FrameMasks(NamedTuple):
    """m_trk and the masks of D (Alg. 1 l. 14-15), the K tracked objects first."""

    logits: Tensor  # (K + n, H/4, W/4), at most one is positive at a place
    foreground: Tensor  # (K + n,) probability
    queries: list[int]  # row of each among the queries of `Predictions`


def frame_masks(out: Predictions, M: Tensor, pinned: Sequence[bool], config: StreamConfig) -> FrameMasks:
    """`out` of one frame; M (K, h, w) bool, the marks M_{t-1} of the tracked objects; pinned: which were prompted."""
    c, K = config, len(M)
    fg, logits = out.objectness[0].float().sigmoid(), out.masks[0].float()
    # A8: discovered objects are gated by their score; for prompted ones the mask decides, unless a threshold is set
    least = torch.tensor([c.prompt_threshold or -1.0 if p else c.score_threshold for p in pinned], device=fg.device)
    marked = M.flatten(1).any(1).tolist()
    found = [i for i in range(K) if not pinned[i]]
    # before the pixels are shared out, so that a part given up is another track's; what was lost takes no one's
    tracked = keep_own_parts(logits[:K], [i for i in found if marked[i]], c.part_gap, before=M)
    tracked = shown_masks(tracked, fg[:K] > least)
    tracked = keep_own_parts(tracked, [i for i in found if not marked[i]], c.part_gap)
    over = (fg[K:] > c.score_threshold).nonzero().flatten().tolist() if c.discover else []
    logits = keep_own_parts(logits, [K + i for i in over], c.part_gap, taken=(tracked > 0).any(0))
    rows = [K + i for i in detections(logits[K:], fg[K:], tracked, c)] if c.discover else []
    # live objects keep their pixels, discoveries take what is left
    new = torch.where((tracked > 0).any(0), -logits[rows].abs(), logits[rows])
    queries = list(range(K)) + rows
    return FrameMasks(torch.cat((tracked, exclusive(new))), fg[queries], queries)
