"""Ids on what is no object: where their marks lie, and what the loss says of them."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import STAGE, batch, tiny_config

from ausm.model import AUSM
from training.clip_loss import ClipLoss
from training.false_tracks import KEPT, add_false_track
from training.noise import HistoryNoise
from training.preprocess import Targets, preprocess


def targets(seed: int, frames: int = 5) -> Targets:
    """Two clips with one object each, a square that moves to the right."""
    masks = torch.zeros(2, frames, 1, 64, 96, dtype=torch.bool)
    for t in range(frames):
        masks[:, t, 0, 16:48, 8 * t : 8 * t + 32] = True
    ids = torch.tensor([[1, 2], [3, 4]])
    t = preprocess(masks, torch.tensor([[1], [frames]]), (8, 12), ids[:, :1])
    return t._replace(ids=ids)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_a_false_id_lies_on_background_and_is_never_in_view(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = targets(seed)
    after = add_false_track(before, 1.0, generator)
    assert after.active.shape == (2, 5, 2) and after.masks.shape == (2, 5, 2, 64, 96)
    for name in ("history", "active", "det", "masks", "visible", "fixed"):  # what was there stays
        assert torch.equal(getattr(after, name)[:, :, :1], getattr(before, name)), name
    assert not after.det[..., 1].any() and not after.visible[..., 1].any() and not after.masks[:, :, 1].any()
    marks, active = after.history[:, :, 1], after.active[..., 1]
    objects = torch.nn.functional.adaptive_max_pool2d(before.masks[:, :, 0].float(), (8, 12)) > 0
    assert not (marks[:, 1:] & objects[:, :-1]).any(), "frame t reads the marks of t - 1"
    for b in range(2):
        if not active[b].any():
            continue
        start = int(active[b].int().argmax())
        assert start >= 1 and active[b, start:].all() and marks[b, start].any()
        assert marks[b].flatten(1).any(1).sum() <= KEPT[1] and not marks[b, :start].any()
    assert torch.equal(after.fixed[..., 1] | ~marks.flatten(2).any(2), torch.ones(2, 5, dtype=torch.bool))


def test_a_crowded_frame_or_a_clip_of_one_frame_gets_none() -> None:
    full = targets(0)
    full = full._replace(masks=torch.ones_like(full.masks))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        assert not add_false_track(full, 1.0, generator).active[..., 1].any()
        assert not add_false_track(targets(0, frames=1), 1.0, generator).active[..., 1].any()
        assert not add_false_track(targets(0), 0.0, generator).active[..., 1].any()


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_loss_teaches_a_false_id_to_say_no(exhaustive: bool) -> None:
    """With all else equal, only the objectness of the false id changes the track terms; unlabelled clips get none."""
    torch.manual_seed(0)
    stage = dataclasses.replace(STAGE, noise=HistoryNoise(false_id=1.0), self_fed_stream=True)
    clip_loss = ClipLoss(AUSM(tiny_config()), stage).train()
    part = batch([0, 1])._replace(exhaustive=exhaustive)
    for seed in range(20):
        t = clip_loss.targets(part, torch.Generator().manual_seed(seed))
        if not exhaustive:
            assert t.active.shape[2] == 2 == t.ids.shape[1]
            return
        assert t.active.shape[2] == 3 == t.ids.shape[1]
        if t.active[..., 2].any():
            break
    else:
        pytest.fail("20 draws and no false id")
    alone = torch.zeros_like(t.active)
    alone[..., 2] = t.active[..., 2]  # nothing is tracked but the false id
    t = t._replace(active=alone, det=torch.zeros_like(t.det))
    head = clip_loss.model.pixel_decoder.objectness
    last = head[-1] if isinstance(head, torch.nn.Sequential) else head
    sums = []
    for bias in (-4.0, 4.0):
        with torch.no_grad():
            last.bias.fill_(bias)
        terms = clip_loss(part, t, self_fed=True)
        assert terms["trk_dice"].item() == 0.0, "dice is undefined without a target"
        sums.append(terms["trk_obj"].item())
    assert sums[0] < 0.2 * sums[1], "saying no costs less than saying yes"
