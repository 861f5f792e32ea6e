"""Readers of the official layouts, each on a tiny copy of the layout written here."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ausm.config import swin_t
from training import readers_folders, readers_sav, readers_ytvis
from training.clips import ClipDataError
from training.data_config import load_data_config, parse_data_config
from training.readers import HELD_OUT, ByteCache, bits_of_labels, channels, get_object, read_labels, set_object
from training.readers_coco import CocoReader, decode_runs, mask_of
from training.readers_sim import SimReader

SIZE = (24, 40)  # (H, W)


def image_of(number: int) -> np.ndarray:
    """A flat picture that says which frame it is, and survives JPEG."""
    return np.full((*SIZE, 3), (10 + 20 * number, 200, 90), np.uint8)


def write_image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(number)).save(path, quality=95)


def write_palette(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette([v for i in range(256) for v in (i, 255 - i, (7 * i) % 256)])
    picture.save(path)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def runs_of(mask: np.ndarray) -> dict[str, object]:
    """Plain COCO run lengths: column-major, background first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def frame_number(image: np.ndarray) -> int:
    return round((float(image[..., 0].mean()) - 10) / 20)


# --- bit maps and run lengths ---------------------------------------------------------------------------------------


def test_bit_maps_keep_overlapping_objects_across_channels() -> None:
    bits = np.zeros((*SIZE, channels(40)), np.int32)
    assert bits.shape[2] == 2
    for index in range(40):
        set_object(bits, index, box(0, index % 20, 24, index % 20 + 5))
    for index in range(40):
        assert np.array_equal(get_object(bits, index), box(0, index % 20, 24, index % 20 + 5))
    labels = np.zeros(SIZE, np.uint8)
    labels[3:5], labels[7:9] = 4, 200
    assert np.array_equal(get_object(bits_of_labels(labels, [4, 200]), 1), labels == 200)


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


# --- COCO -----------------------------------------------------------------------------------------------------------


def write_coco(root: Path) -> Path:
    images = []
    for number in (9, 500, 501, 502):  # 9 is in the development set
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": SIZE[0], "width": SIZE[1]})
        write_image(root / "images" / f"{number:012d}.jpg")
    square = [[4, 3, 14, 3, 14, 9, 4, 9]]
    annotations = [
        {"id": 1, "image_id": 500, "category_id": 90, "iscrowd": 0, "area": 60, "segmentation": square},
        {
            "id": 2,
            "image_id": 500,
            "category_id": 1,
            "iscrowd": 0,
            "area": 240,
            "segmentation": runs_of(box(0, 0, 24, 10)),
        },
        {"id": 3, "image_id": 501, "category_id": 1, "iscrowd": 1, "area": 9, "segmentation": runs_of(box(0, 0, 3, 3))},
        {"id": 4, "image_id": 9, "category_id": 1, "iscrowd": 0, "area": 60, "segmentation": square},
    ]
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 7, "name": "train"}]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


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


def test_coco_without_exhaustive_labels_skips_empty_images_and_classes(tmp_path: Path) -> None:
    reader = CocoReader(write_coco(tmp_path), tmp_path / "images", exhaustive=False, classes=False)
    assert [reader.item_name(item) for item in range(len(reader))] == ["000000000500"]
    assert reader.head == "" and reader.load(0, [0]).class_ids.tolist() == [-1, -1]


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


# --- folders: DAVIS, MOSE, YouTube-VOS ------------------------------------------------------------------------------


def write_sequence(images: Path, labels: Path, video: str, count: int = 4, every: int = 1) -> None:
    for number in range(count):
        write_image(images / video / f"{number:05d}.jpg", number)
        if number % every == 0:
            label = np.where(box(2, number, 8, number + 6), 3, 0) + np.where(box(12, 0, 20, 9), 1, 0)
            label[0] = 255
            write_palette(labels / video / f"{number:05d}.png", label)


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


def test_colour_label_maps_are_refused(tmp_path: Path) -> None:
    Image.fromarray(image_of(1)).save(tmp_path / "map.png")
    with pytest.raises(ClipDataError, match=r"map\.png.*palette"):
        read_labels(tmp_path / "map.png")


