"""Which parts of a discovered object's mask are its own (`ausm.parts`)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scripted_model import HEIGHT, WIDTH, ScriptedModel
from torch import Tensor

import ausm
from ausm.config import StreamConfig
from ausm.parts import keep_own_parts
from ausm.pixel_decoder import Predictions
from ausm.state import StreamState

LEFT, RIGHT, CLOSE = (slice(4, 10), slice(2, 8)), (slice(4, 12), slice(20, 28)), (slice(4, 10), slice(10, 13))


def mask_of(*parts: tuple[slice, slice], value: float = 4.0) -> Tensor:
    logits = torch.full((16, 32), -3.0)
    for part in parts:
        logits[part] = value
    return logits


def kept(logits: Tensor, before: Tensor | None = None, gap: int = 8) -> Tensor:
    return keep_own_parts(logits[None], [0], gap, None if before is None else before[None])[0]


def marks(*parts: tuple[slice, slice]) -> Tensor:
    return mask_of(*parts)[::2, ::2] > 0


def test_a_new_object_is_its_strongest_part() -> None:
    both = mask_of(LEFT, RIGHT)
    assert torch.equal(kept(both) > 0, mask_of(RIGHT) > 0)
    both[LEFT] = 9.0  # smaller, but surer
    assert torch.equal(kept(both) > 0, mask_of(LEFT) > 0)


def test_parts_that_lie_close_are_one_object() -> None:
    near = mask_of(LEFT, CLOSE)
    assert torch.equal(kept(near), near)  # two cells of four pixels between them
    assert torch.equal(kept(mask_of(LEFT, CLOSE, RIGHT), gap=60) > 0, mask_of(LEFT, CLOSE, RIGHT) > 0)


def test_a_followed_object_keeps_what_touches_its_marks() -> None:
    both = mask_of(LEFT, RIGHT)
    assert torch.equal(kept(both, marks(LEFT)) > 0, mask_of(LEFT) > 0)
    assert torch.equal(kept(both, marks(LEFT, RIGHT)), both)  # it was seen on both sides of a post
    elsewhere = torch.zeros(8, 16, dtype=torch.bool)
    elsewhere[7, 15] = True
    assert torch.equal(kept(both, elsewhere) > 0, mask_of(RIGHT) > 0)  # back in another place
    assert torch.equal(kept(both, elsewhere & False) > 0, mask_of(RIGHT) > 0)


def test_a_new_object_is_not_the_known_one_that_its_mask_covers_too() -> None:
    both = mask_of(LEFT, RIGHT)[None]
    assert torch.equal(keep_own_parts(both, [0], 8, taken=mask_of(RIGHT) > 0)[0] > 0, mask_of(LEFT) > 0)
    all_known = mask_of(LEFT, RIGHT) > 0  # a duplicate: dedupe_iou drops it
    assert torch.equal(keep_own_parts(both, [0], 8, taken=all_known)[0] > 0, mask_of(RIGHT) > 0)


def test_other_rows_and_a_gap_of_zero_change_nothing() -> None:
    both = torch.stack([mask_of(LEFT, RIGHT)] * 2)
    result = keep_own_parts(both, [1], 8)
    assert torch.equal(result[0], both[0]) and not torch.equal(result[1], both[1])
    assert torch.equal(both[1], mask_of(LEFT, RIGHT))  # what it was given stays as it was
    assert torch.equal(keep_own_parts(both, [0, 1], 0), both)


@settings(deadline=None)
@given(arrays.arrays(np.bool_, (12, 16)), arrays.arrays(np.bool_, (6, 8)), st.integers(0, 40), st.booleans())
def test_nothing_is_added_and_nothing_lost_twice(mask: np.ndarray, before: np.ndarray, gap: int, new: bool) -> None:
    logits = torch.where(torch.from_numpy(mask), 2.0, -2.0)
    earlier = None if new else torch.from_numpy(before)
    once = kept(logits, earlier, gap)
    assert torch.equal(once.abs(), logits.abs()) and not ((once > 0) & ~torch.from_numpy(mask)).any()
    assert bool((once > 0).any()) == bool(mask.any())
    assert torch.equal(kept(once, earlier, gap), once)


class Greedy(ScriptedModel):
    """From the second frame on its first track covers all objects, and is surer of them than their own tracks."""

    def predict(self, state: StreamState, image: Tensor, ids: Tensor) -> Predictions:
        out = super().predict(state, image, ids)
        if len(ids):
            out.masks[0, 0] = torch.where(out.masks[0].amax(0) > 0, 9.0, -5.0)
        return out


def test_a_part_that_is_given_up_stays_with_the_track_whose_it_is() -> None:
    world = [{"a": (0, 0, 16, 16), "b": (40, 64, 64, 96)}] * 3
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stream = ausm.Stream(Greedy(world))
    for _ in world:
        shown = {t.track_id: int(t.mask.sum()) for t in stream.step(image).tracks}
    assert shown == {1: pytest.approx(256, abs=40), 2: pytest.approx(768, abs=40)}  # edges move with logits


class Joined(ScriptedModel):
    """Its first query shows all objects at once."""

    def predict(self, state: StreamState, image: Tensor, ids: Tensor) -> Predictions:
        out = super().predict(state, image, ids)
        out.masks[0, 0] = out.masks[0].amax(0)
        return out


def test_a_stream_tells_look_alikes_apart_and_leaves_prompts_whole() -> None:
    world = [{"a": (0, 0, 16, 16), "b": (40, 64, 64, 96)}] * 3
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for gap, areas in ((0, [16 * 16 + 24 * 32]), (8, [16 * 16, 24 * 32])):
        stream = ausm.Stream(Joined(world), config=StreamConfig(part_gap=gap))
        for _ in world:
            shown = sorted(int(t.mask.sum()) for t in stream.step(image).tracks)
        assert shown == pytest.approx(areas, abs=4)  # masks are rounded at their corners
        assert stream.ids_issued == len(areas)
    stream = ausm.Stream(Joined(world), discover=False)
    prompt = np.zeros((1, HEIGHT, WIDTH), bool)
    prompt[0, :16, :16] = True
    stream.step(image)
    stream.prompt(prompt)
    assert [int(t.mask.sum()) for t in stream.step(image).tracks] == pytest.approx([16 * 16 + 24 * 32], abs=4)
