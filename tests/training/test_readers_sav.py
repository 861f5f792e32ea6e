"""SA-V: videos with a json of run lengths (train), images with a PNG an object (val)."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from layouts import SIZE, box, frame_number, image_of, runs_of, write_image, write_palette
from PIL import Image

from training import readers_sav
from training.clips import ClipDataError
from training.readers import get_object


def write_sav(folder: Path, frames: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(folder / "sav_000001.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 24, SIZE[::-1])
    for number in range(frames):
        writer.write(cv2.cvtColor(image_of(number), cv2.COLOR_RGB2BGR))
    writer.release()
    masks = [[runs_of(box(0, 0, 9, 5 + row)), runs_of(box(0, 0, 4, 4)) if row else None] for row in range(3)]
    (folder / "sav_000001_manual.json").write_text(json.dumps({"video_id": "sav_000001", "masklet": masks}))


@pytest.mark.parametrize("extracted", [False, True])
def test_sav_train_takes_every_fourth_frame_of_the_video(tmp_path: Path, extracted: bool) -> None:
    folder = tmp_path / "sav_train" / "sav_000"
    write_sav(folder)
    if extracted:
        (folder / "sav_000001.mp4").unlink()
        for number in range(9):
            write_image(folder / "sav_000001" / f"{number:05d}.jpg", number)
    reader = readers_sav.sav(tmp_path)
    assert reader.item_name(0) == "sav_000001" and reader.length(0) == 3
    raw = reader.load(0, [2, 0])
    assert [frame_number(image) for image in raw.images] == [8, 0]
    assert np.array_equal(get_object(raw.bits[0], 0), box(0, 0, 9, 7))
    assert np.array_equal(get_object(raw.bits[0], 1), box(0, 0, 4, 4))  # inside the other: both kept
    assert not get_object(raw.bits[1], 1).any()


def test_sav_train_broken_video_is_named(tmp_path: Path) -> None:
    write_sav(tmp_path)
    (tmp_path / "sav_000001.mp4").write_bytes(b"")
    with pytest.raises(ClipDataError, match=r"sav_000001\.mp4"):
        readers_sav.sav(tmp_path).load(0, [0])


def test_sav_val_reads_one_png_per_object(tmp_path: Path) -> None:
    for number in (0, 4):
        write_image(tmp_path / "JPEGImages_24fps" / "sav_9" / f"{number:05d}.jpg", number)
        write_palette(tmp_path / "Annotations_6fps" / "sav_9" / "000" / f"{number:05d}.png", box(0, 0, 9, 9))
    write_palette(tmp_path / "Annotations_6fps" / "sav_9" / "001" / "00004.png", box(2, 2, 5, 5))
    raw = readers_sav.sav(tmp_path).load(0, [0, 1])
    assert [frame_number(image) for image in raw.images] == [0, 4]
    assert not get_object(raw.bits[0], 1).any()
    assert np.array_equal(get_object(raw.bits[1], 1), box(2, 2, 5, 5))


def test_sav_val_frames_of_two_sizes_are_named(tmp_path: Path) -> None:
    for number in (0, 4):
        write_image(tmp_path / "JPEGImages_24fps" / "sav_9" / f"{number:05d}.jpg", number)
        write_palette(tmp_path / "Annotations_6fps" / "sav_9" / "000" / f"{number:05d}.png", box(0, 0, 9, 9))
    Image.new("RGB", (50, 30)).save(tmp_path / "JPEGImages_24fps" / "sav_9" / "00004.jpg")
    with pytest.raises(ClipDataError, match=r"00004\.jpg: \(30, 50\), the frames before have \(24, 40\)"):
        readers_sav.sav(tmp_path).load(0, [0, 1])
