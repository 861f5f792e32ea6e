"""COCO: run lengths and polygons, categories, what is left out, errors that name the file."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import SIZE, box, runs_of, write_coco

from training.clips import ClipDataError
from training.readers import get_object
from training.readers_coco import CocoReader, decode_runs, mask_of


def test_compressed_runs_decode_as_the_official_tool_encodes() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:5], mask[5, 6], mask[0, 0] = True, True, True
    # encoded by pycocotools 2.0
    assert np.array_equal(decode_runs({"size": [6, 7], "counts": "01<2G000:N"}, "here"), mask)
    assert np.array_equal(decode_runs(runs_of(mask), "here"), mask)


@pytest.mark.parametrize(
    "broken", [{"size": [6, 7], "counts": [41]}, {"size": [6]}, {"size": [2, 2], "counts": [5, -1]}]
)
def test_broken_runs_name_their_place(broken: dict[str, object]) -> None:
    with pytest.raises(ClipDataError, match="video 7"):
        decode_runs(broken, "video 7")


def test_polygons_fill_the_pixels_whose_middle_is_inside() -> None:
    square = [4, 3, 14, 3, 14, 9, 4, 9]
    found = mask_of([square, [20, 3, 26, 3, 26, 9, 20, 9]], *SIZE, "here") != 0
    assert np.array_equal(found, box(3, 4, 9, 14) | box(3, 20, 9, 26))
    outside = mask_of([[-9, -9, 60, -9, 60, 60, -9, 60]], *SIZE, "here")
    assert outside.all()


def test_coco_maps_categories_drops_crowds_and_held_out_images(tmp_path: Path) -> None:
    reader = CocoReader(write_coco(tmp_path), tmp_path / "images")
    names = [reader.item_name(item) for item in range(len(reader))]
    assert names == ["000000000500", "000000000502"]  # 9 held out, 501 has a crowd, 502 is pure background
    raw = reader.load(0, [0, 0, 0])
    assert len(raw.images) == 3 and reader.length(0) == 1
    assert raw.class_ids.tolist() == [0, 2]  # person first: the larger; ids 1, 7, 90 -> 0, 1, 2
    assert np.array_equal(get_object(raw.bits[0], 1), box(3, 4, 9, 14))
    assert np.array_equal(get_object(raw.bits[0], 0), box(0, 0, 24, 10))  # overlap is kept
    assert reader.load(1, [0]).class_ids.size == 0
    assert reader.category_names == ("person", "train", "toothbrush")


def test_held_out_images_are_known_by_their_names_of_2014(tmp_path: Path) -> None:
    table = json.loads(write_coco(tmp_path).read_text())
    for image in table["images"]:
        image["file_name"] = f"COCO_train2014_{image['file_name']}"
    (tmp_path / "instances.json").write_text(json.dumps(table))
    reader = CocoReader(tmp_path / "instances.json", tmp_path / "images", exclude=["COCO_train2014_000000000502"])
    assert [reader.item_name(item) for item in range(len(reader))] == ["COCO_train2014_000000000500"]


def test_coco_without_exhaustive_labels_skips_empty_images_and_classes(tmp_path: Path) -> None:
    reader = CocoReader(write_coco(tmp_path), tmp_path / "images", exhaustive=False, classes=False)
    assert [reader.item_name(item) for item in range(len(reader))] == ["000000000500"]
    assert reader.head == "" and reader.load(0, [0]).class_ids.tolist() == [-1, -1]


def test_crowded_reads_what_an_exhaustive_source_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_coco(tmp_path)
    data = json.loads(file.read_text())
    data["annotations"].append(data["annotations"][0] | {"id": 77, "image_id": 501})
    file.write_text(json.dumps(data))
    reader = CocoReader(file, tmp_path / "images", exhaustive=False, crowded=True)
    assert [reader.item_name(item) for item in range(len(reader))] == ["000000000501"]
    assert reader.load(0, [0]).class_ids.tolist() == [2]  # the single object; the crowd itself is none
    with caplog.at_level("INFO"):
        CocoReader(file, tmp_path / "images")
    assert "1 of 3 images have crowd regions" in caplog.text
    with pytest.raises(ClipDataError, match="crowded needs exhaustive = false"):
        CocoReader(file, tmp_path / "images", crowded=True)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    reader = CocoReader(write_coco(tmp_path), tmp_path / "images")
    (tmp_path / "images" / "000000000500.jpg").write_bytes(b"not an image")
    (tmp_path / "images" / "000000000502.jpg").unlink()
    with pytest.raises(ClipDataError, match=r"000000000500\.jpg.*12 bytes"):
        reader.load(0, [0])
    with pytest.raises(ClipDataError, match=r"000000000502\.jpg"):
        reader.load(1, [0])
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(ClipDataError, match=r"instances\.json: lacks"):
        CocoReader(tmp_path / "instances.json", tmp_path / "images")
