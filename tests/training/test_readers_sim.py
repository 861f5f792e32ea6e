"""Simulated clips: frames in any order out of strided reads."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pytest
from layouts import box, frame_number, image_of

from training.clips import ClipDataError
from training.readers import KnowsAbsences, get_object
from training.readers_sim import SimReader, sim
from training.sim_store import write_clip


class Store:
    """Ten frames; object 7 (class 2) is wherever the frame number says."""

    def __len__(self) -> int:
        return 3

    def name(self, item: int) -> str:
        return str(item)

    def length(self, item: int) -> int:
        return 10

    def meta(self, item: int) -> dict[str, Any]:
        return {"hidden": [2, 6], "target": 7} if item == 2 else {}

    def load(self, item: int, start: int, length: int, stride: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
        numbers = range(start, start + length * stride, stride)
        if numbers[-1] >= 10:
            raise IndexError(numbers[-1])
        labels = np.stack([np.where(box(0, number, 5, number + 3), 7, 0) for number in numbers]).astype(np.uint8)
        return np.stack([image_of(number) for number in numbers]), labels, {7: 2, 3: 1}


@pytest.mark.parametrize("frames", [[0, 3, 6, 9], [8, 6, 4], [5], [4, 4, 4], [7, 9, 8, 7]])
def test_simulated_clips_in_any_order(frames: list[int]) -> None:
    reader = SimReader(Store(), exclude=["0"])
    assert len(reader) == 2 and reader.item_name(0) == "1" and reader.exhaustive and reader.head == "sim"
    raw = reader.load(0, frames)
    assert [frame_number(image) for image in raw.images] == frames
    assert raw.class_ids.tolist() == [1, 2]
    for bits, number in zip(raw.bits, frames, strict=True):
        assert np.array_equal(get_object(bits, 1), box(0, number, 5, number + 3)) and not get_object(bits, 0).any()


def test_absences_are_those_of_the_clips() -> None:
    reader = SimReader(Store(), exclude=["0"])
    assert isinstance(reader, KnowsAbsences)
    assert [reader.absence(item) for item in range(2)] == [None, (2, 6)]


class Damaged(Store):
    """A store whose records cannot be read."""

    def length(self, item: int) -> int:
        raise BadZipFile("no end")

    def meta(self, item: int) -> dict[str, Any]:
        raise KeyError("meta")


def test_a_damaged_clip_is_named() -> None:
    """As ClipDataError, which the loader passes over."""
    reader = SimReader(Damaged(), alone=True)
    for read in (reader.length, reader.absence):
        with pytest.raises(ClipDataError, match="sim/1: "):
            read(1)


def test_a_hidden_object_may_be_the_only_one_labelled() -> None:
    reader = SimReader(Store(), alone=True)
    assert not reader.exhaustive and SimReader(Store()).exhaustive
    raw = reader.load(2, [1, 2])
    assert raw.class_ids.tolist() == [2] and np.array_equal(get_object(raw.bits[0], 0), box(0, 1, 5, 4))
    assert SimReader(Store()).load(2, [1]).class_ids.tolist() == [1, 2]
    with pytest.raises(ClipDataError, match="sim/0: hides no object"):
        reader.load(0, [1, 2])


def test_clips_are_excluded_by_the_number_in_their_name(tmp_path: Path) -> None:
    """Not by their place among those that are there, nor in one sub-folder for another."""
    about = {"rate": 10.0, "kind": "desk", "seed": 1, "classes": {}}
    still = [np.zeros((8, 8, 3), np.uint8)], [np.zeros((8, 8), np.uint8)]
    for folder, number in (("a", 0), ("a", 1), ("a", 3), ("b", 0), ("b", 30)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_clip(tmp_path / folder / f"clip_{number:08d}.npz", *still, about)
    reader = sim(tmp_path, exclude=["a/3", "b/0"])
    assert [reader.item_name(item) for item in range(len(reader))] == ["a/0", "a/1", "b/30"]
    assert [sim(tmp_path / "b", exclude=["30"]).item_name(0)] == ["0"]


def test_an_empty_file_is_a_damaged_clip(tmp_path: Path) -> None:
    """As a power cut leaves it."""
    (tmp_path / "clip_00000004.npz").touch()
    with pytest.raises(ClipDataError, match=r"sim/4: .*clip_00000004"):
        sim(tmp_path).length(0)
