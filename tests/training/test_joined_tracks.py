"""First masks that took in a neighbour: whose marks, for how long, and what stays as it was."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import STAGE, batch, tiny_config

from ausm.marker import marks_from_masks
from ausm.model import AUSM
from training.clip_loss import ClipLoss
from training.joined_tracks import KEPT, join_tracks
from training.noise import HistoryNoise
from training.preprocess import Targets, preprocess

LARGE, SMALL, FAR = 0, 1, 2


def targets(ts: list[int], frames: int = 6) -> Targets:
    """A clip with a large square, a smaller one that touches it, and one far off; `ts` are their switch times."""
    masks = torch.zeros(1, frames, 3, 64, 96, dtype=torch.bool)
    masks[:, :, LARGE, 8:40, 8:40] = True
    masks[:, :, SMALL, 16:32, 40:56] = True
    masks[:, :, FAR, 40:56, 80:96] = True
    return preprocess(masks, torch.tensor([ts]), (8, 12), torch.tensor([[1, 2, 3]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_an_id_begins_with_its_smaller_neighbours_marks(seed: int, large: int, small: int) -> None:
    before = targets([large, small, 2])
    after = join_tracks(before, 1.0, torch.Generator().manual_seed(seed))
    for name in ("ids", "active", "det", "masks", "visible"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    for k in (SMALL, FAR):  # the smaller one takes nothing in, the other touches nothing
        assert torch.equal(after.history[:, :, k], before.history[:, :, k])
        assert not after.fixed[:, :, k].any()
    y = marks_from_masks(before.masks, (8, 12))
    changed = (after.history != before.history)[0, :, LARGE].flatten(1).any(1)
    assert torch.equal(changed, after.fixed[0, :, LARGE])
    if small <= large:  # it has an id of its own by then
        assert not changed.any()
        return
    frames = changed.nonzero()[:, 0].tolist()
    assert frames[0] == large and frames == list(range(large, frames[-1] + 1)) and len(frames) <= KEPT[1]
    assert frames[-1] < small, "not after its neighbour is discovered"
    for t in frames:
        assert torch.equal(after.history[0, t, LARGE], y[0, t - 1, LARGE] | y[0, t - 1, SMALL])


def test_what_was_prompted_and_a_probability_of_nothing_change_nothing() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for ts, p in (([0, 6, 6], 1.0), ([2, 6, 6], 0.0), ([7, 7, 7], 1.0)):
            before = targets(ts)
            after = join_tracks(before, p, generator)
            assert torch.equal(after.history, before.history) and not after.fixed.any()


def test_a_neighbour_that_is_out_of_sight_is_none() -> None:
    before = targets([2, 6, 6])
    masks = before.masks.clone()
    masks[:, 2, SMALL] = False  # gone on the frame that reads the first marks: no detection target there
    before = preprocess(masks, torch.tensor([[2, 6, 6]]), (8, 12), before.ids)
    for seed in range(5):
        after = join_tracks(before, 1.0, torch.Generator().manual_seed(seed))
        assert torch.equal(after.history, before.history)


def test_where_an_id_has_no_marks_it_gets_none_of_its_neighbour() -> None:
    """Its marks may be withheld by noise, or it is out of sight itself: no false mark may come of that."""
    before = targets([2, 6, 6])
    history = before.history.clone()
    history[:, 3, LARGE] = False
    before = before._replace(history=history)
    kept = set()
    for seed in range(20):
        after = join_tracks(before, 1.0, torch.Generator().manual_seed(seed))
        assert not after.history[0, 3, LARGE].any() and not after.fixed[0, 3, LARGE]
        assert after.fixed[0, 2, LARGE] and (after.history[0, 2, LARGE] != before.history[0, 2, LARGE]).any()
        kept.add(int(after.fixed.sum()))
    assert kept == {1, 2}, "the frame after it is joint again, where the draw is long enough"


@pytest.mark.parametrize("streamed", [True, False])
def test_the_models_own_masks_do_not_take_a_joint_mark_back(streamed: bool) -> None:
    torch.manual_seed(0)
    stage = dataclasses.replace(STAGE, noise=HistoryNoise(blackout=0.0, joined=1.0), self_fed_stream=streamed)
    clip_loss = ClipLoss(AUSM(tiny_config()), stage).train()
    part = batch([0, 1])
    masks = part.masks.clone()
    masks[:, 1] = torch.roll(masks[:, 0], 16, -1) & ~masks[:, 0]  # what touches the first square
    part = part._replace(masks=masks)
    for seed in range(60):
        t = clip_loss.targets(part, torch.Generator().manual_seed(seed))
        if t.fixed.any():
            break
    else:
        pytest.fail("60 draws and no id began with a joint mark")
    again = clip_loss.targets(part, torch.Generator().manual_seed(seed))
    assert torch.equal(t.history, again.history), "seeded"
    seen = []
    decode = clip_loss.model.decode_clip
    clip_loss.model.decode_clip = lambda f, B, ids, history, *a, **k: (  # type: ignore[method-assign]
        seen.append(history) or decode(f, B, ids, history, *a, **k)
    )
    terms = clip_loss(part, t, self_fed=True)
    assert torch.isfinite(torch.stack(list(terms.values()))).all()
    assert torch.equal(seen[-1][t.fixed], t.history[t.fixed])
