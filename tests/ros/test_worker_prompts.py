"""Requests that wait in the worker: whose ids and names they hold, and what an error in one of them does."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from worker_bench import Bench, prompt, running

from ausm_ros.prompts import Code
from ausm_ros.worker import PromptRequest


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


def test_an_id_of_an_old_epoch_is_no_id_of_the_new_one(bench: Bench) -> None:
    bench.show()
    first = PromptRequest([prompt()], atomic=True)
    task = bench.tasks[0]
    task.post_prompts(first)
    old = bench.show().snapshot.epoch
    waits = PromptRequest([prompt(track_id=1)], atomic=True, epoch=old)
    task.post_prompts(waits)
    task.post(partial(task.reset, "resets"))
    bench.worker.notify()
    assert waits.future.result(10).outcomes[0].code == Code.STALE_STAMP
    task.post_prompts(PromptRequest([prompt()], atomic=True))
    assert bench.show().snapshot.scene(1).names.keys() == {1}
    late, new = (PromptRequest([prompt(track_id=1)], atomic=True, epoch=e) for e in (old, old + 1))
    for request in (late, new):
        task.post_prompts(request)  # the first was checked before the reset, and came after it
    bench.show()
    assert late.future.result(10).outcomes[0].code == Code.STALE_STAMP
    assert new.future.result(10).outcomes[0].code == Code.OK


def test_a_name_is_taken_while_its_prompt_is_applied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.show()
    task, seen = bench.tasks[0], []
    apply = task.session.prompt

    def look(*arguments: Any) -> Any:
        seen.append([p.name for p in task.waiting_prompts])
        return apply(*arguments)

    monkeypatch.setattr(task.session, "prompt", look)
    task.post_prompts(PromptRequest([prompt(name="cup")], atomic=True))
    bench.show()
    assert seen == [["cup"]] and task.waiting_prompts == []


def test_out_of_memory_in_a_prompt_is_answered_and_fatal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    stamp = bench.show().snapshot.stamp
    monkeypatch.setattr(bench.tasks[0].session, "prompt", full)
    request, other = (PromptRequest([prompt()], atomic=True, stamp=stamp) for _ in range(2))
    for r in (request, other):
        bench.tasks[0].post_prompts(r)
    bench.worker.notify()
    answer = request.future.result(10)
    assert answer.outcomes[0].code == Code.INTERNAL_ERROR and "out of memory" in answer.outcomes[0].message
    bench.wait(lambda: bench.fatal)
    assert "out of memory" in bench.fatal.pop()
    bench.worker.stop()
    assert other.future.result(10).outcomes[0].code == Code.NOT_ACTIVE
    bench.errors.clear()


def test_a_request_withdrawn_and_not_yet_out_of_the_queue_is_passed_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may rest between the two; to notify a future twice is an error, which would cost an epoch."""
    bench.show()
    task = bench.tasks[0]
    monkeypatch.setattr(task, "_drop_finished", lambda: None)
    request = PromptRequest([prompt()], atomic=True)
    task.post_prompts(request)
    assert request.future.cancel()
    before = task.session.epoch
    for _ in range(3):
        bench.show()
    task.post(partial(task.reset, "resets"))
    bench.show()
    assert task.session.epoch == before + 1 and not bench.errors
