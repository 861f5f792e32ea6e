"""The worker and its sessions on a scripted stream: order, drops, resets, prompts that wait, errors it must survive."""

import gc
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from worker_bench import SIZE, Bench, prompt, running

from ausm.errors import ImageError
from ausm.masks import Box
from ausm.prompts import Shaped
from ausm.tracks import StepOutput, TrackState
from ausm_ros.prompts import Code, ObjectPrompt, Outcome
from ausm_ros.session import Sighting
from ausm_ros.worker import PromptRequest, Report, is_out_of_memory

REMOVED, TRACKED = TrackState.REMOVED, TrackState.TRACKED


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


def test_newest_image_wins_and_the_others_are_counted(bench: Bench) -> None:
    done, step = threading.Event(), bench.streams[0].step

    def held(image: Any) -> Any:
        done.wait(30)
        return step(image)

    bench.streams[0].step = held  # type: ignore[method-assign]
    bench.put()
    bench.wait(lambda: bench.tasks[0].mailbox.since() is None)  # the first is being processed
    for _ in range(5):
        last = bench.put()
    done.set()
    bench.wait(lambda: len(bench.reports) == 2)
    assert bench.reports[1][1].snapshot.stamp == last
    assert sum(report.dropped for _, report in bench.reports) == 4


def test_policy_every_keeps_the_order() -> None:
    bench = Bench(policy="every")
    stamps = [bench.put() for _ in range(10)]
    bench.worker.start()
    bench.wait(lambda: len(bench.reports) == 10)
    bench.worker.stop()
    assert [r.snapshot.stamp for _, r in bench.reports] == stamps


def test_unreadable_image_is_counted_and_the_stream_goes_on(bench: Bench) -> None:
    bench.put(ImageError("encoding 'x'"))
    bench.wait(lambda: bench.errors)
    report = bench.show()
    assert bench.errors == [("unreadable", "encoding 'x'")] and report.dropped == 1
    assert bench.tasks[0].counts.totals(["unreadable", "processed"]) == {"unreadable": 1, "processed": 1}


def test_size_change_resets_or_is_rejected(bench: Bench) -> None:
    epoch = bench.show().snapshot.epoch
    other = np.zeros((16, 20, 3), np.uint8)
    report = bench.show(message=other)
    assert report.snapshot.epoch == epoch + 1 and report.output.frame_index == 0
    bench.tasks[0].on_size_change = "reject"
    bench.put()
    bench.wait(lambda: bench.errors)
    assert bench.errors[0][0] == "wrong_size" and "8x12" in bench.errors[0][1] and "16x20" in bench.errors[0][1]
    assert bench.show(message=other).snapshot.epoch == epoch + 1


def test_time_jump_resets_or_continues(bench: Bench) -> None:
    epoch = bench.show().snapshot.epoch
    report = bench.show(stamp=5, jump=True)
    assert report.snapshot.epoch == epoch + 1 and report.output.frame_index == 0
    bench.tasks[0].on_time_jump = "continue"
    assert bench.show(stamp=2, jump=True).snapshot.epoch == epoch + 1


def test_time_jump_of_an_unreadable_image_is_not_lost(bench: Bench) -> None:
    epoch = bench.show().snapshot.epoch
    bench.put(ImageError("encoding 'x'"), stamp=5, jump=True)
    bench.wait(lambda: bench.errors)
    report = bench.show()
    assert report.snapshot.epoch == epoch + 1 and report.output.frame_index == 0


def test_prompt_waits_for_the_next_image_and_comes_back_with_its_stamp(bench: Bench) -> None:
    request = PromptRequest([prompt(name="cup"), prompt()], atomic=True)
    bench.show()
    bench.tasks[0].post_prompts(request)
    bench.worker.notify()
    assert len(bench.tasks[0].waiting_prompts) == 2 and not request.future.done()
    report = bench.show()
    applied = request.future.result(10)
    assert applied.stamp == report.snapshot.stamp and [o.track_id for o in applied.outcomes] == [1, 2]
    assert [t.name for t in report.output.tracks] == ["cup", ""]
    assert report.snapshot.sightings[1].first == applied.stamp
    assert bench.tasks[0].waiting_prompts == []


def test_prompt_for_the_image_it_stands_on_is_applied_at_once(bench: Bench) -> None:
    stamp = bench.show().snapshot.stamp
    request = PromptRequest([prompt()], atomic=True, stamp=stamp)
    bench.tasks[0].post_prompts(request)
    bench.worker.notify()
    assert request.future.result(10).stamp == stamp


