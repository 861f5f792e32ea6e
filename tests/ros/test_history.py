"""Late prompts: applied at their stamp just as if they had come in time, or on the present image, never in between."""

from typing import Any

import numpy as np
import pytest

import ausm
from ausm.tracks import StepOutput, TrackState
from ausm_ros.history import MAX_BYTES, History, Moment
from ausm_ros.prompts import Code, ObjectPrompt
from ausm_ros.session import Session
from bench.scripted_stream import ScriptedStream

SECOND = 10**9
SIZE = (48, 64)


def moment(second: float, nbytes: int = 1) -> Moment:
    return Moment(round(second * SECOND), np.zeros((1, 1, 3), np.uint8), {}, nbytes)


def test_ring_is_bounded_by_time_and_by_bytes() -> None:
    ring = History(1.0)
    for k in range(40):
        ring.add(moment(10 + k * 0.1))
    assert len(ring) == 11 and ring.on and not History().on
    for k in range(10):
        ring.add(moment(14 + k * 0.01, MAX_BYTES // 3))
    assert len(ring) <= 3
    ring.add(moment(14.2, 2 * MAX_BYTES))
    assert len(ring) == 1  # the newest is always kept


def test_nearest_moment_and_those_after() -> None:
    ring = History(5.0)
    for second in (10, 11, 12):
        ring.add(moment(second))
    assert [m.stamp // SECOND for m in ring.from_stamp(11 * SECOND)] == [11, 12]
    assert [m.stamp // SECOND for m in ring.from_stamp(round(10.4 * SECOND))] == [10, 11, 12]
    assert ring.from_stamp(9 * SECOND) == []


@pytest.fixture(scope="module")
def model() -> Any:
    return ausm.load("nano", device="cpu", weights=False)


def session(model: Any, history: float) -> Session:
    config = ausm.StreamConfig(short_side=48)
    made = Session(lambda: ausm.Stream(model, discover=False, seed=1, config=config), history=history)
    made.new_epoch()
    return made


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(6)]


def square(x: int = 10) -> ObjectPrompt:
    mask = np.zeros(SIZE, np.bool_)
    mask[10:30, x : x + 20] = True
    return ObjectPrompt(mask)


def masks(of: Session) -> dict[int, bytes]:
    assert of.stream.current is not None
    return {t.track_id: t.mask.tobytes() for t in of.stream.current.tracks}


def test_late_prompt_equals_one_in_time_bit_by_bit(model: Any) -> None:
    late, punctual = session(model, 2.0), session(model, 0.0)
    for k, image in enumerate(images(), 1):
        late.see(*SIZE, k * SECOND // 10)
        late.step(image, k * SECOND // 10)
        late.stream.absorb()
        punctual.step(image, k * SECOND // 10)
        if k == 3:
            punctual.prompt([square()], atomic=True)
    outcomes, stamp = late.prompt_at(3 * SECOND // 10, [square()], atomic=True)
    assert [o.code for o in outcomes] == [Code.OK] and stamp == 3 * SECOND // 10
    assert late.stream.frame_index == 5 and masks(late) == masks(punctual) and len(masks(late)) == 1
    assert late.snapshot.sightings[1].first == 3 * SECOND // 10 and late.snapshot.stamp == 6 * SECOND // 10
    nxt = images()[0]
    assert masks(late).keys() == masks(punctual).keys()
    late.step(nxt, SECOND), punctual.step(nxt, SECOND)
    assert masks(late) == masks(punctual)


def scripted(discover: bool = False) -> tuple[Session, ScriptedStream]:
    stream: Any = ScriptedStream(discover=discover)
    made = Session(lambda: stream, history=5.0)
    made.new_epoch()
    for k in range(1, 5):
        made.see(*SIZE, k * SECOND)
        made.step(np.zeros((*SIZE, 3), np.uint8), k * SECOND)
    return made, stream


def test_too_late_is_applied_to_the_present_image() -> None:
    made, _ = scripted()
    made.step(np.zeros((*SIZE, 3), np.uint8), 9 * SECOND)
    outcomes, stamp = made.prompt_at(SECOND, [square()], atomic=True)
    assert stamp == 9 * SECOND and outcomes[0].code == Code.OK


def test_an_id_given_out_since_is_never_given_to_another() -> None:
    made, stream = scripted()
    stream.discover = True
    made.step(np.zeros((*SIZE, 3), np.uint8), 5 * SECOND)  # discovers object 1
    outcomes, stamp = made.prompt_at(3 * SECOND, [square()], atomic=True)
    assert stamp == 5 * SECOND and outcomes[0].track_id == 2
    assert {t.track_id: t.source for t in made.snapshot.tracks} == {1: 0, 2: 1}


def test_removed_objects_do_not_come_back() -> None:
    made, _ = scripted()
    made.prompt([square()], atomic=True)
    for k in (5, 6, 7):
        made.step(np.zeros((*SIZE, 3), np.uint8), k * SECOND)
    made.remove([1])
    made.step(np.zeros((*SIZE, 3), np.uint8), 8 * SECOND)
    _, stamp = made.prompt_at(6 * SECOND, [square(30)], atomic=True)
    assert stamp == 8 * SECOND and [t.track_id for t in made.snapshot.tracks] == [2]


class Mortal(ScriptedStream):
    """Its object 1 dies on the image of index 2, unless it is object 2 that keeps it alive."""

    def step(self, image: np.ndarray) -> StepOutput:
        output = super().step(image)
        if self.frame_index == 2 and 2 not in self._tracks and 1 in self._tracks:
            self.remove([1])
        return self.current or output


def test_an_id_that_ended_does_not_live_again_and_its_end_is_told_once() -> None:
    stream: Any = Mortal()
    made, image = Session(lambda: stream, history=5.0), np.zeros((*SIZE, 3), np.uint8)
    made.new_epoch()
    told = []
    for k in range(1, 6):
        made.see(*SIZE, k * SECOND)
        made.step(image, k * SECOND)
        if k == 1:
            made.prompt([square()], atomic=True)
        told += [t.track_id for t in made.take_output().tracks if t.state == TrackState.REMOVED]
    assert told == [1]
    _, stamp = made.prompt_at(2 * SECOND, [square(30)], atomic=True)  # run again from there, 1 would not die
    assert stamp == 5 * SECOND
    made.step(image, 6 * SECOND)
    assert [(t.track_id, t.state) for t in made.take_output().tracks] == [(2, TrackState.TRACKED)]


def test_removed_before_a_late_prompt_is_still_told() -> None:
    made, _ = scripted()
    made.prompt([square()], atomic=True)
    made.take_output()
    made.remove([1])
    for k in (5, 6, 7):
        made.step(np.zeros((*SIZE, 3), np.uint8), k * SECOND)
    outcomes, stamp = made.prompt_at(6 * SECOND, [square(30)], atomic=True)
    assert (stamp, outcomes[0].track_id) == (6 * SECOND, 2)
    assert [(t.track_id, t.state) for t in made.take_output().tracks] == [
        (2, TrackState.TRACKED), (1, TrackState.REMOVED)
    ]  # fmt: skip


def test_failed_replay_changes_nothing_but_the_present() -> None:
    made, stream = scripted()
    tracks = made.snapshot.tracks
    wrong = ObjectPrompt(np.ones((5, 5), np.bool_))
    outcomes, _ = made.prompt_at(2 * SECOND, [wrong], atomic=True)
    assert outcomes[0].code == Code.WRONG_SIZE
    assert made.snapshot.tracks == tracks and stream.frame_index == 3 and made.snapshot.stamp == 4 * SECOND


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()])
def test_an_error_on_the_way_leaves_the_present(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    made, stream = scripted()
    before, seen, step = stream.state_dict(), [], ScriptedStream.step

    def fails(stream: ScriptedStream, image: np.ndarray) -> StepOutput:
        seen.append(made.snapshot.stamp)
        if len(seen) == 2:
            raise error
        return step(stream, image)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(ScriptedStream, "step", fails)
        made.prompt_at(2 * SECOND, [square()], atomic=True)
    assert seen == [4 * SECOND] * 2  # what other threads see does not go back
    assert stream.frame_index == 3 and stream.state_dict() == before
    assert made.snapshot.stamp == 4 * SECOND and not made.snapshot.tracks
    made.step(np.zeros((*SIZE, 3), np.uint8), 5 * SECOND)
    assert made.prompt([square()], atomic=True)[0].track_id == 1


def test_time_that_goes_back_empties_the_ring() -> None:
    ring = History(5.0)
    for second in (10, 11, 3):
        ring.add(moment(second))
    assert [m.stamp // SECOND for m in ring.from_stamp(3 * SECOND)] == [3] and len(ring) == 1


def test_a_moment_counts_all_that_it_copies(model: Any) -> None:
    made = session(model, 5.0)
    made.see(*SIZE, SECOND)
    made.step(images()[0], SECOND)
    made.prompt([square(), square(40)], atomic=True)
    made.step(images()[1], 2 * SECOND)
    state = made.stream.state_dict()
    planes = state["_masks"].nbytes + sum(t.mask.nbytes for t in state["_current"].tracks)
    assert planes == 2 * 2 * SIZE[0] * SIZE[1]
    expected = made.stream.state_bytes + planes + state["_M"].nbytes
    assert made.stream.snapshot_bytes == expected
    assert made.history.from_stamp(2 * SECOND)[0].nbytes == expected + images()[1].nbytes
