"""Ids that were given to what is no object (section 1.3 of the design, `history_noise`): a stream's false discoveries.

The right answer to such an id is "not in view" with an empty mask, on every frame. Only where all objects are labelled
can it be known that there is none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.noise import draw_span
from training.preprocess import Targets

KEPT = (1, 4)  # frames for which a false discovery is marked, as if it were believed for so long
SIDE = (0.08, 0.4)  # of the blob, share of the grid's height


def add_false_track(t: Targets, p: float, generator: torch.Generator) -> Targets:
    """With probability `p` a clip gets one more id, whose first marks are a blob of background.

    All tensors of `t` grow by one instance, in clips without a false id by an unused one. Its row of B is one that the
    clip does not use: t.ids (B, K + 1) must have it as its last column already.
    """
    B, T = t.active.shape[:2]
    h, w = t.history.shape[-2:]
    history = t.history.new_zeros(B, T, 1, h, w)
    active = t.active.new_zeros(B, T, 1)
    fixed = active.clone()
    for b in range(B):
        wanted = float(torch.rand((), generator=generator)) < p
        start = int(torch.randint(1, max(T, 2), (), generator=generator))
        kept = int(draw_span(KEPT, (), generator))
        blob = _blob((h, w), generator).to(history.device)
        if not wanted or start >= T:
            continue
        stop = min(start + kept, T)
        # frame t reads the marks of t - 1
        taken = F.adaptive_max_pool2d(t.masks[b, start - 1 : stop - 1].any(1)[:, None].float(), (h, w))[:, 0] > 0
        marks = blob & ~taken
        if not bool(marks[0].any()):  # nothing but objects there
            continue
        history[b, start:stop, 0] = marks
        active[b, start:, 0] = True
        fixed[b, start:stop, 0] = True  # the model's own masks do not take the mistake back
    none = torch.zeros_like(active)
    empty = t.masks.new_zeros(B, T, 1, *t.masks.shape[-2:])
    return Targets(
        ids=t.ids,
        history=torch.cat((t.history, history), 2),
        active=torch.cat((t.active, active), 2),
        det=torch.cat((t.det, none), 2),
        masks=torch.cat((t.masks, empty), 2),
        visible=torch.cat((t.visible, none), 2),
        fixed=torch.cat((t.fixed, fixed), 2),
    )


def _blob(grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(h, w) bool: an ellipse somewhere."""
    h, w = grid
    draw = torch.rand(4, generator=generator)
    ry, rx = ((SIDE[0] + (SIDE[1] - SIDE[0]) * draw[:2]) * h / 2).clamp(min=0.5).tolist()
    cy, cx = float(draw[2]) * h, float(draw[3]) * w
    y, x = torch.arange(h)[:, None] + 0.5, torch.arange(w)[None] + 0.5
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