def test_prompt_for_a_later_stamp_waits_for_it(bench: Bench) -> None:
    bench.show()
    request = PromptRequest([prompt()], atomic=True, stamp=bench.stamp + 1_500)
    bench.tasks[0].post_prompts(request)
    bench.show()
    assert not request.future.done()
    assert bench.show().snapshot.stamp == request.future.result(10).stamp


def test_reset_refuses_prompts_of_the_old_epoch(bench: Bench) -> None:
    bench.show()
    request = PromptRequest([prompt()], atomic=True, stamp=bench.stamp + 10**9)
    bench.tasks[0].post_prompts(request)
    bench.tasks[0].post(lambda: bench.tasks[0].reset("resets"))
    bench.worker.notify()
    assert request.future.result(10).outcomes[0].code == Code.STALE_STAMP


def test_reset_tells_requests_apart_that_are_alike(bench: Bench) -> None:
    """Found by the fuzz: requests were compared by their masks, and the worker's thread ended."""
    bench.show()
    stamps = (0, bench.stamp + 10**9, bench.stamp + 10**9)
    requests = [PromptRequest([prompt(name="cup")], atomic=True, stamp=stamp) for stamp in stamps]
    for request in requests:
        bench.tasks[0].post_prompts(request)
    bench.tasks[0].post(lambda: bench.tasks[0].reset("resets"))
    bench.worker.notify()
    assert [r.future.result(10).outcomes[0].code for r in requests[1:]] == [Code.STALE_STAMP] * 2
    bench.show()
    assert requests[0].future.result(10).outcomes[0].code == Code.OK


def test_error_in_a_reset_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(error: Exception) -> bool:
        raise KeyError("lost")

    monkeypatch.setattr(bench.tasks[0], "recover", broken)
    bench.streams[0].fail = RuntimeError("boom")
    bench.put()
    bench.wait(lambda: bench.fatal)
    assert "no reset after an error" in bench.fatal.pop() and not bench.fatal


def test_a_prompt_that_nobody_waits_for_fails_with_a_line_in_the_log(bench: Bench) -> None:
    task = bench.tasks[0]
    bench.show()
    task.post_prompts(PromptRequest([prompt()] * 5, atomic=True, awaited=False))
    bench.show()
    assert not bench.errors
    again = [prompt(track_id=1), prompt(name="cup"), prompt(name="dish")]
    task.post_prompts(PromptRequest(again, atomic=False))  # its answer says it
    bench.show()
    assert not bench.errors
    task.post_prompts(PromptRequest(again, atomic=False, awaited=False))
    bench.show()
    words = "2 of 3 queued prompts not applied: 'cup': CAPACITY_EXCEEDED: capacity 5, in use 5"
    assert bench.errors == [("queued_prompt", words)]
    task.post_prompts(PromptRequest([prompt(name="fork")], atomic=True, stamp=bench.stamp + 10**9, awaited=False))
    task.post(partial(task.reset, "resets"))
    bench.show()
    assert len(bench.errors) == 2 and "1 of 1 queued prompts not applied: 'fork': STALE_STAMP: " in bench.errors[1][1]


def test_requests_that_are_over_hold_no_masks_while_the_camera_is_silent() -> None:
    bench = Bench()  # its worker does not run: no image comes
    task = bench.tasks[0]
    left = [PromptRequest([prompt()], atomic=True) for _ in range(3)]
    for request in left:
        task.post_prompts(request)
    masks = [weakref.ref(request.prompts[0].mask) for request in left]
    assert left[1].future.cancel()
    del request, left[1]
    gc.collect()
    assert [m() is None for m in masks] == [False, True, False] and len(task.waiting_prompts) == 2
    bench.worker.start()
    bench.show()
    bench.worker.stop()
    assert [r.future.result(1).outcomes[0].track_id for r in left] == [1, 2]


def test_withdrawn_prompt_leaves_no_trace(bench: Bench) -> None:
    request = PromptRequest([prompt()], atomic=True)
    bench.tasks[0].post_prompts(request)
    assert request.future.cancel()
    assert bench.show().output.tracks == ()


