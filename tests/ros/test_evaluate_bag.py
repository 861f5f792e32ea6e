"""The bag evaluator on small recordings made here: figures, hashes, files, and what can be wrong with a bag."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Instance, InstanceArray
from bag_to_judge import (
    IMAGES,
    PERIOD,
    SIZE,
    START,
    STORE,
    TRUTH,
    TYPES,
    instance_array,
    jpeg,
    label_map,
    one_model,
    raw,
    run,
    square,
    write_bag,
)

import ausm
from ausm import inference
from ausm.bag_masks import TruthReader, find_truth
from ausm.errors import AusmError, InputError, NotFiniteError, SizeError
from ausm.tracks import StepOutput
from ausm_ros import evaluate_bag
from ausm_ros.bag_figures import live_rows
from ausm_ros.bag_hash import hash_of
from ausm_ros.bag_live import score_live
from ausm_ros.demo_report import Recording
from ausm_ros.instance_bag import Received, read_instances
from ausm_ros.messages import to_ns, to_rle, to_time
from ausm_ros.session import Session

__all__ = ["one_model"]  # a fixture: found by its name in this module
pytestmark = pytest.mark.usefixtures("one_model")


class Page(HTMLParser):
    """What a browser would show: headings, number of pictures and drawings, and nothing left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = tag
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._open == "h2" and data.strip():
            self.headings.append(data)
        self._open = ""


