"""Stamps and rates: which images are taken, which dropped, what is a jump."""

from ausm_ros.timing import SECOND, RateLimit, StampGate, Verdict


def verdicts(*stamps: float, **limits: int) -> list[Verdict]:
    gate = StampGate()
    return [gate.check(round(s * SECOND), **limits) for s in stamps]


def test_zero_duplicate_older_and_jump() -> None:
    A, Z, D, J = Verdict.ACCEPT, Verdict.ZERO, Verdict.DUPLICATE, Verdict.JUMP
    assert verdicts(10, 10.1, 10.1, 10.05, 10.2) == [A, A, D, D, A]
    assert verdicts(0, 5, 0, 6) == [Z, A, Z, A]
    assert verdicts(10, 9.0, 8.9, 8.95, 9.5) == [A, D, J, A, A]  # exactly 1 s back is not yet a jump
    assert verdicts(10, 500, 501) == [A, A, A]  # a gap forward is a camera that was silent


def test_age() -> None:
    gate = StampGate()
    assert gate.check(9 * SECOND, now=10 * SECOND, max_age=SECOND // 2) is Verdict.TOO_OLD
    assert gate.check(9 * SECOND, now=10 * SECOND, max_age=2 * SECOND) is Verdict.ACCEPT
    assert gate.last == 9 * SECOND


def test_rate_limit_keeps_the_mean_rate() -> None:
    """30 Hz limited to 20, 10, 29 and 60 Hz: as many images as the rate says, not the next divisor of 30."""
    stamps = [1 + k / 30 for k in range(300)]
    for rate, least, most in ((20, 195, 202), (10, 98, 102), (29, 285, 291), (60, 300, 300)):
        taken = verdicts(*stamps, period=SECOND // rate).count(Verdict.ACCEPT)
        assert least <= taken <= most, (rate, taken)


def test_rate_limit_forgets_a_gap_and_a_jump() -> None:
    A, L = Verdict.ACCEPT, Verdict.LIMITED
    assert verdicts(1, 1.05, 9, 9.05, 9.1, period=SECOND // 10) == [A, L, A, L, A]
    assert verdicts(10, 5, 5.05, 5.1, period=SECOND // 10) == [A, Verdict.JUMP, L, A]


def test_rate_of_a_monotonic_clock() -> None:
    limit = RateLimit()
    assert [limit.allows(t, 10.0) for t in (1.0, 1.05, 1.11, 1.15, 1.22)] == [True, False, True, False, True]
    assert all(RateLimit().allows(t, 0.0) for t in (1.0, 1.0, 1.0))


def test_a_higher_rate_holds_at_once() -> None:
    gate = StampGate()
    assert gate.check(SECOND, period=100 * SECOND) is Verdict.ACCEPT
    assert gate.check(2 * SECOND, period=100 * SECOND) is Verdict.LIMITED
    assert gate.check(2 * SECOND, period=SECOND // 10) is Verdict.ACCEPT
    limit = RateLimit()
    assert [limit.allows(1.0, 0.01), limit.allows(2.0, 0.01), limit.allows(2.0, 10.0)] == [True, False, True]