def test_mixed_prompts_are_undone_together_or_applied_apart(bench: Bench) -> None:
    bench.show()
    first = PromptRequest([prompt(), prompt(), prompt(), prompt()], atomic=True)
    bench.tasks[0].post_prompts(first)
    bench.show()
    moved = np.zeros(SIZE, np.bool_)
    moved[0, 0] = True
    again = [prompt(track_id=2, mask=moved), prompt(), prompt()]  # one place is free, two are asked for
    whole = PromptRequest(again, atomic=True)
    bench.tasks[0].post_prompts(whole)
    report = bench.show()
    assert [o.code for o in whole.future.result(10).outcomes] == [Code.CAPACITY_EXCEEDED] * 3
    assert len(report.output.tracks) == 4 and not (report.output.tracks[1].mask == moved).all()
    parts = PromptRequest(again, atomic=False)
    bench.tasks[0].post_prompts(parts)
    report = bench.show()
    outcomes = parts.future.result(10).outcomes
    assert [o.code for o in outcomes] == [Code.OK, Code.OK, Code.CAPACITY_EXCEEDED]
    assert outcomes[0].track_id == 2 and outcomes[0].iou_with_prompt == 0.0  # the object was elsewhere
    assert (report.output.tracks[1].mask == moved).all() and len(report.output.tracks) == 5


def test_box_and_points_are_shaped_by_the_model_when_applied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    idea = np.zeros(SIZE, np.bool_)
    idea[1:7, 2:9] = True
    asked: list[Any] = []
    for name in ("shape_box", "shape_points"):
        monkeypatch.setattr(f"ausm_ros.session.{name}", lambda stream, *shape: asked.append(shape) or Shaped(idea))
    bench.show()
    shapes = [prompt(box=Box(3, 2, 5, 3)), prompt(points=((4, 3, 1), (9, 6, 0)))]
    request = PromptRequest(shapes, atomic=True)
    bench.tasks[0].post_prompts(request)
    report = bench.show()
    assert asked == [(Box(3, 2, 5, 3),), ([(4, 3), (9, 6)], [1, 0])]
    assert all((t.mask == idea).all() for t in report.output.tracks)
    outcomes = request.future.result(10).outcomes
    assert [o.iou_with_prompt for o in outcomes] == pytest.approx([15 / 42] * 2)
    assert not any(o.message for o in outcomes)


def test_a_shape_that_fits_no_object_is_taken_as_it_is_and_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shape_box", "shape_points"):
        monkeypatch.setattr(f"ausm_ros.session.{name}", lambda stream, *shape: Shaped(prompt().mask, "why"))

    def apply(shape: ObjectPrompt) -> Outcome:
        request = PromptRequest([shape], atomic=True)
        bench.tasks[0].post_prompts(request)
        bench.show()
        return request.future.result(10).outcomes[0]

    bench.show()
    first = apply(prompt(box=Box(3, 2, 5, 3)))
    words = "why: the {} as such was taken, 15 pixels"
    assert (first.code, first.message) == (Code.OK, words.format("rectangle"))
    again = apply(prompt(points=((4, 3, 1),), track_id=first.track_id))
    assert (again.code, again.message) == (Code.OK, words.format("discs around the points"))
    drawn = apply(prompt(track_id=first.track_id))
    assert (drawn.code, drawn.message) == (Code.OK, "")


def test_not_finite_output_resets_and_is_counted(bench: Bench) -> None:
    request = PromptRequest([prompt()], atomic=True)
    bench.tasks[0].post_prompts(request)
    epoch = bench.show().snapshot.epoch
    bench.streams[0].nan = True
    bench.put()
    bench.wait(lambda: bench.errors)
    assert "not finite" in bench.errors[0][1]
    bench.streams[0].nan = False
    report = bench.show()
    assert report.snapshot.epoch == epoch + 1 and report.dropped == 1
    assert bench.tasks[0].counts.totals(["model_errors"]) == {"model_errors": 1}


def test_unexpected_errors_reset_and_three_in_a_row_end_it() -> None:
    bench = Bench()
    bench.worker.start()
    bench.streams[0].fail = RuntimeError("boom")
    bench.put()
    bench.wait(lambda: bench.errors)
    bench.streams[0].fail = None
    assert bench.show().dropped == 1
    bench.streams[0].fail = RuntimeError("boom")
    for k in range(3):
        bench.put()
        bench.wait(lambda n=k: len(bench.errors) >= n + 2)
    bench.wait(lambda: bench.fatal)
    assert "3 errors in a row" in bench.fatal[0] and "boom" in bench.fatal[0]
    bench.worker.stop()


def test_out_of_memory_is_fatal_at_once() -> None:
    bench = Bench()
    bench.worker.start()
    bench.streams[0].fail = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    bench.put()
    bench.wait(lambda: bench.fatal)
    bench.worker.stop()
    assert bench.fatal[0].startswith("out of memory")
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shape mismatch"))


