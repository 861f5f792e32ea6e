"""The bare step that the latency of the node is compared with: the node's own settings, prompts and precision."""

import argparse
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import torch

from ausm import inference
from ausm.tracks import Source
from bench import node
from bench.node_rig import Arrival

SIZE = (64, 96)
QUICK = ["--checkpoint", "random:nano", "--device", "cpu", "--short-side", "64", "--size", "64x96", "--threads", "1"]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    node.add_arguments(parser)
    return parser.parse_args([*QUICK, *words])


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_step_has_the_settings_precision_and_prompts_of_the_node(precision: str) -> None:
    image, boxes = node.picture(SIZE), node.place_boxes(SIZE, 3)
    session = node.bare_session(options(), boxes, image, precision)
    stream = session.stream
    assert stream.precision == precision and stream.config.short_side == 64
    assert stream.config.discover and stream.config.prompt_threshold == 0.4
    prompted = [t for t in session.snapshot.tracks if t.source == Source.PROMPT]
    assert len(prompted) == 3
    assert node.bare_step(session, image) > 0 and stream.frame_index == 25


def test_boxes_lie_in_the_image_and_apart() -> None:
    covered = np.zeros((480, 640), int)
    for box in node.place_boxes((480, 640), 3):
        assert box.x >= 0 and box.x + box.width <= 640 and box.y + box.height <= 480
        covered[box.y : box.y + box.height, box.x : box.x + box.width] += 1
    assert covered.max() == 1 and node.place_boxes(SIZE, 0) == []


class FakeRig:
    """In place of the node: answers every image at once and says that its model runs in bf16."""

    def __init__(self, parameters: list[str], log: Any) -> None:
        self.parameters, self.arrivals, self.model = parameters, list[Arrival](), {"precision": "bf16"}
        FakeRig.made = self

    def __enter__(self) -> "FakeRig":
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_for_node(self, image: np.ndarray) -> None: ...

    def wait_until(self, condition: Any, what: str, seconds: float) -> None:
        assert condition()

    def show(self, image: np.ndarray) -> int:
        from ausm_ros.msg import InstanceArray

        stamp = 10**9 * (1 + len(self.arrivals))
        message = InstanceArray()
        message.header.stamp.sec = stamp // 10**9
        self.arrivals.append(Arrival(stamp / 1e9 + 0.08, message))
        return stamp


def test_the_precision_is_the_nodes_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "NodeRig", FakeRig)
    monkeypatch.setattr(node, "prompt_boxes", lambda rig, boxes, image: len(boxes))
    monkeypatch.setattr(node, "time", FakeTime())
    monkeypatch.setattr(inference, "self_test", lambda model: 0.0)  # here auto would take fp32
    asked = []
    bare = node.bare_session
    monkeypatch.setattr(node, "bare_session", lambda *words: asked.append(words[-1]) or bare(*words))
    assert node.run(options("--frames", "3", "--rate", "100")) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["precision"] == "bf16" and asked == ["bf16"] and "precision:=auto" in FakeRig.made.parameters
    assert line["received"] == line["sent"] == 3 and line["objects"] == 3 and line["step_p50_ms"] > 0
    assert line["latency_p50_ms"] == pytest.approx(80, abs=1)


class FakeTime:
    """`time`, but nobody waits."""

    def __getattr__(self, name: str) -> Any:
        import time

        return (lambda seconds: None) if name == "sleep" else getattr(time, name)
