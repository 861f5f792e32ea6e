"""The simulator: frames decided by the seed, exact labels, stores that survive a stop, bags that the readers read."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pybullet", reason="the simulator needs PyBullet")

from ausm.errors import InputError, SizeError
from ausm.io import open_frames
from training import sim_world, simulate
from training.readers_bag import BagReader
from training.readers_sim import sim
from training.sim_backdrop import Surface
from training.sim_camera import Lens, look_at
from training.sim_classes import SIM_CLASS_ID, SIM_CLASSES
from training.sim_clip import HELD_OUT_MESHES, TRAINING_MESHES, Settings, filming, make_clip, scout, stock_of
from training.sim_mesh import box, ellipsoid, read_obj
from training.sim_models import Model, Part
from training.sim_occlusion import target_span
from training.sim_store import SimClips, clip_path, hidden_spans, write_clip
from training.sim_textures import list_photos
from training.sim_world import World, pybullet_data_folder

SMALL = Settings(seed=3, height=64, width=96, frames=4, rate=10.0, scenario="mixed", backgrounds=())
SMALL_AIR = replace(SMALL, scenario="air")


def run(*words: str) -> int:
    parser = ArgumentParser()
    simulate.add_arguments(parser)
    return simulate.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        cv2.imwrite(str(folder / f"{k:02d}.png"), rng.integers(0, 255, (40, 50, 3), np.uint8))
    return folder


def test_development_images_are_no_textures(photos: Path, tmp_path: Path) -> None:
    apart = tmp_path / "development"
    apart.mkdir()
    for name in ("000000000009.jpg", "COCO_train2014_000000000025.jpg"):
        cv2.imwrite(str(photos / name), np.zeros((40, 50, 3), np.uint8))
        cv2.imwrite(str(apart / name), np.zeros((40, 50, 3), np.uint8))
    cv2.imwrite(str(photos / "000000000010.jpg"), np.zeros((40, 50, 3), np.uint8))
    names = [path.name for path in list_photos([photos])]
    assert len(names) == 13 and "000000000010.jpg" in names
    with pytest.raises(InputError, match=r"development holds no photo .* but for development images"):
        list_photos([photos, apart])


def test_a_development_clip_is_known_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rhino").mkdir()
    cv2.imwrite(str(tmp_path / "rhino" / "00000.jpg"), np.zeros((40, 50, 3), np.uint8))
    monkeypatch.chdir(tmp_path / "rhino")
    with pytest.raises(InputError, match="but for development images"):
        list_photos([Path(".")])


@pytest.fixture
def empty_world() -> Iterator[World]:
    with World(np.array([0.0, 0.0, 1.0]), (0.5, 0.5, 0.1), np.ones(3)) as world:
        yield world


@pytest.mark.parametrize("scenario", ["table", "floor", "air"])
def test_the_seed_decides_every_pixel(scenario: str) -> None:
    settings = replace(SMALL, scenario=scenario)
    one, two, other = make_clip(settings, 1), make_clip(settings, 1), make_clip(settings, 2)
    assert len(one.frames) == SMALL.frames
    for a, b in zip(one.frames, two.frames, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert any((a.image != b.image).any() for a, b in zip(one.frames, other.frames, strict=True))
    shown = set(np.unique(np.stack([frame.labels for frame in one.frames])).tolist()) - {0}
    assert shown and shown <= set(one.classes) and set(one.classes.values()) <= set(SIM_CLASSES)


def test_a_mask_is_where_the_camera_model_puts_the_object(empty_world: World) -> None:
    """Independent of the renderer: a ball of radius r at depth z is seen as a disc of radius f tan(asin(r / z))."""
    skin = empty_world.load_texture(np.full((8, 8, 3), 200, np.uint8))
    ball = Model("ball", (Part(ellipsoid((1, 1, 1), 48), (0, 0, 0), 0, 0),), np.zeros((8, 8, 3), np.uint8), False, 1.0)
    at, turn = np.array([0.3, 4.0, 0.9]), np.array([0, 0, 0, 1.0])
    empty_world.add(ball, 0.5, at, turn, skin, None)
    lens, pose = Lens(120, 160, 150.0), look_at(np.array([0, 0, 1.0]), np.array([0, 4.0, 1.0]))
    _, labels = empty_world.render(lens, pose)
    seen = lens.matrix() @ (pose.rotation @ at + pose.translation)
    y, x = np.nonzero(labels == 1)
    assert abs(x.mean() - seen[0] / seen[2]) < 0.3 and abs(y.mean() - seen[1] / seen[2]) < 0.3
    expected = np.pi * (150 * np.tan(np.arcsin(0.5 / np.linalg.norm(at - pose.eye)))) ** 2
    assert abs(labels.astype(bool).sum() - expected) < 0.05 * expected


def test_the_nearer_object_owns_the_pixels(empty_world: World) -> None:
    skin = empty_world.load_texture(np.full((8, 8, 3), 200, np.uint8))
    cube = Model("block", (Part(box((1, 1, 1)), (0, 0, 0), 0, 0),), np.zeros((8, 8, 3), np.uint8), True, 0.5)
    turn = np.array([0, 0, 0, 1.0])
    empty_world.add(cube, 1.0, np.array([0, 6.0, 0]), turn, skin, None)
    empty_world.add(cube, 1.0, np.array([0, 3.0, 0]), turn, skin, None)
    _, labels = empty_world.render(Lens(64, 64, 60.0), look_at(np.zeros(3), np.array([0, 1.0, 0])))
    assert labels[32, 32] == 2 and not (labels == 1).any()


def test_painted_floor_and_rendered_objects_share_one_camera(empty_world: World) -> None:
    """A painted square and a rendered flat plate of the same corners must cover the same pixels."""
    skin = empty_world.load_texture(np.full((8, 8, 3), 200, np.uint8))
    plate = Model("block", (Part(box((2, 2, 0.001)), (0, 0, 0), 0, 0),), np.zeros((8, 8, 3), np.uint8), True, 0.0)
    empty_world.add(plate, 1.0, np.array([0.2, 4.0, 0.0]), np.array([0, 0, 0, 1.0]), skin, None)
    lens, pose = Lens(480, 640, 520.0), look_at(np.array([0.5, 0, 2.0]), np.array([0, 4.0, 0.2]), 0.2)
    _, labels = empty_world.render(lens, pose)
    texture = np.full((8, 8, 3), 255, np.uint8)
    corner, u, v = np.array([-0.8, 3.0, 0]), np.array([2.0, 0, 0]), np.array([0, 2.0, 0])
    painted = Surface(corner, u, v, texture, (1, 1)).paint(np.zeros((480, 640, 3), np.uint8), lens, pose)
    assert painted is not None
    plate_seen = labels > 0
    offset = np.mean(np.nonzero(painted), axis=1) - np.mean(np.nonzero(plate_seen), axis=1)
    assert np.abs(offset).max() < 0.15  # pixels
    assert (painted & plate_seen).sum() / (painted | plate_seen).sum() > 0.98  # OpenCV fills the border pixels too


def test_every_random_mesh_of_both_splits_can_be_read() -> None:
    folder = pybullet_data_folder() / "random_urdfs"
    for k in (TRAINING_MESHES[0], TRAINING_MESHES[1], *HELD_OUT_MESHES):
        mesh = read_obj(folder / f"{k:03d}" / f"{k:03d}.obj")
        assert len(mesh.vertices) == len(mesh.uv) == len(mesh.normals) and len(mesh.vertices) % 3 == 0
        assert abs(np.linalg.norm(mesh.vertices, axis=1).max() - 1) < 1e-6
    assert TRAINING_MESHES[1] < HELD_OUT_MESHES[0]


def test_held_out_scenes_share_nothing_with_the_others(photos: Path) -> None:
    usual = stock_of(replace(SMALL, backgrounds=(str(photos),)))
    apart = stock_of(replace(SMALL, backgrounds=(str(photos),), held_out=True))
    assert usual.bank.photos and apart.bank.photos
    assert not set(usual.bank.photos) & set(apart.bank.photos)
    assert len(usual.bank.photos) + len(apart.bank.photos) == 12
    assert usual.objects == TRAINING_MESHES and apart.objects == HELD_OUT_MESHES


def test_a_scene_is_drawn_alike_at_every_size() -> None:
    """`scout` looks at a small film; it must show what the large one shows."""
    large = replace(SMALL_AIR, height=192, width=288)
    with filming(SMALL_AIR, 5) as film:
        small = [frame.labels for frame in film.frames]
    with filming(large, 5) as film:
        for little, frame in zip(small, film.frames, strict=True):
            big = cv2.resize(frame.labels, (96, 64), interpolation=cv2.INTER_NEAREST)
            assert (big == little).mean() > 0.97
    assert make_clip(SMALL_AIR, 5).about["seed"][-1] == scout(large, 5)


@pytest.mark.parametrize("scenario", ["occlusion", "passing"])
def test_occlusion_hides_the_target_and_brings_it_back(scenario: str) -> None:
    settings = Settings(11, 64, 112, 60, 10.0, scenario, ())
    clip = make_clip(settings, 0)
    labels = np.stack([frame.labels for frame in clip.frames])
    start, stop = clip.about["hidden"]
    assert 5 <= stop - start <= 30 and clip.about["target"] == 1
    assert not (labels[start:stop] == 1).any()
    assert (labels[start - 1] == 1).any() and (labels[stop] == 1).any()


def test_what_passes_is_larger_than_what_it_hides_and_leaves() -> None:
    clip = make_clip(Settings(12, 64, 112, 60, 10.0, "passing", ()), 0)
    assert clip.about["way"] == "passing"
    labels = np.stack([frame.labels for frame in clip.frames])
    target, passer = ((labels == k).sum(axis=(1, 2)) for k in (1, 2))
    assert passer.max() > 1.5 * target.max() > 0
    centre = [float(np.nonzero(m == 2)[1].mean()) for m in labels if (m == 2).any()]
    assert abs(centre[-1] - centre[0]) > 112 / 4, "it goes across the view"


def test_hidden_spans_and_the_target_span() -> None:
    seen = np.zeros((30, 2, 2), np.uint8)
    seen[2:10, 0, 0] = seen[17:30, 1, 1] = 1
    seen[20] = 0
    assert hidden_spans(seen, 1) == [(10, 17), (20, 21)]
    assert hidden_spans(seen, 2) == []
    assert target_span(seen) == (10, 17)
    assert target_span(seen[:20]) is None, "three frames after the absence are too few to judge by"


def test_clips_go_to_disk_and_back(tmp_path: Path) -> None:
    clip = make_clip(SMALL, 0)
    images, labels = [f.image for f in clip.frames], [f.labels for f in clip.frames]
    write_clip(clip_path(tmp_path, 7), images, labels, {"classes": clip.classes, "rate": 10.0})
    store = SimClips(tmp_path)
    assert len(store) == 1 and store.length(0) == 4
    got, maps, classes = store.load(0, 1, 2, 2)
    np.testing.assert_array_equal(maps, np.stack(labels)[[1, 3]])
    assert got.shape == (2, 64, 96, 3) and got.dtype == np.uint8 and got.flags.c_contiguous
    for k, frame in enumerate((images[1], images[3])):  # RGB, not BGR: a swap would differ by far more
        assert np.abs(got[k].astype(int) - frame).mean() < 8
    assert classes == {k: SIM_CLASS_ID[name] for k, name in clip.classes.items()}
    for start, length, stride in ((0, 5, 1), (-1, 1, 1), (0, 0, 1), (0, 3, 2)):
        with pytest.raises(InputError, match="asked of 4 frames"):
            store.load(0, start, length, stride)
    damaged = clip_path(tmp_path, 7)
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match="clip_00000007"):
        SimClips(tmp_path).load(0, 0, 1, 1)
    damaged.unlink()
    with pytest.raises(InputError, match="holds no simulated clip"):
        SimClips(tmp_path)


def test_a_stopped_set_is_finished_and_read_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clips"
    words = ("--out", str(out), "--frames", "5", "--clip-length", "2", "--size", "32x48", "--seed", "5")
    assert run(*words) == 0
    assert [path.name for path in sorted(out.glob("*.npz"))] == [f"clip_{k:08d}.npz" for k in range(3)]
    before = {path.name: path.read_bytes() for path in out.glob("*.npz")}
    assert run(*words) == 2 and "--resume" in capsys.readouterr().err
    clip_path(out, 1).unlink()
    (out / "clip_00000001.1.part").write_bytes(b"left by a stopped run")
    assert run(*words, "--resume") == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.npz")} == before
    assert not list(out.glob("*.part"))
    assert run(*words[:-1], "6", "--resume") == 2 and "'seed'" in capsys.readouterr().err
    raw = sim(out).load(0, [1, 0])
    assert len(raw.images) == 2 and sim(out).length(0) == 2


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_a_bag_is_read_as_frames_and_as_training_video(tmp_path: Path, storage: str) -> None:
    out = tmp_path / "bag"
    words = ("--out", str(out), "--seconds", "0.5", "--rate", "10", "--size", "64x96", "--seed", "4")
    assert run(*words, "--storage", storage, "--scenario", "air") == 0
    settings = Settings(4, 64, 96, 5, 10.0, "air", ())
    with filming(settings, 0, scout(settings, 0)) as film:
        truth = list(film.frames)
        classes = film.classes
    source = open_frames(out)
    assert source.topic == "/camera/image_raw" and len(source) == 5
    for frame, (image, _) in zip(source, truth, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    reader = BagReader(out, exhaustive=True)
    assert reader.length(0) == 5
    labels = label_maps(out)
    for got, (_, expected) in zip(labels, truth, strict=True):
        np.testing.assert_array_equal(got, expected)
    seen = set(np.unique(np.stack(labels)).tolist()) - {0}
    assert len(reader.load(0, range(5)).class_ids) == len(seen)
    meaning = json.loads(texts(out)[0])
    assert {int(k): v["class_name"] for k, v in meaning.items()} == classes


def texts(bag: Path) -> list[str]:
    return [message.data for message in messages(bag, "/camera/truth/labels")]


def label_maps(bag: Path) -> list[np.ndarray]:
    found = messages(bag, "/camera/truth/label_map")
    assert all(m.encoding == "mono16" and m.step == 2 * m.width for m in found)
    return [np.asarray(m.data).view("<u2").reshape(m.height, m.width) for m in found]


def messages(bag: Path, topic: str) -> list[Any]:
    from rosbags.rosbag2 import Reader
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(bag) as reader:
        chosen = [c for c in reader.connections if c.topic == topic]
        return [store.deserialize_cdr(data, c.msgtype) for c, _, data in reader.messages(chosen)]


def test_what_exists_is_only_replaced_when_asked_and_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bag"
    words = ("--out", str(out), "--seconds", "0.1", "--rate", "10", "--size", "32x48", "--scenario", "air")
    assert run(*words) == 0
    assert run(*words) == 2 and "--force" in capsys.readouterr().err
    assert run(*words, "--force") == 0
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    assert run("--out", str(other), "--force") == 2 and "metadata.yaml" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--size", "640"), "HEIGHTxWIDTH"),
        (("--size", "65x96"), "even"),
        (("--size", "64x9000"), "4096"),
        (("--seconds", "0"), "0 frames"),
        (("--rate", "-3"), "-3"),
        (("--rate", "0"), "0"),
        (("--seed", "-1"), "-1"),
        (("--frames", "0"), "--frames 0"),
        (("--backgrounds", "/nowhere/photos"), "/nowhere/photos"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str
) -> None:
    out = tmp_path / "bag"
    assert run("--out", str(out), *words) == 2
    assert part in capsys.readouterr().err
    assert not out.exists()


def test_without_pybullet_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(sim_world.SimulatorError, match="pip install pybullet"):
        sim_world.import_pybullet()
    assert run("--out", str(tmp_path / "bag")) == 2 and "pybullet" in capsys.readouterr().err


def test_a_size_is_height_first() -> None:
    assert simulate.parse_size("480x640") == (480, 640)
    with pytest.raises(SizeError):
        simulate.parse_size("480x")
