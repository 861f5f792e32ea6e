"""A worker on scripted streams, for tests: images are put in by hand, reports and errors are collected."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ausm_ros.counts import CameraCounts
from ausm_ros.mailbox import Pending
from ausm_ros.prompts import ObjectPrompt
from ausm_ros.session import Session
from ausm_ros.worker import CameraTask, Report, Worker
from bench.scripted_stream import ScriptedStream, scripted_together

SIZE = (8, 12)


class Bench:
    """A worker with one or more cameras; messages are (H, W, 3) arrays, or an exception to raise in the decoder."""

    def __init__(self, cameras: int = 1, policy: str = "latest", batch: bool = False) -> None:
        self.reports: list[tuple[str, Report]] = []
        self.errors: list[tuple[str, str]] = []
        self.fatal: list[str] = []
        self.streams: list[ScriptedStream] = []
        self.tasks = [self._task(f"camera{k}", policy) for k in range(cameras)]
        self.batches: list[int] = []
        self.worker = Worker(self.tasks, self.fatal.append, self._together if batch else None)
        self.stamp = 1_000

    def _task(self, name: str, policy: str) -> CameraTask:
        def make() -> Any:
            self.streams.append(ScriptedStream())
            return self.streams[-1]

        def decode(message: Any) -> np.ndarray:
            if isinstance(message, Exception):
                raise message
            return np.asarray(message)

        session = Session(make)
        session.new_epoch()
        return CameraTask(
            name, session, policy, decode, lambda report: self.reports.append((name, report)),
            lambda kind, text: self.errors.append((kind, text)), CameraCounts(),
        )  # fmt: skip

    def _together(self, streams: Any, images: Any) -> Any:
        self.batches.append(len(streams))
        return scripted_together(streams, images)

    def put(self, message: Any = None, task: int = 0, stamp: int = 0, jump: bool = False) -> int:
        self.stamp = stamp or self.stamp + 1_000
        message = np.zeros((*SIZE, 3), np.uint8) if message is None else message
        displaced = self.tasks[task].mailbox.put(Pending(message, self.stamp, time.monotonic(), jump))
        self.tasks[task].counts.drop("replaced", displaced)
        self.worker.notify()
        return self.stamp

    def wait(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, (self.errors, self.fatal)
            time.sleep(0.001)

    def show(self, **options: Any) -> Report:
        number = len(self.reports)
        self.put(**options)
        self.wait(lambda: len(self.reports) > number)
        return self.reports[-1][1]


@contextmanager
def running() -> Iterator[Bench]:
    """A bench whose worker runs; nothing fatal may be left at the end."""
    made = Bench()
    made.worker.start()
    yield made
    made.worker.stop()
    assert not made.fatal


def prompt(**fields: Any) -> ObjectPrompt:
    mask = np.zeros(SIZE, np.bool_)
    mask[2:5, 3:8] = True
    return ObjectPrompt(**{"mask": mask, **fields})