def test_fault_while_prompting_is_answered_and_logged(bench: Bench) -> None:
    def broken(*_: Any) -> list[int]:
        raise RuntimeError("bolts are loose")

    bench.show()
    bench.streams[0].prompt = broken  # type: ignore[method-assign]
    request = PromptRequest([prompt(), prompt()], atomic=True)
    bench.tasks[0].post_prompts(request)
    bench.show()
    outcomes = request.future.result(10).outcomes
    assert [o.code for o in outcomes] == [Code.INTERNAL_ERROR] * 2 and "bolts are loose" in outcomes[0].message
    assert bench.errors == [("prompt", "RuntimeError: bolts are loose")] and request.future.result().stamp == 0


def test_stop_answers_everybody() -> None:
    bench = Bench()
    request = PromptRequest([prompt()], atomic=True)
    bench.tasks[0].post_prompts(request)
    call = bench.tasks[0].post(lambda: 1)
    bench.worker.stop()
    assert request.future.result(1).outcomes[0].code == Code.NOT_ACTIVE and call.cancelled()


def test_removal_and_its_outcomes(bench: Bench) -> None:
    bench.tasks[0].post_prompts(PromptRequest([prompt(), prompt()], atomic=True))
    bench.show()
    session = bench.tasks[0].session
    future = bench.tasks[0].post(lambda: session.remove([1, 7]))
    bench.worker.notify()
    assert [o.code for o in future.result(10)] == [Code.OK, Code.UNKNOWN_ID]
    assert session.snapshot.in_use == 1 and [t.state for t in session.snapshot.tracks] == [TRACKED, REMOVED]
    bench.show()
    bench.show()
    assert set(session.snapshot.sightings) == {2}


def states(report: Report) -> dict[int, TrackState]:
    assert len({t.track_id for t in report.output.tracks}) == len(report.output.tracks)
    return {t.track_id: t.state for t in report.output.tracks}


def test_removed_on_request_is_reported_once_with_the_next_image(bench: Bench) -> None:
    bench.tasks[0].post_prompts(PromptRequest([prompt(), prompt(name="cup")], atomic=True))
    seen = bench.show()
    session = bench.tasks[0].session
    for track_id in (1, 2):  # two requests between the same images
        bench.tasks[0].post(partial(session.remove, [track_id]))
    report = bench.show()
    assert states(report) == {1: REMOVED, 2: REMOVED}
    assert [t.name for t in report.output.tracks] == ["", "cup"] and not any(t.mask.any() for t in report.output.tracks)
    assert report.snapshot.sightings[2] == Sighting(seen.snapshot.stamp, seen.snapshot.stamp)
    assert states(bench.show()) == {}


def test_removed_with_an_image_is_not_reported_again_with_the_next(bench: Bench) -> None:
    bench.tasks[0].post_prompts(PromptRequest([prompt(), prompt()], atomic=True))
    bench.show()
    stream = bench.streams[0]
    step = stream.step

    def step_and_give_up(image: np.ndarray) -> StepOutput:
        step(image)
        stream.remove([1])
        assert stream.current is not None
        return stream.current

    stream.step = step_and_give_up  # type: ignore[method-assign]
    assert states(bench.show()) == {1: REMOVED, 2: TRACKED}
    stream.step = step  # type: ignore[method-assign]
    session = bench.tasks[0].session
    bench.tasks[0].post(partial(session.remove, [2]))  # the stream lists both as removed now
    assert states(bench.show()) == {2: REMOVED}


def test_an_object_that_gives_way_to_a_prompt_applied_at_once_is_reported(bench: Bench) -> None:
    stream = bench.streams[0]
    stream.discover = True
    stamp = bench.show().snapshot.stamp
    stream.discover = False
    start = stream.prompt

    def displace(*prompted: Any) -> list[int]:
        stream.remove([1])
        return start(*prompted)

    stream.prompt = displace  # type: ignore[method-assign]
    request = PromptRequest([prompt()], atomic=True, stamp=stamp)
    bench.tasks[0].post_prompts(request)
    bench.worker.notify()
    assert request.future.result(10).stamp == stamp
    assert states(bench.show()) == {1: REMOVED, 2: TRACKED} and states(bench.show()) == {2: TRACKED}


def test_removals_of_the_old_epoch_are_not_reported_in_the_new_one(bench: Bench) -> None:
    bench.tasks[0].post_prompts(PromptRequest([prompt()], atomic=True))
    bench.show()
    bench.tasks[0].post(partial(bench.tasks[0].session.remove, [1]))
    bench.tasks[0].post(partial(bench.tasks[0].reset, "resets"))
    assert states(bench.show()) == {}