def test_prompted_by_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, out = write_bag(tmp_path / "bag"), tmp_path / "out"
    code, text, err = run(capsys, bag, "--out", out, "--prompt-truth")
    assert code == 0
    assert "5/5" in err  # progress
    line = json.loads(text.splitlines()[-1])
    report = json.loads((out / "report.json").read_text())
    assert report["summary"] == {k: v for k, v in line.items() if k != "out"}
    assert line["frames"] == 5 and line["tracks"] == line["true_tracks"] == 2
    assert line["fps"] > 0 and 0 < line["latency_p50_ms"] <= line["latency_p95_ms"] <= line["latency_p99_ms"]
    assert line["rss_late_bytes"] > 2**20 and line["state_bytes"] > 1000
    assert math.isclose(line["JF"], (line["J"] + line["F"]) / 2, abs_tol=1e-4)
    assert {"HOTA", "IDF1", "MOTA"} <= line.keys() and "AP" not in line
    assert [(r["object"], r["from"], r["frames"]) for r in report["objects"]] == [(3, 0, 4), (9, 2, 2)]
    assert report["frames"]["j"][0] is None  # the prompt itself does not count
    assert report["input"]["truth_topic"] == TRUTH and report["input"]["topic"] == IMAGES
    assert line["hash"] in text.splitlines()[-3]  # the table shows what the JSON says

    received = list(read_instances(out / "instances"))
    assert [to_ns(r.message.header.stamp) for r in received] == [START + k * PERIOD for k in range(5)]
    assert {r.message.header.frame_id for r in received} == {"front_optical"}
    assert [i.name for i in received[2].message.instances] == ["truth 3", "truth 9"]
    drawn = {i.track_id: i for i in received[2].message.instances}
    assert drawn[2].area == 12 * 20  # on the frame of its prompt an object has the mask it was given
    assert hash_of(r.message for r in received) == line["hash"]

    page = Page((out / "report.html").read_text())
    assert page.headings == [
        "Scores", "J per frame", "Latency per frame", "Objects per frame", "Ids over time", "Memory", "Worst frames",
        "Tracks", "The same again",
    ]  # fmt: skip
    assert page.tags.count("svg") == 5 and page.tags.count("img") == 4  # 4 frames have a J
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "script" not in page.tags


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_discovery_is_the_same_every_time(
    storage: StoragePlugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", storage=storage, late=2, zipped=storage == StoragePlugin.MCAP)
    lines, masks = [], []
    for _ in range(2):  # into the same folder: the second run replaces the results of the first
        code, text, _ = run(capsys, bag, "--out", tmp_path / "out", "--topic", IMAGES)
        assert code == 0
        lines.append(json.loads(text.splitlines()[-1]))
        found = read_instances(tmp_path / "out" / "instances")
        masks.append([(i.track_id, bytes(i.mask.runs)) for r in found for i in r.message.instances])
    assert lines[0]["hash"] == lines[1]["hash"] and masks[0] == masks[1] and masks[0]
    assert {"AP", "AP50", "HOTA", "IDF1", "MOTA"} <= lines[0].keys() and "JF" not in lines[0]
    assert len((tmp_path / "out" / "report.html").read_text()) > 10_000


def test_precision_is_what_was_asked_for_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 without an option, since what auto chooses is timed; the live node gets the precision of the replay."""
    bag = write_bag(tmp_path / "bag", frames=3)
    lines, pages, plans = {}, {}, []
    torch.set_num_threads(2)
    monkeypatch.setattr(inference, "self_test", lambda model: 9.0)  # auto takes bf16 where the machine has it
    monkeypatch.setattr(evaluate_bag, "run_live", lambda plan, *_: plans.append(plan) or {})
    monkeypatch.setattr(evaluate_bag, "write_page", lambda path, report, *_: pages.update({path: report}))
    for name in ("", "fp32", "bf16", "auto"):
        out = tmp_path / f"out_{name}"
        code, text, _ = run(capsys, bag, "--out", out, "--live", *(["--precision", name] if name else []))
        assert code == 0
        lines[name] = json.loads(text.splitlines()[-1])
        assert f"random:nano on cpu, {lines[name]['precision']}\n" in text
        assert json.loads((out / "report.json").read_text())["model"]["precision"] == lines[name]["precision"]
    assert torch.get_num_threads() == 1  # as --threads says
    chosen = inference.frame_model(ausm.load("nano", device="cpu", weights=False), "auto")[1]
    assert [line["precision"] for line in lines.values()] == ["fp32", "fp32", "bf16", chosen]
    assert lines[""]["hash"] == lines["fp32"]["hash"] != lines["bf16"]["hash"]
    assert [[p for p in plan.parameters if p.startswith("precision:=")] for plan in plans] == [
        ['precision:="fp32"'], ['precision:="fp32"'], ['precision:="bf16"'], [f'precision:="{chosen}"'],
    ]  # fmt: skip


def test_a_model_whose_output_is_not_finite_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Session, output: StepOutput, image: np.ndarray, stamp: int) -> StepOutput:
        raise NotFiniteError(f"frame {output.frame_index}: the model's output is not finite")

    monkeypatch.setattr(Session, "accept", refuse)
    code, text, err = run(capsys, write_bag(tmp_path / "bag"), "--out", tmp_path / "out")
    assert code == 2 and text == ""
    assert err.splitlines()[-1] == "evaluate_bag: error: frame 0: the model's output is not finite"
    assert not (tmp_path / "out" / "instances").exists()


def test_other_pixels_give_another_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = set()
    for name, image in (("raw", raw), ("jpeg", jpeg)):
        bag = write_bag(tmp_path / name, frames=3, image=image)
        _, text, _ = run(capsys, bag, "--out", tmp_path / f"{name}_out", "--prompt-truth")
        hashes.add(json.loads(text.splitlines()[-1])["hash"])
    assert len(hashes) == 2  # JPEG changes the pixels, so it must change the masks


def test_without_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(tmp_path / "bag", truth=None)
    code, text, _ = run(capsys, bag, "--out", tmp_path / "out", "--max-frames", 3)
    line = json.loads(text.splitlines()[-1])
    assert code == 0 and line["frames"] == 3 and "HOTA" not in line
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "Frames" in page.headings and "J per frame" not in page.headings
    assert page.tags.count("img") == 3


def test_instances_as_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(tmp_path / "bag", frames=3, truth=instance_array)
    code, text, _ = run(capsys, bag, "--out", tmp_path / "out", "--truth-topic", TRUTH, "--prompt-truth", "--discover")
    line = json.loads(text.splitlines()[-1])
    assert code == 0 and line["true_tracks"] == 1 and line["objects"] == 1


def corrupt(path: Path) -> Path:
    bag = write_bag(path)
    (bag / f"{path.name}.db3").write_bytes(b"SQLite format 3\0" + bytes(4000))
    return bag


def cut_short(path: Path) -> Path:
    """An mcap whose recorder was killed: the end with its index is gone."""
    bag = write_bag(path, storage=StoragePlugin.MCAP)
    file = bag / f"{path.name}.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bag


def without_images(path: Path) -> Path:
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/text", "std_msgs/msg/String", typestore=get_typestore(Stores.ROS2_JAZZY))
        data = STORE.serialize_cdr(TYPES["std_msgs/msg/String"]("no camera"), "std_msgs/msg/String")
        writer.write(connection, START, data)
    return path


def empty_video(path: Path) -> Path:
    path.with_suffix(".mp4").touch()
    return path.with_suffix(".mp4")


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (corrupt, (), "not a readable rosbag2"),
        (cut_short, (), "not a readable rosbag2"),
        (lambda path: path, (), "no such file"),
        (without_images, (), "Image topics: none"),
        (lambda path: write_bag(path, frames=0), (), "image topics to choose from"),
        (lambda path: write_bag(path, frames=0), ("--topic", IMAGES), "holds no frame"),
        (empty_video, (), "cannot be decoded as a video"),
        (write_bag, ("--topic", "/rear/image"), f"no image topic /rear/image. Image topics: {IMAGES} (5 of Image)"),
        (write_bag, ("--truth-topic", "/rear/truth"), "no truth topic /rear/truth. Topics that may hold masks: /"),
        (lambda path: write_bag(path, truth=lambda k: label_map(k, (32, 48))), (), "is 32x48, the images are 64x96"),
        (lambda path: write_bag(path, truth=lambda k: label_map(k + 100)), (), f"no stamp of {IMAGES} is also one of"),
        (lambda path: write_bag(path, truth=None), ("--prompt-truth",), "--prompt-truth needs true masks"),
        (write_bag, ("--no-discover",), "there is nothing to follow"),
        (write_bag, ("--max-frames", "0"), "at least 1"),
        (write_bag, ("--seed", "-1"), "outside 0"),
    ],
)  # fmt: skip
def test_refusals(make, arguments, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, out = make(tmp_path / "bag"), tmp_path / "out"
    code, text, err = run(capsys, bag, "--out", out, *arguments)
    last = err.splitlines()[-1]
    assert code == 2 and text == ""
    assert last.startswith("evaluate_bag: error: ") and words in last
    assert "Traceback" not in err
    assert not (out / "instances").exists() and not (out / "report.json").exists()


def test_images_that_end_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(number: int):
        message = raw(number)
        if number == 3:
            message.data = message.data[:100]
        return message

    bag = write_bag(tmp_path / "bag", image=lambda number: broken(number), truth=None)
    code, _, err = run(capsys, bag, "--out", tmp_path / "out")
    assert code == 2 and "frame 3" in err.splitlines()[-1]
    assert not (tmp_path / "out" / "instances").exists()


def test_nothing_of_others_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(tmp_path / "instances")
    code, _, err = run(capsys, bag, "--out", tmp_path)
    assert code == 2 and "choose another --out" in err
    other = write_bag(tmp_path / "other")
    code, _, err = run(capsys, other, "--out", tmp_path)
    assert code == 2 and "not of an earlier evaluation" in err
    assert (bag / "metadata.yaml").exists()


def test_truth_is_found_by_its_name_and_stamp(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", late=2)
    assert find_truth(bag) == TRUTH and find_truth(bag, IMAGES) == IMAGES
    reader = TruthReader(bag, TRUTH)
    assert reader.at(START + 17, *SIZE) is None
    first = reader.at(START, *SIZE)
    assert first is not None and list(first) == [3] and np.array_equal(first[3], square(0))
    assert reader.at(START, *SIZE) is None  # handed out once
    third = reader.at(START + 2 * PERIOD, *SIZE)
    assert third is not None and sorted(third) == [3, 9]
    with pytest.raises(SizeError, match="64x96"):
        reader.at(START + 3 * PERIOD, 10, 10)
    with pytest.raises(InputError, match="/text is std_msgs/msg/String, not sensor_msgs"):
        find_truth(without_images(tmp_path / "text"), "/text")


def test_live_images_are_judged_by_the_newest_result(tmp_path: Path) -> None:
    """Of five played images the first and the last are processed; the square moves 4 of its 25 pixels an image."""
    bag = write_bag(tmp_path / "bag")
    stamps = [START + k * PERIOD for k in range(5)]
    played = [10**12 + k * PERIOD for k in range(5)]
    received = []
    for k in (0, 4):
        message = InstanceArray(height=SIZE[0], width=SIZE[1])
        message.header.stamp = to_time(played[k])
        message.instances = [Instance(track_id=1, score=0.9, mask=to_rle(square(k)))]
        received.append(Received("/perception/camera/instances", played[k], message))
    recording = Recording(played, list(range(5)), 0.0, None, received, [], [], [])
    figures = score_live(recording, TruthReader(bag, TRUTH), stamps, SIZE)
    assert figures["true_tracks"] == 2 and figures["predicted_tracks"] == 1
    assert figures["missed"] == 3 + 1  # object 9 on three images, the square where it is 12 pixels late
    assert figures["false"] == 1
    with pytest.raises(AusmError, match="does not go with --prompt-truth"):
        evaluate_bag.run_evaluation(
            evaluate_bag.make_parser().parse_args([str(bag), "--out", str(tmp_path), "--live", "--prompt-truth"])
        )


def test_live_figures_are_in_the_table() -> None:
    live = {"frames_in": 9, "frames_out": 6, "dropped": 3, "why": "slow", "fps_in": 10.0, "fps_out": 6.5, "IDF1": 41.26}
    rows = dict(live_rows({"live": live | {"latency_p50_ms": 120.04, "latency_p95_ms": 200.0}}))
    assert rows["live frames"] == "6 of 9, 3 dropped; slow" and rows["live IDF1"] == "41.3"
    assert rows["live latency"].startswith("120.0 ms median, 200.0 p95") and live_rows({}) == []
