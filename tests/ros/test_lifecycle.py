"""The lifecycle to the letter, over DDS: what each state answers, and errors that leave the node unconfigured."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from harness import PATIENCE, SIZE, Process, Robot, mask_prompt, perception, robot, square, wait_until

from ausm.class_names import CLASS_NAMES
from ausm_ros.prompts import Code

NODE: list[Process] = []


@pytest.fixture(scope="module")
def asleep() -> Iterator[Robot]:
    """A node that waits to be configured; every test leaves it so."""
    with perception("autostart:=false") as node, robot() as friend:
        NODE[:] = [node]
        yield friend


def test_every_state_answers_and_activation_is_an_epoch(asleep: Robot) -> None:
    assert asleep.state() == "unconfigured"
    for answer in (asleep.add(mask_prompt()), asleep.remove(1), asleep.reset(), asleep.objects()):
        assert not answer.success and answer.message.startswith("NOT_ACTIVE") and "unconfigured" in answer.message
    assert not asleep.transition("activate")  # not possible from here: refused, not left without an answer
    assert asleep.transition("configure") and asleep.state() == "inactive"
    answer = asleep.add(mask_prompt())
    assert [r.code for r in answer.results] == [Code.NOT_ACTIVE] and "not active" in answer.message

    assert asleep.transition("activate")
    first = asleep.show().epoch
    assert asleep.add_and_show(mask_prompt()).results[0].track_id >= 1
    assert asleep.transition("deactivate") and asleep.state() == "inactive"
    assert asleep.add(mask_prompt()).results[0].code == Code.NOT_ACTIVE
    wait_until(lambda: not asleep.publisher_count("camera"), "the subscription to go")
    assert asleep.transition("activate")
    message = asleep.show()
    assert message.epoch == first + 1 and message.frame_index == 0

    assert asleep.transition("deactivate") and asleep.transition("cleanup") and asleep.state() == "unconfigured"
    assert asleep.transition("configure") and asleep.transition("activate")
    assert asleep.show().epoch == first + 2  # never the same epoch twice
    assert asleep.transition("deactivate") and asleep.transition("cleanup")


@pytest.mark.parametrize("kind", ["missing", "corrupt", "foreign"])
def test_bad_checkpoint_is_one_clear_line(asleep: Robot, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "corrupt":
        path.write_bytes(b"\x00\x01 not weights at all" * 40)
    elif kind == "foreign":
        import torch
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, path)
    assert asleep.set_parameter("checkpoint", str(path)) == (True, "")
    before = NODE[0].count("ERROR")
    assert not asleep.transition("configure")
    NODE[0].wait_for(str(path))
    assert asleep.state() == "unconfigured" and NODE[0].count("ERROR") == before + 1
    assert asleep.add(mask_prompt()).results[0].code == Code.NOT_ACTIVE
    statuses: list[DiagnosticArray] = []
    subscription = asleep.listen(DiagnosticArray, "/diagnostics", statuses.append)
    wait_until(lambda: statuses, "diagnostics of a node that is not configured")
    asleep.node.destroy_subscription(subscription)
    [status] = statuses[-1].status
    assert status.level == DiagnosticStatus.ERROR and str(path) in status.message

    assert asleep.set_parameter("checkpoint", "random:nano") == (True, "")  # and now it can be helped
    assert asleep.transition("configure") and asleep.transition("activate")
    assert asleep.show().height == SIZE[0]
    assert asleep.transition("deactivate") and asleep.transition("cleanup")


def test_class_names_are_those_of_the_head_that_is_named(asleep: Robot) -> None:
    assert asleep.set_parameter("class_head", "zoo") == (True, "")  # which heads there are the checkpoint says
    assert not asleep.transition("configure")
    NODE[0].wait_for("no class head 'zoo'; this model has ['coco', 'sim']")
    assert asleep.set_parameter("class_head", "coco") == (True, "")
    assert asleep.transition("configure") and asleep.transition("activate")
    assert not asleep.set_parameter("class_head", "sim")[0]  # fixed while it is configured
    asleep.show()
    asleep.add_and_show(mask_prompt())
    [cup] = [i for i in asleep.show().instances if i.source == i.SOURCE_PROMPT]
    assert cup.class_name == CLASS_NAMES["coco"][cup.class_id] and 0 < cup.class_score <= 1
    assert asleep.transition("deactivate") and asleep.transition("cleanup")
    assert asleep.set_parameter("class_head", "") == (True, "")


def test_twenty_cycles_leave_no_memory_behind(asleep: Robot) -> None:
    rss = []
    for cycle in range(20):
        assert asleep.transition("configure") and asleep.transition("activate")
        if cycle % 5 == 0:
            asleep.show()
            asleep.add_and_show(mask_prompt(square()))
        assert asleep.transition("deactivate") and asleep.transition("cleanup")
        rss.append(psutil.Process(NODE[0].pid).memory_info().rss)
    # The least of some cycles: what stays. A single cycle is above it by what the allocator has not given back yet.
    early, late = min(rss[4:8]), min(rss[-4:])
    assert late <= 1.02 * early, [r // 2**20 for r in rss]


def test_no_exception_in_the_log_and_a_clean_end(asleep: Robot) -> None:
    assert NODE[0].stop(signal.SIGINT) == 0
    assert "Traceback" not in NODE[0].output, NODE[0].output


def test_bad_parameter_at_start_is_refused_with_the_reason() -> None:
    process = Process("ausm_ros.perception_node", ["--ros-args", "-p", "score_threshold:=1.5"])
    assert process.finish(PATIENCE) == 2
    assert "score_threshold" in process.output and "1.5" in process.output and "Traceback" not in process.output


def test_ends_soon_while_it_is_being_configured() -> None:
    """A hundred slow warm-up steps lie before it."""
    slow = ("input_short_side:=768", "warmup_size:=[768, 768]", "warmup_frames:=100")
    with perception(*slow) as node, robot() as friend:
        wait_until(lambda: friend.state() == "configuring", "the node to begin")
        assert node.stop(signal.SIGINT) == 0
        assert "told to stop" in node.output and "Traceback" not in node.output, node.output
