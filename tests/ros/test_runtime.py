"""`Runtime` between cameras, worker and settings, on a scripted stream; the worker runs only where it is started."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Prompt
from ausm_ros.srv import AddObjects
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from ausm_ros.messages import to_image, to_time
from ausm_ros.prompts import ObjectPrompt
from ausm_ros.runtime import OWN_THREADS, use_threads
from bench.fuzz_rig import Rig
from bench.scripted_stream import ScriptedStream

SECOND = 10**9
COUNTS = ("time_jumps", "too_old", "disabled", "processed")


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Active, with one image processed; its worker does not run."""
    made = Rig(ScriptedStream())
    made.task.session.see(8, 12, 9 * SECOND)
    made.task.session.step(np.zeros((8, 12, 3), np.uint8), 9 * SECOND)
    yield made
    made.worker.stop()
    assert not made.fatal and not made.errors


def receive(rig: Rig, stamp: int) -> None:
    rig.camera.receive(to_image(Header(stamp=to_time(stamp)), np.zeros((8, 12, 3), np.uint8)))


def test_images_from_before_the_clock_went_back_do_not_enter_the_new_epoch(rig: Rig) -> None:
    epoch = rig.task.session.epoch
    receive(rig, 10 * SECOND)
    rig.runtime.clock_jumped()
    assert rig.task.mailbox.since() is None
    receive(rig, SECOND)
    rig.task.run_calls()
    rig.task.prepare()
    ready: Any = rig.task.ready
    assert ready.pending.stamp == SECOND and rig.task.session.epoch == epoch + 1
    assert rig.counts.totals(COUNTS) == {"time_jumps": 1, "too_old": 1, "disabled": 0, "processed": 0}


def test_a_clock_that_goes_back_drops_nothing_where_the_stream_goes_on(rig: Rig) -> None:
    rig.runtime.settings = replace(rig.settings, on_time_jump="continue")
    receive(rig, 10 * SECOND)
    rig.runtime.clock_jumped()
    assert rig.task.mailbox.since() is not None


def test_a_parameter_that_the_worker_has_not_taken_up_when_it_stops_is_used_after_the_next_start(rig: Rig) -> None:
    rig.runtime.change(replace(rig.settings, score_threshold=0.9, discovery=False))
    restart(rig)
    options = rig.task.session.stream.options  # type: ignore[attr-defined]
    assert (options["score_threshold"], options["discover"], options["birth_hits"]) == (0.9, False, 1)


def test_an_image_that_came_while_the_worker_stopped_is_not_one_of_the_next_epoch(rig: Rig) -> None:
    restart(rig, lambda: receive(rig, 10 * SECOND))
    assert rig.task.mailbox.since() is None
    assert rig.counts.totals(COUNTS) == {"time_jumps": 0, "too_old": 0, "disabled": 1, "processed": 0}


def restart(rig: Rig, meanwhile: Callable[[], None] = lambda: None) -> None:
    rig.camera.subscribe = lambda: None  # type: ignore[method-assign]
    rig.worker.start = lambda: None  # type: ignore[method-assign]
    rig.runtime.stop()
    meanwhile()
    rig.runtime.start()


def test_too_many_names_the_places_that_the_model_has(rig: Rig) -> None:
    stream = rig.task.session.stream
    assert (rig.settings.capacity, stream.capacity) == (100, 5)
    many = AddObjects.Request(prompts=[Prompt(type=Prompt.BOX, box=RegionOfInterest(width=2, height=2))] * 6)
    answer = rig.answers["add_objects"](many, AddObjects.Response())
    assert answer.message == "TOO_MANY: 6 prompts in one request, at most 5 are accepted"
    del many.prompts[3:]
    assert rig.answers["add_objects"](many, AddObjects.Response()).success
    answer = rig.answers["add_objects"](many, AddObjects.Response())
    assert answer.message == "TOO_MANY: 3 prompts and 3 that wait, at most 5 may wait"
    rig.worker.stop()
    assert rig.errors.pop("queued_prompt") == 1  # the three that waited, in one line


def test_stamps_of_zero_are_one_warning_and_a_count(rig: Rig) -> None:
    for _ in range(3):
        receive(rig, 0)
    assert rig.warnings == {"camera: image with stamp 0 dropped: its masks could not be matched to it (said once)": 1}
    assert rig.counts.totals(("zero_stamp",)) == {"zero_stamp": 3} and rig.task.mailbox.since() is None
    assert rig.counts.last_error()[0].startswith("image with stamp 0 dropped")  # why nothing is processed


def test_a_stamp_from_before_the_epoch_names_no_object_of_it(rig: Rig) -> None:
    shape = dict(type=Prompt.BOX, box=RegionOfInterest(width=4, height=4))  # noqa: C408
    session = rig.task.session
    [outcome] = session.prompt([checked_box()], atomic=True)
    assert (outcome.track_id, session.snapshot.began) == (1, 9 * SECOND)

    def add(track_id: int, stamp: int) -> AddObjects.Response:
        request = AddObjects.Request(prompts=[Prompt(track_id=track_id, **shape)], stamp=to_time(stamp))
        return rig.answers["add_objects"](request, AddObjects.Response())

    assert add(1, 9 * SECOND).success and add(0, 9 * SECOND - 1).success
    early = add(1, 9 * SECOND - SECOND // 4)
    assert early.message.startswith("STALE_STAMP") and "began 0.250 s after the stamp" in early.message
    rig.worker.stop()
    rig.errors.clear()  # the prompts that waited


def checked_box() -> ObjectPrompt:
    mask = np.zeros((8, 12), bool)
    mask[:4, :4] = True
    return ObjectPrompt(mask)


def test_no_threads_asked_for_is_pytorch_s_own_choice_again() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(OWN_THREADS + 1)
        assert torch.get_num_threads() == OWN_THREADS + 1
        use_threads(0)
        assert torch.get_num_threads() == OWN_THREADS
    finally:
        torch.set_num_threads(before)
