"""Folders of images and palette PNG files: DAVIS, MOSE, YouTube-VOS."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import box, frame_number, write_image, write_palette, write_sequence
from PIL import Image

from training import readers_folders
from training.clips import ClipDataError
from training.readers import get_object


def check_two_objects(reader: readers_folders.FolderReader, frames: list[int], numbers: list[int]) -> None:
    raw = reader.load(0, frames)
    assert [frame_number(image) for image in raw.images] == numbers
    assert raw.class_ids.tolist() == [-1, -1] and reader.head == "" and not reader.exhaustive
    for bits, number in zip(raw.bits, numbers, strict=True):
        assert np.array_equal(get_object(bits, 0), box(12, 0, 20, 9))  # value 1; 255 is no object
        assert np.array_equal(get_object(bits, 1), box(2, number, 8, number + 6))


@pytest.mark.parametrize("level", ["", "480p"])
def test_davis_2016(tmp_path: Path, level: str) -> None:
    for video in ("bear", "soccerball", "mallard-fly"):
        for number in range(3):
            write_image(tmp_path / "JPEGImages" / level / video / f"{number:05d}.jpg", number)
            path = tmp_path / "Annotations" / level / video / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(box(1, 1, 9, 9 + number), 200, 0).astype(np.uint8)).save(path)
    reader = readers_folders.davis2016(tmp_path)
    assert [reader.item_name(item) for item in range(len(reader))] == ["bear"]  # the others are held out
    raw = reader.load(0, [2, 0])
    assert [frame_number(image) for image in raw.images] == [2, 0]
    assert np.array_equal(get_object(raw.bits[0], 0), box(1, 1, 9, 11)) and len(raw.class_ids) == 1


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("480p/train.txt", [f"/JPEGImages/480p/bear/{i:05d}.jpg /Annotations/480p/bear/{i:05d}.png" for i in range(3)]),
        ("2016/train.txt", ["bear"]),
        ("2017/train.txt", ["bear"]),
        ("2017/val.txt", ["boat"]),
    ],
)
def test_davis_2016_of_the_official_archive_is_its_training_split(tmp_path: Path, file: str, lines: list[str]) -> None:
    for video in ("bear", "blackswan"):  # the second is of the validation split
        write_sequence(tmp_path / "JPEGImages" / "480p", tmp_path / "Annotations" / "480p", video)
    path = tmp_path / "ImageSets" / file
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    if "val" in file:
        with pytest.raises(ClipDataError, match="ImageSets lists no training split"):
            readers_folders.davis2016(tmp_path)
        return
    reader = readers_folders.davis2016(tmp_path)
    assert [reader.item_name(item) for item in range(len(reader))] == ["bear"]


def test_davis_2017_reads_the_split_list(tmp_path: Path) -> None:
    for video in ("dogs", "boat"):
        write_sequence(tmp_path / "JPEGImages" / "480p", tmp_path / "Annotations" / "480p", video)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("dogs\n")
    reader = readers_folders.davis2017(tmp_path)
    assert len(reader) == 1 and reader.item_name(0) == "dogs"
    check_two_objects(reader, [3, 1], [3, 1])


def test_mose_and_excluded_videos(tmp_path: Path) -> None:
    for video in ("0a1b", "77ff"):
        write_sequence(tmp_path / "train" / "JPEGImages", tmp_path / "train" / "Annotations", video)
    reader = readers_folders.mose(tmp_path, exclude=["77ff"])
    assert len(reader) == 1
    check_two_objects(reader, [0, 2], [0, 2])


def test_youtube_vos_serves_the_labelled_frames_only(tmp_path: Path) -> None:
    write_sequence(tmp_path / "train" / "JPEGImages", tmp_path / "train" / "Annotations", "003234", count=11, every=5)
    (tmp_path / "train" / "meta.json").write_text(json.dumps({"videos": {"003234": {"objects": {}}}}))
    reader = readers_folders.youtube_vos(tmp_path)
    assert reader.length(0) == 3
    check_two_objects(reader, [1, 2], [5, 10])
    with pytest.raises(ClipDataError, match="of 3"):
        reader.load(0, [3])


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ClipDataError, match="Annotations"):
        readers_folders.mose(tmp_path)
    write_sequence(tmp_path / "train" / "JPEGImages", tmp_path / "train" / "Annotations", "a")
    reader = readers_folders.mose(tmp_path)
    write_palette(tmp_path / "train" / "Annotations" / "a" / "00001.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(ClipDataError, match=r"00001\.png.*\(24, 40\).*\(5, 5\)"):
        reader.load(0, [1])
    (tmp_path / "train" / "JPEGImages" / "a" / "00002.jpg").unlink()
    with pytest.raises(ClipDataError, match=r"00002\.jpg"):
        readers_folders.mose(tmp_path).load(0, [2])
