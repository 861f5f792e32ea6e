"""The checks of prompts on plain objects, without ROS: every refusal, and that any input gives one or a mask."""

import array
import io
import math
import tracemalloc
from types import SimpleNamespace as Message

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ausm.masks import encode_rle
from ausm_ros.prompts import (
    Code,
    ObjectPrompt,
    Refusal,
    Scene,
    check_count,
    check_prompts,
    mask_of,
    outcomes_if_refused,
)

H, W = 12, 16
SCENE = Scene(H, W, names={3: "cup", 5: ""}, pinned=1, capacity=4, min_area=2)


def roi(x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> Message:
    return Message(x_offset=x, y_offset=y, width=width, height=height)


def prompt(**fields: object) -> Message:
    """A `msg/Prompt` with every field, as ROS fills them in."""
    empty = {
        "name": "", "track_id": 0, "type": 1,
        "mask": Message(height=0, width=0, step=0, encoding="", data=b""),
        "rle": Message(roi=roi(), runs=[]), "png": Message(format="", data=b""), "box": roi(),
        "point_x": [], "point_y": [], "point_labels": [],
    }  # fmt: skip
    return Message(**{**empty, **fields})


def square() -> np.ndarray:
    mask = np.zeros((H, W), np.bool_)
    mask[3:8, 4:9] = True
    return mask


def by_rle(mask: np.ndarray, **fields: object) -> Message:
    box, runs = encode_rle(mask)
    return prompt(type=1, rle=Message(roi=roi(*box), runs=array.array("I", runs)), **fields)


def by_image(mask: np.ndarray, padding: int = 0, encoding: str = "mono8") -> Message:
    height, width = mask.shape
    rows = np.pad(mask.astype(np.uint8) * 7, ((0, 0), (0, padding)), constant_values=9)
    message = Message(height=height, width=width, step=width + padding, encoding=encoding, data=rows.tobytes())
    return prompt(type=0, mask=message)


def by_png(pixels: np.ndarray, mode: str | None = None) -> Message:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "PNG")
    return prompt(type=2, png=Message(format="png", data=stream.getvalue()))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_mask_image(padding: int, encoding: str) -> None:
    np.testing.assert_array_equal(mask_of(by_image(square(), padding, encoding), SCENE), square())


def test_mask_rle() -> None:
    np.testing.assert_array_equal(mask_of(by_rle(square()), SCENE), square())


def test_mask_png_of_every_one_channel_kind() -> None:
    grey = square().astype(np.uint8)
    palette = Image.fromarray(grey)
    palette.putpalette([0, 0, 0] * 256)  # index 1 is black too: the index counts, not the colour
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    one_bit = io.BytesIO()
    Image.fromarray(square()).save(one_bit, "PNG")
    sixteen = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 300).save(sixteen, "PNG")
    for data in (stream, one_bit, sixteen):
        message = prompt(type=2, png=Message(format="png", data=data.getvalue()))
        np.testing.assert_array_equal(mask_of(message, SCENE), square())
    np.testing.assert_array_equal(mask_of(by_png(grey * 255), SCENE), square())


def test_box_and_points() -> None:
    mask = mask_of(prompt(type=3, box=roi(4, 3, 5, 5)), SCENE)
    np.testing.assert_array_equal(mask, square())
    points = prompt(type=4, point_x=[4, 12], point_y=[5, 5], point_labels=[1, 0])
    mask = mask_of(points, SCENE)
    assert mask[5, 4] and mask[5, 6] and not mask[5, 12]
    near = prompt(type=4, point_x=[4, 5], point_y=[5, 5], point_labels=[1, 0])
    assert not mask_of(near, SCENE)[5, 5]  # what is not the object is cut out of what is


