"""What the operator's command line prints, for answers made by hand."""

import math
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
import rclpy.utilities
from ausm_ros.msg import Instance, Prompt, PromptResult
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects
from harness import ROOT
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation

from ausm_ros import prompt, prompt_page
from ausm_ros.messages import to_time
from ausm_ros.prompt import NoAnswer, Operator, make_parser, run
from ausm_ros.prompts import Code


class Answering(Operator):
    """A node that gives one answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__(SimpleNamespace(), "/perception", 1.0)
        self._answer = answer

    def _call(self, kind: Any, name: str, request: Any, wait: float = 0.0) -> Any:
        return self._answer

    def _list(self, camera: str) -> Any:
        return self._answer


def result(code: Code, message: str = "", track_id: int = 0, iou: float = math.nan) -> PromptResult:
    return PromptResult(code=code, message=message, track_id=track_id, iou_with_prompt=iou)


def added(*results: PromptResult) -> Any:
    bad = [r for r in results if r.code]
    message = f"{len(bad)} of {len(results)} refused" if bad else ""
    stamp = to_time(0 if bad else 2 * 10**9)
    return AddObjects.Response(success=not bad, message=message, results=list(results), applied_stamp=stamp, epoch=7)


@pytest.mark.parametrize(
    ("prompt", "iou", "words"),
    [
        (Prompt(type=Prompt.MASK_PNG), 1.0, ""),
        (Prompt(type=Prompt.MASK_PNG), 0.6, ", 60 % of the mask: another one of this request has the rest"),
        (Prompt(type=Prompt.MASK_PNG, track_id=3), 0.93, ", the mask it had agreed to 93 %"),
        (Prompt(type=Prompt.BOX), 0.6, ", in the outline that the model sees there"),
        (Prompt(type=Prompt.POINTS), 1.0, ""),  # the node's own words say it
        (Prompt(type=Prompt.BOX), math.nan, ""),
    ],
)
def test_an_accepted_prompt(prompt: Prompt, iou: float, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Answering(added(result(Code.OK, track_id=3, iou=iou))).add("", [prompt], 1.0) == 0
    assert capsys.readouterr().out == f"object: OK: track 3, applied at 2.000 s, epoch 7{words}\n"


def test_a_refusal_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "mask 5x5, camera image 64x96"
    one = added(result(Code.WRONG_SIZE, sizes))
    assert Answering(one).add("", [Prompt(name="cup")], 1.0) == Code.WRONG_SIZE
    assert capsys.readouterr() == (f"cup: WRONG_SIZE: {sizes}\n", "")
    many = added(*(result(Code.CAPACITY_EXCEEDED, "101 objects, 100 places") for _ in range(101)))
    assert Answering(many).add("", [Prompt()] * 101, 1.0) == Code.CAPACITY_EXCEEDED
    assert capsys.readouterr() == ("101 objects: CAPACITY_EXCEEDED: 101 objects, 100 places\n", "")
    without = AddObjects.Response(success=False, message="UNKNOWN_CAMERA: no camera 'x'")
    assert Answering(without).add("", [], 1.0) == Code.UNKNOWN_CAMERA
    assert capsys.readouterr() == ("", "UNKNOWN_CAMERA: no camera 'x'\n")


def test_removals_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    answer = RemoveObjects.Response(success=False, message="1 of 2 refused")
    answer.results = [result(Code.OK, track_id=1), result(Code.UNKNOWN_ID, "no live object 44", 44)]
    assert Answering(answer).remove("", [1, 44], False) == Code.UNKNOWN_ID
    assert capsys.readouterr() == ("track 1: OK: removed\ntrack 44: UNKNOWN_ID: no live object 44\n", "")
    lost = Instance(track_id=2, state=Instance.STATE_LOST, score=0.5)
    seen = Instance(track_id=1, state=Instance.STATE_TRACKED, score=0.25, area=200)
    seen.box.width, seen.box.height, seen.box.x_offset = 20, 10, 3
    assert Answering(ListObjects.Response(success=True, in_use=2, capacity=9, objects=[seen, lost])).list("") == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "2 of 9 places in use" and "last score 0.50  not in sight" in third
    assert " score 0.25  x=3 y=0 width=20 height=10" in second and "last" not in second


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "not in sight"),
        ({"name": "cup"}, "not in sight  cup"),
        ({"class_name": "mug", "class_score": 0.25}, "not in sight  mug (0.25)"),
        ({"name": "cup", "class_name": "mug", "class_score": 0.25}, "not in sight  cup, mug (0.25)"),
    ],
)
def test_the_list_tells_names_and_classes(fields: dict[str, Any], end: str, capsys: pytest.CaptureFixture[str]) -> None:
    Answering(ListObjects.Response(success=True, objects=[Instance(track_id=2, **fields)])).list("")
    assert capsys.readouterr().out.splitlines()[1].endswith(end)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dance"], "no command 'dance', there are: add, list, remove, reset, click"),
        (["remove", "abc"], "'abc' is not a track id"),
        (["remove", "1", "99999999999"], "'99999999999' is not a track id"),
        (["remove"], "give the track ids, or --all"),
        (["list", "more"], "list takes no words: 'more'"),
        (["--track-id", "99999999999", "--box", "1,1,5,5"], "'99999999999' is not a track id"),
        (["--track-id=-1", "--box", "1,1,5,5"], "'-1' is not a track id"),
    ],
)
def test_wrong_command_lines(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    with pytest.raises(SystemExit) as left:
        run(parser.parse_args(words), parser, SimpleNamespace())
    assert left.value.code == 64 and told in capsys.readouterr().err


class Topics:
    """A node that sees these topics, the first one a moment before the others."""

    def __init__(self, *names: str, unpublished: str = "") -> None:
        self._names, self._unpublished, self._looks = list(names), unpublished, 0

    def get_topic_names_and_types(self) -> list[tuple[str, list[str]]]:
        self._looks += 1
        return [(name, []) for name in self._names[: None if self._looks > 1 else 1]]

    def count_publishers(self, name: str) -> int:
        return int(name != self._unpublished)


def clicked(monkeypatch: pytest.MonkeyPatch, topics: Topics, *words: str) -> str:
    """The camera whose page is served."""
    monkeypatch.setattr(prompt_page, "SETTLE", 0.01)
    served: list[str] = []
    monkeypatch.setattr(prompt, "serve", lambda node, target, camera, bind, port: served.append(camera) or 0)
    parser = make_parser()
    node: Any = topics
    assert run(parser.parse_args(["click", "--timeout", "60", *words]), parser, node) == 0
    return served[0]


def test_click_finds_the_only_camera(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    others = (
        "/perception/front/instances",
        "/overlay/rear/image",
        "/robot/perception/left/overlay",
        "/perception/a/b/overlay",
    )
    front, rear = "/perception/front/overlay", "/perception/rear/overlay"
    assert clicked(monkeypatch, Topics(front, *others)) == "front"
    assert clicked(monkeypatch, Topics(front, rear, unpublished=rear)) == "front"  # somebody only looks for it
    assert clicked(monkeypatch, Topics(front, *others), "--node", "/robot/perception/") == "left"
    assert clicked(monkeypatch, Topics(front, rear), "--camera", "rear") == "rear"
    with pytest.raises(SystemExit) as left:
        clicked(monkeypatch, Topics(front, rear))
    assert left.value.code == 64 and "2 cameras, give --camera: front, rear" in capsys.readouterr().err
    with pytest.raises(NoAnswer, match="no topic /perception/"):
        clicked(monkeypatch, Topics(*others), "--timeout", "0.3")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-p", "x"], "Couldn't parse parameter override rule: '-p x'"),
        (["--no-such"], "unknown ROS arguments ['--no-such']"),
        (["--params-file", "nope.yaml"], "Error opening YAML file"),
        (["-p", "use_sim_time:=1"], "use_sim_time"),
    ],
)
def test_wrong_ros_arguments_are_a_wrong_command_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rclpy.utilities, "g_default_context", None)  # as in a new process
    assert prompt.main(["list", "--ros-args", *words]) == 64 and not rclpy.ok()
    printed = capsys.readouterr().err
    assert printed.startswith("prompt: ") and told in printed and printed.count("\n") == 1 and "/src/" not in printed


SIGNALLED = """
import signal, sys, rclpy
from ausm_ros import prompt
def busy(options, parser, node):
    signal.raise_signal({number})
    while rclpy.ok():
        pass
    node.get_topic_names_and_types()  # after SIGTERM: RCLError
prompt.run = busy
sys.exit(prompt.main(["list"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_is_no_success(number: signal.Signals) -> None:
    script = SIGNALLED.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (130, "prompt: interrupted\n")


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt, ExternalShutdownException, rclpy_implementation.RCLError, rclpy_implementation.InvalidHandle],
)
def test_to_interrupt_the_page_is_its_usual_end(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> None:
        raise error

    monkeypatch.setattr(rclpy, "ok", lambda: False)
    monkeypatch.setattr(prompt_page, "ClickPage", lambda *_: None)
    executor = SimpleNamespace(add_node=lambda node: None, spin=spin)
    monkeypatch.setattr(prompt_page, "SingleThreadedExecutor", lambda: executor)
    node: Any = None
    assert prompt_page.serve(node, "/perception", "camera", "127.0.0.1", 0) == 0


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rclpy.utilities, "g_default_context", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert prompt.main(["click", "--camera", "front", "--port", str(taken.getsockname()[1])]) == 64
    printed = capsys.readouterr()
    assert "in use" in printed.err and printed.err.count("\n") == 1 and printed.out == ""