# --- YouTube-VIS, OVIS ----------------------------------------------------------------------------------------------


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


# --- SA-V -----------------------------------------------------------------------------------------------------------


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


# --- simulated clips ------------------------------------------------------------------------------------------------


class Store:
    """Ten frames; object 7 (class 2) is wherever the frame number says."""

    def __len__(self) -> int:
        return 3

    def length(self, item: int) -> int:
        return 10

    def load(self, item: int, start: int, length: int, stride: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
        numbers = range(start, start + length * stride, stride)
        if numbers[-1] >= 10:
            raise IndexError(numbers[-1])
        labels = np.stack([np.where(box(0, number, 5, number + 3), 7, 0) for number in numbers]).astype(np.uint8)
        return np.stack([image_of(number) for number in numbers]), labels, {7: 2}


@pytest.mark.parametrize("frames", [[0, 3, 6, 9], [8, 6, 4], [5], [4, 4, 4], [7, 9, 8, 7]])
def test_simulated_clips_in_any_order(frames: list[int]) -> None:
    reader = SimReader(Store(), exclude=["0"])
    assert len(reader) == 2 and reader.item_name(0) == "1" and reader.exhaustive and reader.head == "sim"
    raw = reader.load(0, frames)
    assert [frame_number(image) for image in raw.images] == frames
    assert raw.class_ids.tolist() == [2]
    for bits, number in zip(raw.bits, frames, strict=True):
        assert np.array_equal(get_object(bits, 0), box(0, number, 5, number + 3))


# --- what may never be trained on, the cache, the configuration -----------------------------------------------------


def test_held_out_names() -> None:
    davis = {"car-turn", "mallard-water", "lucia", "rhino", "horsejump-low", "soccerball", "mallard-fly"}
    assert HELD_OUT["davis"] == davis
    assert len(HELD_OUT["coco"]) == 50
    assert {"000000000009", "000000000338"} <= HELD_OUT["coco"] and "000000000357" not in HELD_OUT["coco"]


def test_cache_stays_below_its_limit(tmp_path: Path) -> None:
    cache = ByteCache(limit=250)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    for name in "abcab":
        assert cache.read(tmp_path / name) == name.encode() * 100
        assert cache.used <= 250
    (tmp_path / "b").unlink()
    assert cache.read(tmp_path / "b")[:1] == b"b"  # still in memory
    with pytest.raises(ClipDataError, match="d"):
        cache.read(tmp_path / "d")


def test_data_config_opens_sources_with_overrides(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    write_sequence(tmp_path / "mose" / "train" / "JPEGImages", tmp_path / "mose" / "train" / "Annotations", "a")
    (tmp_path / "data.toml").write_text(
        '[[source]]\nkind = "coco"\nroot = "coco"\nannotations = "instances.json"\nweight = 0.25\nhead = ""\n'
        'exhaustive = false\npaste = 0.1\n[[source]]\nkind = "mose"\nname = "m"\nroot = "mose"\nexhaustive = true\n'
    )
    first, second = load_data_config(tmp_path / "data.toml")
    assert (first.weight, first.paste, first.reader.head, first.reader.exhaustive) == (0.25, 0.1, "", False)
    assert (second.weight, second.paste, second.reader.name, second.reader.exhaustive) == (1.0, None, "m", True)
    assert len(first.reader) == 1  # image 9 is held out here too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one or more"),
        ("[[source]]\nkind = 'coco'\n", r"\[\[source\]\] 1.*missing keys \['root'\]"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nwieght = 1\n", r"unknown keys \['wieght'\]"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nweight = 'much'\n", "weight = 'much'"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nweight = -1\n", "weight -1"),
        ("[[source]]\nkind = 'imagenet'\nroot = 'x'\n", "kind 'imagenet': known are"),
        ("[[source]\n", r"data\.toml"),
    ],
)
def test_data_config_errors_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(ClipDataError, match=message):
        load_data_config(tmp_path / "data.toml")


def test_the_example_configuration_is_valid() -> None:
    configs = parse_data_config(Path(__file__).parents[2] / "config" / "data_example.toml")
    assert [config.kind for config in configs] == ["coco", "coco", "davis2016", "sim"]