def refusal(message: Message, scene: Scene = SCENE) -> Refusal:
    with pytest.raises(Refusal) as caught:
        mask_of(message, scene)
    return caught.value


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (by_image(np.ones((H, W + 1), bool)), Code.WRONG_SIZE, ["12x17", "12x16"]),
        (by_image(square(), encoding="rgb8"), Code.BAD_ENCODING, ["'rgb8'"]),
        (by_image(square() & False), Code.EMPTY_MASK, ["0 pixels", "at least 2"]),
        (by_image(np.eye(H, W, 9, dtype=bool) & (np.arange(H) == 0)[:, None]), Code.EMPTY_MASK, ["1 pixels"]),
        (by_rle(square() & False), Code.EMPTY_MASK, ["0 pixels"]),
        (prompt(rle=Message(roi=roi(0, 0, 4, 4), runs=[2**32 - 1, 2**32 - 1, 18])), Code.INVALID_MASK, ["4294967295"]),
        (prompt(rle=Message(roi=roi(0, 0, 4, 4), runs=[8, 7])), Code.INVALID_MASK, ["15", "16"]),
        (prompt(rle=Message(roi=roi(13, 0, 4, 4), runs=[8, 8])), Code.INVALID_MASK, ["x=13", "12x16"]),
        (prompt(type=2, png=Message(format="", data=b"")), Code.BAD_ENCODING, ["0 bytes"]),
        (prompt(type=2, png=Message(format="", data=b"\xff\xd8\xff\xe0 jpeg")), Code.BAD_ENCODING, ["JPEG"]),
        (by_png(np.zeros((H, W, 3), np.uint8)), Code.BAD_ENCODING, ["RGB"]),
        (by_png(np.ones((H + 3, W), np.uint8)), Code.WRONG_SIZE, ["15x16"]),
        (prompt(type=3, box=roi(2**32 - 1, 0, 2**32 - 1, 1)), Code.INVALID_MASK, ["4294967295"]),
        (prompt(type=3, box=roi(2, 2, 0, 5)), Code.EMPTY_MASK, ["0 pixels"]),
        (prompt(type=4, point_x=[1], point_y=[99], point_labels=[1]), Code.INVALID_MASK, ["x=1 y=99"]),
        (prompt(type=4, point_x=[1], point_y=[1], point_labels=[2]), Code.INVALID_MASK, ["label 2"]),
        (prompt(type=4, point_x=[1], point_y=[], point_labels=[1]), Code.INVALID_MASK, ["1 point_x, 0 point_y"]),
        (prompt(type=4, point_x=[1] * 1001, point_y=[1] * 1001, point_labels=[1] * 1001), Code.INVALID_MASK, ["1001"]),
        (prompt(type=5), Code.UNSUPPORTED_TYPE, ["5", "POINTS=4"]),
    ],
)
def test_refusals_carry_the_numbers(message: Message, code: Code, words: list[str]) -> None:
    refused = refusal(message)
    assert refused.code == code, refused.message
    assert all(word in refused.message for word in words), refused.message


def test_truncated_png_is_invalid() -> None:
    whole = by_png(np.random.default_rng(1).integers(0, 2, (H, W), np.uint8))
    for end in (33, 45, len(whole.png.data) - 30):
        whole.png.data, kept = whole.png.data[:end], whole.png.data
        assert refusal(whole).code == Code.INVALID_MASK
        whole.png.data = kept


