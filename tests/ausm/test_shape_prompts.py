"""Boxes and points become the hypothesis that agrees, or the plain shape."""

import numpy as np
import pytest
import torch
from scripted_model import HEIGHT, WIDTH, Rect, ScriptedModel

import ausm
from ausm.config import StreamConfig
from ausm.errors import AusmError, EmptyMaskError, SizeError
from ausm.masks import Box
from ausm.prompts import NO_FIT, NO_VIEW, box_mask, points_mask, shape_box, shape_points

IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
WEAK = ((32, 48, 56, 88), -3.0)  # too weak to become a track, but a hypothesis
WORLD = [{"a": (0, 0, 24, 32), "weak": WEAK}] * 3


@pytest.fixture
def stream() -> ausm.Stream:
    stream = ausm.Stream(ScriptedModel(WORLD), config=StreamConfig())
    stream.step(IMAGE)
    assert len(stream.current.tracks) == 1
    return stream


def rectangle(rect: Rect) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rect[0] : rect[2], rect[1] : rect[3]] = True
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_box_takes_the_mask_that_agrees(stream: ausm.Stream) -> None:
    assert iou(box_mask(stream, Box(44, 30, 44, 30)), rectangle(WEAK[0])) > 0.95
    assert iou(box_mask(stream, Box(2, 1, 30, 20)), rectangle((0, 0, 24, 32))) > 0.95


def test_a_box_that_nothing_agrees_with_is_filled(stream: ausm.Stream) -> None:
    assert np.array_equal(box_mask(stream, Box(50, 2, 20, 9)), rectangle((2, 50, 11, 70)))
    assert np.array_equal(box_mask(stream, Box(50, 34, 10, 10)), rectangle((34, 50, 44, 60)))  # a part of the object
    assert np.array_equal(box_mask(stream, Box(-5, 60, 20, 20)), rectangle((60, 0, 64, 15)))  # cut at the border
    for box in (Box(96, 0, 5, 5), Box(0, 0, 0, 7), Box(-9, 0, 9, 5)):
        with pytest.raises(EmptyMaskError, match=r"height=[57] holds no pixel of the image of 64x96"):
            box_mask(stream, box)


def test_slivers_that_span_a_box_do_not_fill_it(stream: ausm.Stream) -> None:
    out = stream._out
    assert out is not None
    masks = torch.full_like(out.masks, -5.0)
    masks[0, -1, 2, 3], masks[0, -1, 11, 17] = 5.0, 5.0  # two cells of 4 x 4 pixels, 36 and 56 pixels apart
    stream._out = out._replace(masks=masks)
    box = Box(12, 8, 60, 40)
    assert np.array_equal(box_mask(stream, box), rectangle((8, 12, 48, 72)))


def test_points_take_the_object_they_are_on(stream: ausm.Stream) -> None:
    a = rectangle((0, 0, 24, 32))
    assert iou(points_mask(stream, [(5, 5)]), a) > 0.95
    assert shape_points(stream, [(5, 5)]).plain == "" == shape_box(stream, Box(2, 1, 30, 20)).plain
    assert iou(points_mask(stream, [(5, 5), (28, 20), (60, 40)], [1, 1, 0]), a) > 0.95


def test_points_that_fit_nothing_become_discs(stream: ausm.Stream) -> None:
    shaped = shape_points(stream, [(70, 10)])
    disc = shaped.mask
    assert shaped.plain == NO_FIT == shape_box(stream, Box(50, 2, 20, 9)).plain
    assert disc[10, 70] and 9 <= disc.sum() <= 30 and disc[8:13, 68:73].sum() == disc.sum()
    weak = points_mask(stream, [(60, 40)])  # on the weak one: a point alone does not make it an object
    assert weak.sum() == disc.sum()
    assert points_mask(stream, [(5, 5), (60, 40)]).sum() == 2 * disc.sum()  # on two objects at once
    assert points_mask(stream, [(5, 5), (20, 20)], [1, 0]).sum() == disc.sum()  # the object holds the negative point
    assert not points_mask(stream, [(70, 10), (72, 10)], [1, 0])[10, 71:].any()
    with pytest.raises(EmptyMaskError, match="2 points, 1 on the object"):
        points_mask(stream, [(70, 10), (70, 10)], [1, 0])
    with pytest.raises(EmptyMaskError, match="0 points"):
        points_mask(stream, [])
    with pytest.raises(SizeError, match="1 points, 2 labels"):
        points_mask(stream, [(1, 1)], [1, 0])
    with pytest.raises(AusmError, match=r"point x=96 y=0 outside the image of 64x96"):
        points_mask(stream, [(96, 0)])


def test_a_mask_holds_its_points_at_full_size(stream: ausm.Stream) -> None:
    """One cell of 4 x 4 pixels: between it and its neighbours hardly a pixel is left of it."""
    out = stream._out
    assert out is not None
    masks, objectness = torch.full_like(out.masks, -6.0), out.objectness.clone()
    masks[0, -1, 5, 7], objectness[0, -1] = 0.5, 3.0
    stream._out = out._replace(masks=masks, objectness=objectness)
    for x, y in ((28, 20), (31, 23), (30, 21)):
        shaped = shape_points(stream, [(x, y)])
        assert shaped.mask[y, x]
        assert shaped.plain in ("", NO_FIT)
    assert shape_points(stream, [(31, 23)]).plain == NO_FIT


def test_converted_prompts_are_followed(stream: ausm.Stream) -> None:
    (track,) = stream.prompt(box_mask(stream, Box(44, 30, 44, 30))[None])
    out = stream.step(IMAGE)
    mask = next(t.mask for t in out.tracks if t.track_id == track)
    assert iou(mask, rectangle(WEAK[0])) > 0.9


def test_without_a_frame_or_its_predictions(stream: ausm.Stream) -> None:
    other = ausm.Stream(ScriptedModel(WORLD))
    for call in (lambda: box_mask(other, Box(0, 0, 5, 5)), lambda: points_mask(other, [(1, 1)])):
        with pytest.raises(AusmError, match="there is none yet"):
            call()
    stream.load_state_dict(stream.state_dict())  # a snapshot does not hold the predictions
    assert np.array_equal(box_mask(stream, Box(0, 0, 32, 24)), rectangle((0, 0, 24, 32)))
    assert shape_box(stream, Box(0, 0, 32, 24)).plain == NO_VIEW == shape_points(stream, [(5, 5)]).plain
    assert points_mask(stream, [(5, 5)]).sum() < 30
