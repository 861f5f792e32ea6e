"""First masks that took in a neighbour (section 1.3 of the design, `history_noise`): a stream's joint discoveries.

Where two things touch, a stream may discover them as one. Its history says so from then on, while teacher forcing only
ever shows an id that began with the right mask. The right answer: the id keeps to the larger one of the two, the other
is still to be discovered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm.marker import marks_from_masks
from training.noise import draw_span
from training.preprocess import Targets

KEPT = (1, 3)  # frames for which the marks of both are the id's


def join_tracks(t: Targets, p: float, generator: torch.Generator) -> Targets:
    """With probability `p` an id that was discovered begins with the marks of a smaller neighbour, too.

    Neighbours lie within a token of each other and the smaller one is visible without an id of its own. What a prompt
    marked stays as it is, and so does a frame without marks of the id. Changes `history` and `fixed` of `t`,
    nothing else.
    """
    history, fixed = t.history.clone(), t.fixed.clone()
    B, T, K = t.active.shape
    grid = (history.shape[-2], history.shape[-1])
    starts = t.active.int().argmax(1)  # (B, K)
    for b in range(B):
        for k in range(K):
            start = int(starts[b, k])
            wanted = float(torch.rand((), generator=generator)) < p
            kept = int(draw_span(KEPT, (), generator))
            at = float(torch.rand((), generator=generator))
            if not wanted or start == 0:  # prompted, never an id, or unused
                continue
            # frame t reads the marks of t - 1
            before = marks_from_masks(t.masks[b : b + 1, start - 1 : start], grid)[0, 0]  # (K, h, w)
            found = _smaller_neighbours(before, k) & t.det[b, start]
            if not bool(found.any()):
                continue
            others = found.nonzero()[:, 0].tolist()
            j = others[int(at * len(others))]
            stop = start + 1
            while stop < min(start + kept, T) and bool(t.det[b, stop, j]):
                stop += 1
            marks = marks_from_masks(t.masks[b : b + 1, start - 1 : stop - 1, [j]], grid)[0, :, 0]
            shown = history[b, start:stop, k].flatten(1).any(1)  # not where its marks are withheld or it is away
            history[b, start:stop, k] |= marks & shown[:, None, None]
            fixed[b, start:stop, k] |= shown  # the model's own masks do not take the mistake back
    return t._replace(history=history, fixed=fixed)


def _smaller_neighbours(marks: Tensor, k: int) -> Tensor:
    """marks (K, h, w) bool of one frame -> (K,) bool: those that touch the marks of k and are not larger."""
    near = F.max_pool2d(marks[k, None].float(), 3, 1, 1)[0] > 0
    found = (marks & near).flatten(1).any(1) & (marks.flatten(1).sum(1) <= marks[k].sum())
    found[k] = False
    return found
