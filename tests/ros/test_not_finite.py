"""A state that holds NaN: noticed on the next image, whatever the objects' scores, and gone with the epoch."""

from typing import Any

import numpy as np
import pytest
import torch

import ausm
from ausm.errors import NotFiniteError
from ausm.together import step_together
from ausm_ros.counts import CameraCounts
from ausm_ros.mailbox import Pending
from ausm_ros.prompts import Code, ObjectPrompt
from ausm_ros.session import Session
from ausm_ros.worker import CameraTask, Report, step_batch

SIZE = (48, 64)
IMAGE = np.random.default_rng(7).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> Any:
    return ausm.load("nano", device="cpu", weights=False)


class Rig:
    """One camera of a worker without its thread, on a real stream; discovery is off unless asked for."""

    def __init__(self, model: Any, precision: str = "fp32", discover: bool = False) -> None:
        config = ausm.StreamConfig(short_side=48)
        self.session = Session(lambda: ausm.Stream(model, discover, config=config, precision=precision))
        self.session.new_epoch()
        self.reports: list[Report] = []
        self.errors: list[tuple[str, str]] = []
        self.counts = CameraCounts()
        self.task = CameraTask(
            "camera", self.session, "latest", np.asarray, self.reports.append,
            lambda kind, text: self.errors.append((kind, text)), self.counts,
        )  # fmt: skip
        self.stamp = 0

    def take(self) -> None:
        self.stamp += 1_000
        self.task.mailbox.put(Pending(IMAGE, self.stamp, 0.0, False))
        self.task.prepare()

    def show(self) -> None:
        self.take()
        self.task.finish()
        self.task.absorb()

    def prompt(self) -> None:
        mask = np.zeros(SIZE, bool)
        mask[10:30, 12:40] = True
        assert self.session.prompt([ObjectPrompt(mask)], atomic=True)[0].code == Code.OK

    def poison(self, cells: slice, value: float = torch.nan) -> None:
        """Some cells of the recurrent state of the stream, as an overflow would."""
        self.session.stream.absorb()  # so that the next step reads the state as it is
        state = self.session.stream._state
        assert state is not None
        with torch.inference_mode():
            state.F.view(-1)[cells] = value
            state.ssm.view(-1)[cells] = value


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cells", [slice(None), slice(0, 1)])
def test_a_poisoned_state_is_a_new_epoch_and_counted(model: Any, precision: str, cells: slice) -> None:
    rig = Rig(model, precision)
    rig.show()
    rig.prompt()
    rig.show()
    epoch, last = rig.session.epoch, rig.session.snapshot.stamp
    rig.poison(cells)
    rig.show()
    assert [kind for kind, _ in rig.errors] == ["failed"] and "not finite" in rig.errors[0][1]
    assert rig.counts.totals(["model_errors", "failed"]) == {"model_errors": 1, "failed": 1}
    assert rig.session.epoch == epoch + 1 and rig.session.snapshot.in_use == 0
    assert [r.snapshot.stamp for r in rig.reports] == [1_000, last]  # nothing is published of that image
    rig.show()
    rig.prompt()
    rig.show()
    assert len(rig.errors) == 1 and len(rig.reports) == 4
    assert rig.reports[-1].snapshot.epoch == epoch + 1 and rig.reports[-1].dropped == 0
    assert torch.isfinite(rig.session.stream._state.ssm).all()  # type: ignore[union-attr]


def test_of_a_batch_only_the_poisoned_camera_begins_anew(model: Any) -> None:
    rigs = [Rig(model), Rig(model)]
    for rig in rigs:
        rig.show()
    epochs = [rig.session.epoch for rig in rigs]
    rigs[1].poison(slice(None))
    for rig in rigs:
        rig.take()
    step_batch(step_together, [rig.task for rig in rigs])
    for rig in rigs:
        rig.task.finish()
    assert [rig.session.epoch for rig in rigs] == [epochs[0], epochs[1] + 1]
    assert [len(rig.reports) for rig in rigs] == [2, 1] and not rigs[0].errors
    assert rigs[1].counts.totals(["model_errors"]) == {"model_errors": 1}


def test_scores_do_not_tell_of_it(model: Any) -> None:
    """Why the predictions are looked at: an object that is not seen keeps the score it had when it was last seen."""
    stream = Rig(model).session.stream
    stream.step(IMAGE)
    stream.prompt(np.ones((1, *SIZE), bool))
    stream.absorb()
    with torch.inference_mode():
        stream._state.F.fill_(torch.nan)  # type: ignore[union-attr]
    out = stream.step(IMAGE)
    assert [(t.score, t.mask.any()) for t in out.tracks] == [(1.0, False)]
    session = Session(lambda: stream)
    with pytest.raises(NotFiniteError, match="frame 1: the model's output is not finite"):
        session.accept(out, IMAGE, 1)
    assert session.snapshot.stamp == 0  # nothing was noted
