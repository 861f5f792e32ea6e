"""`ausm-evaluate-bag --params-file`: a node's parameters decide the masks; what the node refuses is refused here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from bag_to_judge import one_model, run, write_bag

from ausm.class_names import CLASS_NAMES
from ausm_ros import evaluate_bag
from ausm_ros.bag_live import make_plan
from ausm_ros.instance_bag import read_instances
from ausm_ros.node_parameters import plain

__all__ = ["one_model"]  # a fixture: found by its name in this module
pytestmark = pytest.mark.usefixtures("one_model")
NODES = """
/**:
  ros__parameters: {seed: 3, max_missed: 9, robot_name: anna}
/robot/perception:
  ros__parameters:
    seed: 4
    class_head: coco
    prompt: {threshold: 0.25}
    camera: {transport: raw}
    use_sim_time: true
    start_type_description_service: false
overlay:
  ros__parameters: {max_rate: 1.0}
"""


class Calls:
    """What the stream and the live node were made with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[Any] = []
        self.plans: list[Any] = []
        maker = evaluate_bag.stream_maker
        monkeypatch.setattr(evaluate_bag, "run_live", lambda plan, *_: self.plans.append(plan) or {})
        monkeypatch.setattr(evaluate_bag, "stream_maker", lambda m, s: self.settings.append(s) or maker(m, s))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture
def given(tmp_path: Path) -> list[Any]:
    """A bag, a folder and a parameter file."""
    (tmp_path / "node.yaml").write_text(NODES)
    bag = write_bag(tmp_path / "bag", frames=3)
    return [bag, "--out", tmp_path / "out", "--params-file", tmp_path / "node.yaml"]


def test_the_values_of_the_file_decide_the_masks(
    given: list[Any], calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *given)
    assert code == 0 and f"{tmp_path / 'node.yaml'}: parameter robot_name is not known\n" in err
    s = calls.settings[0]
    assert (s.seed, s.max_missed, s.prompt_threshold, s.class_head, s.max_rate) == (4, 9, 0.25, "coco", 0.0)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = {"seed": 4, "max_missed": 9, "prompt_threshold": 0.25, "class_head": "coco", "score_threshold": 0.5}
    assert expected.items() <= report["settings"].items()
    assert report["settings"]["params_file"] == str(tmp_path / "node.yaml")
    assert "parameter robot_name is not known" in report["notes"] and s.precision == report["model"]["precision"]
    named = [i for r in read_instances(tmp_path / "out" / "instances") for i in r.message.instances if i.class_id >= 0]
    assert named and all(i.class_name in CLASS_NAMES["coco"] for i in named)


def test_options_win(given: list[Any], calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, *given, "--seed", "5", "--class-head", "sim")
    s = calls.settings[0]
    assert code == 0 and (s.seed, s.class_head, s.max_missed, s.precision) == (5, "sim", 9, "fp32")


def test_the_precision_is_never_that_of_the_file(
    given: list[Any], calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.yaml").write_text("perception: {ros__parameters: {precision: bf16, checkpoint: none}}")
    assert run(capsys, *given)[0] == 0 and calls.settings[0].precision == "fp32"


def test_the_live_node_gets_them_all(given: list[Any], calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *given, "--live")[0] == 0
    parameters = calls.plans[0].parameters
    assert {"seed:=4", "max_missed:=9", "prompt.threshold:=0.25", 'class_head:="coco"'} <= set(parameters)
    assert not any(p.startswith(("cameras:", "autostart:")) for p in parameters)


@pytest.mark.parametrize("head, checkpoint", [("coco", "/data/w #2: größe 🤖.safetensors"), ("", "12")])
def test_they_are_read_as_what_they_are(head: str, checkpoint: str, calls: Calls, given: list[Any], capsys) -> None:
    assert run(capsys, *given)[0] == 0
    wanted = replace(calls.settings[0], class_head=head, checkpoint=checkpoint)
    plan = make_plan(given[0], None, 3, (64, 96), wanted)
    context = rclpy.Context()
    words = ["--ros-args", *(word for p in plan.parameters for word in ("-p", p))]
    rclpy.init(args=words, context=context, domain_id=99)
    try:
        node = rclpy.create_node("reader", context=context, automatically_declare_parameters_from_overrides=True)
        names = ("seed", "prompt.threshold", "class_head", "discovery", "checkpoint", "warmup_size")
        values = {p: plain(node.get_parameter(p).value) for p in names}
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert values == {
        "seed": 4, "prompt.threshold": 0.25, "class_head": head, "discovery": True, "checkpoint": checkpoint,
        "warmup_size": [64, 96],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: many", "seed: int is needed, not 'many'"),
        ("cameras: 5", "cameras: a list of str is needed, not 5"),
        ("camera.transport: jpeg", "camera.transport: 'jpeg' is not one of raw, compressed"),
        ("class_head: zoo", "no class head 'zoo'; this model has ['coco', 'sim']"),
        ("discovery: false", "node.yaml: discovery: false without --prompt-truth: there is nothing to follow"),
    ],
)
def test_what_the_node_refuses_is_refused_and_an_earlier_report_stays(
    text: str, words: str, given: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *given)[0] == 0
    report = (tmp_path / "out" / "report.json").read_text()
    (tmp_path / "node.yaml").write_text(f"perception: {{ros__parameters: {{{text}}}}}")
    code, _, err = run(capsys, *given)
    assert code == 2 and words in err.splitlines()[-1] and "Traceback" not in err
    assert (tmp_path / "out" / "report.json").read_text() == report and (tmp_path / "out" / "instances").is_dir()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scor_threshold: 0.5", "parameter scor_threshold is not known; is score_threshold meant?"),
        ("camera.transprt: raw", "parameter camera.transprt is not known; is camera.transport meant?"),
        ("rear.transport: raw", "parameter rear.transport is not known; is camera.transport meant?"),
    ],
)
def test_a_name_that_no_parameter_has_is_told(
    text: str, words: str, given: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the node does, which goes on without it."""
    (tmp_path / "node.yaml").write_text(f"perception: {{ros__parameters: {{{text}}}}}")
    code, _, err = run(capsys, *given)
    assert code == 0 and words in err
    assert words in json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
