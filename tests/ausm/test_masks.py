"""Run lengths, label maps and palette PNG files."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from ausm import masks
from ausm.errors import AusmError, EmptyMaskError, ImageError, SizeError
from ausm.masks import Box, box_of, decode_rle, encode_rle, label_map

ANY_MASK = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(ANY_MASK)
def test_rle_round_trip(mask: np.ndarray) -> None:
    box, runs = encode_rle(mask)
    assert np.array_equal(decode_rle(box, runs, *mask.shape), mask)
    assert sum(runs) == box.width * box.height
    assert all(run > 0 for run in runs[1:]) and all(type(run) is int for run in runs)


@given(ANY_MASK)
def test_box_is_the_smallest(mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    box = box_of(mask)
    if not len(rows):
        assert box == Box(0, 0, 0, 0)
        return
    assert (box.y, box.y + box.height - 1) == (rows.min(), rows.max())
    assert (box.x, box.x + box.width - 1) == (columns.min(), columns.max())


def test_rle_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2:4] = mask[2, 3] = True
    assert encode_rle(mask) == (Box(2, 1, 2, 2), [0, 2, 1, 1])
    assert encode_rle(np.zeros((4, 5), bool)) == (Box(0, 0, 0, 0), [])
    assert encode_rle(mask[:, ::-1])[0] == Box(1, 1, 2, 2)  # a view with negative strides


def test_no_runs_is_an_empty_mask_whatever_the_box() -> None:
    assert not decode_rle(Box(1, 1, 3, 2), [], 4, 5).any()
    assert decode_rle(Box(0, 0, 5, 4), np.array([0, 20], np.uint32), 4, 5).all()


@pytest.mark.parametrize(
    ("box", "runs", "size", "words"),
    [
        ((0, 0, 6, 4), [24], (4, 5), "outside the image of 4x5"),
        ((-1, 0, 2, 2), [4], (4, 5), "outside"),
        ((2**40, 0, 2**40, 1), [1], (4, 5), "outside"),
        ((0, 0, 2, 2), [1, 2], (4, 5), "sum to 3, the box has 4"),
        ((0, 0, 2, 2), [1, 2, 2], (4, 5), "sum to 5, the box has 4"),
        ((0, 0, 2, 2), [5, -1], (4, 5), "run of -1"),
        ((0, 0, 2, 2), [2**64, 4], (4, 5), "run|integers"),
        ((0, 0, 2, 2), [2**63 + 4, 2**63], (4, 5), "run"),
        ((0, 0, 2, 2), np.array([2**32 - 1, 5], np.uint32), (4, 5), "4294967295"),
        ((0, 0, 2, 2), [1, 0, 3], (4, 5), "run 1 is 0"),
        ((0, 0, 2, 2), [1.0, 3.0], (4, 5), "integers"),
        ((0, 0, 2, 2), [[1, 3]], (4, 5), "integers"),
        ((0, 0, 2, 2), [1] * 100_000, (4, 5), "100000 runs"),
        ((0, 0, 0, 0), [0], (4, 5), None),
        ((0, 0, 0, 0), [1], (4, 5), "1 pixels in a box of 0"),
        ((0, 0, 2, 2), [4], (0, 5), "0x5"),
        ((0, 0, 2, 2), [4], (2**31, 2**31), "must be 1 to"),
    ],
)
def test_malformed_runs_are_refused_with_numbers(box, runs, size, words: str | None) -> None:
    if words is None:
        assert not decode_rle(box, runs, *size).any()
        return
    with pytest.raises(AusmError, match=words):
        decode_rle(box, runs, *size)


@given(st.lists(st.integers(-3, 2**33), max_size=6), st.tuples(*[st.integers(-2, 9)] * 4))
def test_decoding_never_fails_in_another_way(runs: list[int], box: tuple[int, int, int, int]) -> None:
    try:
        mask = decode_rle(box, runs, 7, 6)
    except AusmError:
        return
    assert mask.shape == (7, 6) and mask.sum() == sum(runs[1::2])


def test_fifteen_objects_of_a_720p_image_in_time() -> None:
    rows, columns = np.ogrid[:720, :1280]
    objects = [(rows - 300) ** 2 + (columns - 60 * i) ** 2 < (80 + 9 * i) ** 2 for i in range(1, 16)]
    times = []
    for _ in range(5):
        start = time.thread_time()  # others of the machine are not counted
        for mask in objects:
            encode_rle(mask)
        times.append(time.thread_time() - start)
    assert min(times) < 0.05  # 3 ms on a quiet core; per pixel Python would take 10 s


def test_masks_of_other_types_are_refused() -> None:
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), bool), [[True]]):
        with pytest.raises(SizeError, match=r"\(H, W\) array of bool"):
            encode_rle(wrong)


def test_label_map_higher_score_wins_and_ties_keep_the_first() -> None:
    full, half = np.ones((2, 2), bool), np.array([[True, False], [True, False]])
    assert label_map([full, half], [7, 300], [0.5, 0.9]).tolist() == [[300, 7], [300, 7]]
    assert label_map([full, half], [7, 300], [0.9, 0.5]).tolist() == [[7, 7], [7, 7]]
    assert label_map([half, full], [1, 2], [0.5, 0.5]).tolist() == [[1, 2], [1, 2]]
    assert label_map([], [], [], size=(2, 3)).shape == (2, 3)
    with pytest.raises(AusmError, match="65536"):
        label_map([full], [65536], [1.0])
    with pytest.raises(SizeError, match="2x2"):
        label_map([np.ones((3, 3), bool), full], [1, 2], [1.0, 1.0])


def test_palette_is_the_one_of_davis() -> None:
    first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert masks.PALETTE[:7].tolist() == first
    assert masks.PALETTE[[8, 255]].tolist() == [[64, 0, 0], [224, 224, 192]]


def test_palette_png_round_trip(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint16).reshape(8, 32)
    masks.write_palette_png(tmp_path / "a.png", labels)
    assert np.array_equal(masks.read_palette_png(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.getpalette() == masks.PALETTE.ravel().tolist()
    with pytest.raises(AusmError, match=r"0\.\.256: a palette PNG holds 0\.\.255"):
        masks.write_palette_png(tmp_path / "b.png", np.array([[0, 256]]))


def test_prompt_png_values(tmp_path: Path) -> None:
    masks.write_palette_png(tmp_path / "ids.png", np.array([[0, 3, 1], [0, 3, 3]]))
    found, values = masks.read_prompt_png(tmp_path / "ids.png")
    assert values == [1, 3] and found.sum(axis=(1, 2)).tolist() == [1, 3]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "binary.png")
    found, values = masks.read_prompt_png(tmp_path / "binary.png")
    assert values == [1] and found.tolist() == [[[False, True]]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    assert masks.read_prompt_png(tmp_path / "bit.png")[1] == [1]


def test_a_soft_mask_is_not_254_objects(tmp_path: Path) -> None:
    Image.fromarray(np.arange(255, dtype=np.uint8)[None]).save(tmp_path / "soft.png")
    with pytest.raises(AusmError, match=r"254 different values: each is an object\. Is this a soft mask\?"):
        masks.read_prompt_png(tmp_path / "soft.png")
    Image.fromarray(np.arange(101, dtype=np.uint8)[None]).save(tmp_path / "many.png")
    assert masks.read_prompt_png(tmp_path / "many.png")[1] == list(range(1, 101))


def test_bad_mask_files(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("no image")
    masks.write_palette_png(tmp_path / "good.png", np.ones((64, 64), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-60])
    masks.write_palette_png(tmp_path / "empty.png", np.zeros((4, 4), np.uint8))
    for name, words in (
        ("rgb.png", "mode RGB"),
        ("text.png", "text.png"),
        ("none.png", r"none\.png: no such file"),
        ("cut.png", "cut"),
    ):
        with pytest.raises(ImageError, match=words):
            masks.read_palette_png(tmp_path / name)
    with pytest.raises(EmptyMaskError, match="16 pixels"):
        masks.read_prompt_png(tmp_path / "empty.png")
