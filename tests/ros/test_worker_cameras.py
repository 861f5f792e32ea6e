"""Several cameras on one worker: turns, one pass for images that wait together, whose errors are whose."""

from itertools import pairwise
from typing import Any

import numpy as np
from worker_bench import Bench, prompt

from ausm.errors import ImageError
from ausm_ros.session import groups_to_warm
from ausm_ros.worker import PromptRequest


def test_two_cameras_take_turns() -> None:
    bench = Bench(cameras=2)
    bench.streams[0].slow = bench.streams[1].slow = 0.01
    bench.worker.start()
    for _ in range(5):
        number = len(bench.reports)
        bench.put(task=0)
        bench.put(task=0)
        bench.put(task=1)
        bench.wait(lambda n=number: len(bench.reports) >= n + 2 and not any(t.has_work() for t in bench.tasks))
    bench.worker.stop()
    names = [name for name, _ in bench.reports]
    assert names.count("camera1") == 5 and names.count("camera0") >= 5


def test_a_fast_camera_does_not_starve_a_slow_one() -> None:
    """One after the other, images of both arrive during every step: they alternate."""
    bench = Bench(cameras=2)

    def more(images: Any) -> None:
        for task in (1, 0, 1):  # the second camera's image is always the newest one
            bench.put(task=task)

    step = bench.streams[0].step
    bench.streams[0].step = lambda image: (more(image), step(image))[1]  # type: ignore[method-assign]
    other = bench.streams[1].step
    bench.streams[1].step = lambda image: (more(image), other(image))[1]  # type: ignore[method-assign]
    bench.put(task=0)
    bench.put(task=1)
    bench.worker.start()
    bench.wait(lambda: len(bench.reports) >= 20)
    bench.worker.stop()
    names = [name for name, _ in bench.reports[:20]]
    assert all(a != b for a, b in pairwise(names)), names


def test_cameras_that_wait_at_the_same_moment_step_together() -> None:
    bench = Bench(cameras=3, batch=True)
    other = np.zeros((16, 20, 3), np.uint8)
    for k in (1, 2, 0):
        bench.put(task=k, message=other if k == 2 else None)
    bench.worker.start()
    bench.wait(lambda: len(bench.reports) == 3)
    # no size is known before the first image: all are taken; what their sizes mean is the model's business
    assert bench.batches == [3] and [name for name, _ in bench.reports] == ["camera1", "camera2", "camera0"]
    bench.worker.stop()
    for k in (2, 0, 1):
        bench.put(task=k, message=other if k == 2 else None)
    bench.worker.start()
    bench.wait(lambda: len(bench.reports) == 6)
    assert bench.batches == [3, 2] and [name for name, _ in bench.reports[3:]] == ["camera2", "camera0", "camera1"]
    assert all(r.output.frame_index == 1 and r.inference_time > 0 for _, r in bench.reports[3:])
    bench.worker.stop()
    bench.put(task=0)
    bench.put(ImageError("bad"), task=1)  # nothing is left to step together
    bench.worker.start()
    bench.wait(lambda: len(bench.reports) == 7 and bench.errors)
    assert bench.batches == [3, 2]
    bench.worker.stop()
    assert not bench.fatal


def test_an_error_of_a_batch_resets_its_cameras_and_a_bad_score_only_its_own() -> None:
    bench = Bench(cameras=2, batch=True)

    def both() -> None:
        for k in range(2):
            bench.put(task=k)
        bench.worker.start()
        bench.wait(lambda: not any(t.has_work() or t.ready for t in bench.tasks))
        bench.worker.stop()

    both()
    epochs = [t.session.epoch for t in bench.tasks]
    bench.streams[1].nan = True
    bench.tasks[1].post_prompts(PromptRequest([prompt()], atomic=True))
    both()  # the prompt is applied to this image
    both()
    assert [t.session.epoch for t in bench.tasks] == [epochs[0], epochs[1] + 1]
    assert [kind for kind, _ in bench.errors] == ["failed"]
    bench.streams[1].nan = False
    both()  # not together: after a reset the size of the next image is not known
    bench.streams[0].fail = RuntimeError("broken")
    both()
    assert [t.session.epoch for t in bench.tasks] == [epochs[0] + 1, epochs[1] + 2] and not bench.fatal
    bench.streams[0].fail = None
    number = len(bench.reports)
    both()
    assert len(bench.reports) == number + 2 and [t.failures for t in bench.tasks] == [0, 0]


def test_an_image_that_the_model_refuses_is_its_own_cameras_business() -> None:
    bench = Bench(cameras=2, batch=True)
    bench.streams[0].fail = ImageError("4x4")
    for _ in range(5):  # each time both are new, so of the same unknown size: more often than errors in a row may be
        for task in bench.tasks:
            task.session.new_epoch()
        before = [task.session.epoch for task in bench.tasks]
        bench.put(task=0)
        bench.put(task=1)
        bench.worker.start()
        bench.wait(lambda: not any(t.has_work() or t.ready for t in bench.tasks))
        bench.worker.stop()
        assert [task.session.epoch for task in bench.tasks] == [before[0] + 1, before[1]]
    assert bench.batches == [2] * 5 and not bench.fatal
    assert [name for name, _ in bench.reports] == ["camera1"] * 5 and {kind for kind, _ in bench.errors} == {"failed"}


def test_every_number_of_cameras_that_may_meet_is_warmed_up() -> None:
    """Kernels are chosen per batch size: one image waits alone as often as all cameras' do."""
    a, b, c = (object() for _ in range(3))
    sessions: Any = [a, b, c]
    assert groups_to_warm(sessions, together=True) == [[a], [a, b], [a, b, c]]
    assert groups_to_warm(sessions, together=False) == [[a], [b], [c]]
    assert groups_to_warm([], together=True) == []
