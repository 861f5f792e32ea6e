"""YouTube-VIS and OVIS: one json of tracks, with run lengths a frame."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import SIZE, box, frame_number, runs_of, write_image

from ausm.config import swin_t
from training import readers_ytvis
from training.clips import ClipDataError
from training.readers import get_object


def write_ytvis(annotations: Path, images: Path) -> None:
    files = [f"clip_b/{number:05d}.jpg" for number in (0, 5, 10)]
    for number, name in enumerate(files):
        write_image(images / name, number)
    tracks = [
        {
            "id": 1,
            "video_id": 4,
            "category_id": 5,
            "segmentations": [runs_of(box(1, 1, 9, 9)), None, runs_of(box(3, 3, 9, 9))],
        },
        {"id": 2, "video_id": 4, "category_id": 2, "segmentations": [None, runs_of(box(4, 4, 20, 20)), None]},
    ]
    videos = [{"id": 4, "file_names": files, "height": SIZE[0], "width": SIZE[1], "length": 3}]
    categories = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps({"videos": videos, "annotations": tracks, "categories": categories}))


@pytest.mark.parametrize("kind", ["2019", "2021", "ovis"])
def test_youtube_vis_and_ovis(tmp_path: Path, kind: str) -> None:
    if kind == "ovis":
        write_ytvis(tmp_path / "annotations_train.json", tmp_path / "train")
        reader = readers_ytvis.ovis(tmp_path)
    else:
        path = "train.json" if kind == "2019" else "train/instances.json"
        write_ytvis(tmp_path / path, tmp_path / "train" / "JPEGImages")
        reader = readers_ytvis.youtube_vis(tmp_path, int(kind))
    assert reader.head == {"2019": "ytvis19", "2021": "ytvis21", "ovis": "ovis"}[kind] and reader.exhaustive
    assert reader.head in dict(swin_t().heads)  # or its classes would teach nothing
    assert reader.item_name(0) == "clip_b" and reader.length(0) == 3
    raw = reader.load(0, [2, 1])
    assert [frame_number(image) for image in raw.images] == [2, 1]
    assert raw.class_ids.tolist() == [1, 0]
    assert np.array_equal(get_object(raw.bits[0], 0), box(3, 3, 9, 9)) and not get_object(raw.bits[0], 1).any()
    assert np.array_equal(get_object(raw.bits[1], 1), box(4, 4, 20, 20)) and not get_object(raw.bits[1], 0).any()


def test_youtube_vis_with_too_few_masks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    write_ytvis(path, tmp_path / "train" / "JPEGImages")
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentations"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(ClipDataError, match="2 masks for 3 frames"):
        readers_ytvis.youtube_vis(tmp_path, 2019)
