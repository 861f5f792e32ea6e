"""How often a line that comes with every image is logged."""

import pytest

from ausm_ros.repeats import REPEAT, REPEAT_OTHER, Repeats


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [5.0]  # a machine that has just started
    monkeypatch.setattr("ausm_ros.repeats.time.monotonic", lambda: now[0])
    return now


def test_the_same_words_come_again_after_a_minute(clock: list[float]) -> None:
    repeats, logged = Repeats(), []
    for second in range(150):
        clock[0] = 5.0 + second
        if repeats.take_turn("front", "unreadable", "encoding 'weird'"):
            logged.append(second)
    assert logged == [0, REPEAT, 2 * REPEAT]


def test_other_words_come_after_some_seconds(clock: list[float]) -> None:
    """A text that changes with every image, say by a time in it, does not flood the log."""
    repeats, logged = Repeats(), []
    for second in range(12):
        clock[0] = 5.0 + second
        if repeats.take_turn("front", "too_old", f"{second} s old"):
            logged.append(second)
    assert logged == [0, REPEAT_OTHER, 2 * REPEAT_OTHER]


def test_cameras_and_kinds_do_not_silence_each_other(clock: list[float]) -> None:
    repeats = Repeats()
    assert repeats.take_turn("front", "a", "x") and not repeats.take_turn("front", "a", "x")
    assert repeats.take_turn("front", "b", "x") and repeats.take_turn("rear", "a", "x")


def test_events_may_come_sooner(clock: list[float]) -> None:
    repeats = Repeats()
    assert repeats.take_turn("front", "a", "x", REPEAT_OTHER)
    clock[0] += REPEAT_OTHER - 0.5
    assert not repeats.take_turn("front", "a", "x", REPEAT_OTHER)
    clock[0] += 0.5
    assert repeats.take_turn("front", "a", "x", REPEAT_OTHER) and not repeats.take_turn("front", "a", "x")