def test_bombs_are_refused_before_anything_is_allocated() -> None:
    side = 2**31 - 1
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0" + bytes(40)
    bombs = [
        prompt(type=2, png=Message(format="png", data=png)),
        prompt(type=0, mask=Message(height=side, width=side, step=side, encoding="mono8", data=b"\1")),
        prompt(rle=Message(roi=roi(0, 0, 2**32 - 1, 2**32 - 1), runs=[2**32 - 1] * 3)),
        prompt(rle=Message(roi=roi(0, 0, W, H), runs=array.array("I", [1]) * 100_000)),
        prompt(type=3, box=roi(0, 0, 2**32 - 1, 2**32 - 1)),
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            refusal(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def codes(*messages: Message, scene: Scene = SCENE, reserved: dict[str, int] | None = None) -> list[Code]:
    return [c.code if isinstance(c, Refusal) else Code.OK for c in check_prompts(messages, scene, reserved or {})]


def test_ids_and_names() -> None:
    assert codes(by_rle(square(), track_id=3)) == [Code.OK]
    assert codes(by_rle(square(), track_id=4)) == [Code.UNKNOWN_ID]
    assert codes(by_rle(square(), track_id=3), by_rle(square(), track_id=3)) == [Code.OK, Code.UNKNOWN_ID]
    assert codes(by_rle(square(), name="cup")) == [Code.DUPLICATE_NAME]
    assert codes(by_rle(square(), name="cup", track_id=3)) == [Code.OK]  # its own name
    assert codes(by_rle(square(), name="cup", track_id=5)) == [Code.DUPLICATE_NAME]
    assert codes(by_rle(square(), name="new"), by_rle(square(), name="new")) == [Code.OK, Code.DUPLICATE_NAME]
    assert codes(by_rle(square(), name="waits"), reserved={"waits": 0}) == [Code.DUPLICATE_NAME]
    assert codes(by_rle(square(), name="waits", track_id=3), reserved={"waits": 5}) == [Code.DUPLICATE_NAME]
    assert codes(by_rle(square(), name="cup", track_id=3), reserved={"cup": 3}) == [Code.OK]  # corrected twice
    assert codes(by_rle(square(), name="x" * 300)) == [Code.DUPLICATE_NAME]
    assert codes(by_rle(square() & False, name="a"), by_rle(square(), name="a")) == [Code.EMPTY_MASK, Code.OK]


def test_boxes_and_points_keep_their_shape_for_the_model() -> None:
    [box, points, mask] = check_prompts(
        [
            prompt(type=3, box=roi(4, 3, 5, 5)),
            prompt(type=4, point_x=[4, 12], point_y=[5, 6], point_labels=[1, 0]),
            by_rle(square()),
        ],
        SCENE,
    )
    assert isinstance(box, ObjectPrompt) and box.box == (4, 3, 5, 5) and box.points == ()
    assert isinstance(points, ObjectPrompt) and points.points == ((4, 5, 1), (12, 6, 0)) and points.box is None
    assert isinstance(mask, ObjectPrompt) and mask.box is None and mask.points == ()


def test_only_prompted_objects_count_against_the_capacity() -> None:
    assert codes(*[by_rle(square())] * 4) == [Code.OK] * 3 + [Code.CAPACITY_EXCEEDED]
    assert codes(by_rle(square(), track_id=3), *[by_rle(square())] * 3) == [Code.OK] * 4


def test_number_of_prompts() -> None:
    check_count([1, 2], 2)
    with pytest.raises(Refusal, match="3 prompts") as caught:
        check_count([1, 2, 3], 2)
    assert caught.value.code == Code.TOO_MANY
    with pytest.raises(Refusal) as caught:
        check_count([], 2)
    assert caught.value.code == Code.EMPTY_MASK


def test_all_or_nothing_leaves_no_ok() -> None:
    good, bad = ObjectPrompt(square()), Refusal(Code.UNKNOWN_ID, "no live object has id 9")
    together = outcomes_if_refused([good, bad], all_or_nothing=True)
    assert [o.code for o in together if o] == [Code.UNKNOWN_ID] * 2
    assert all(o is not None and o.track_id == 0 and math.isnan(o.iou_with_prompt) for o in together)
    assert outcomes_if_refused([good, bad], all_or_nothing=False)[0] is None


NUMBER = st.integers(0, 2**32 - 1) | st.integers(0, 20)
ROI = st.builds(roi, NUMBER, NUMBER, NUMBER, NUMBER)
IMAGE = st.builds(
    Message, height=NUMBER, width=NUMBER, step=NUMBER,
    encoding=st.sampled_from(["mono8", "8UC1", "rgb8"]) | st.text(max_size=50), data=st.binary(max_size=300),
)  # fmt: skip
PNG = st.one_of(
    st.binary(max_size=60),
    st.tuples(st.integers(0, 80), st.binary(max_size=9)).map(
        lambda at: bytes(d := bytearray(by_png(square().astype(np.uint8)).png.data)[: at[0]] + at[1]) + bytes(d)
    ),
)
ANY = st.builds(
    prompt,
    name=st.text(max_size=300), track_id=NUMBER, type=st.integers(0, 255) | st.integers(0, 4), mask=IMAGE,
    rle=st.builds(Message, roi=ROI, runs=st.lists(NUMBER, max_size=30).map(lambda v: array.array("I", v))),
    png=st.builds(Message, format=st.text(max_size=20), data=PNG), box=ROI,
    point_x=st.lists(NUMBER, max_size=5), point_y=st.lists(NUMBER, max_size=5),
    point_labels=st.lists(st.integers(-128, 127), max_size=5),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(ANY, max_size=4))
def test_any_request_gives_masks_or_refusals(messages: list[Message]) -> None:
    checked = check_prompts(messages, SCENE)
    assert len(checked) == len(messages)
    for entry in checked:
        if isinstance(entry, Refusal):
            assert entry.code not in (Code.OK, Code.INTERNAL_ERROR) and entry.message
        else:
            assert entry.mask.shape == (H, W) and entry.mask.dtype == np.bool_ and entry.mask.sum() >= 2
