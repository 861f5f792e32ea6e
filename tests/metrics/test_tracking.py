"""HOTA, IDF1 and MOTA: TrackEval fed with masks, and cases worked by hand."""

import sys

import numpy as np
import pytest

from ausm.errors import AusmError, InputError, SizeError
from ausm.metrics.tracking import TrackingScorer, pairwise_iou


def box(x: int, width: int = 4) -> np.ndarray:
    mask = np.zeros((8, 40), bool)
    mask[2:6, x : x + width] = True
    return mask


def score(found: list[dict], truth: list[dict]):
    scorer = TrackingScorer()
    for f, t in zip(found, truth, strict=True):
        scorer.feed(f, t)
    return scorer.finish()


TRUTH = [{7: box(t), 9: box(20 + t)} for t in range(8)]


def test_perfect_whatever_the_ids_are_called() -> None:
    result = score([{300: f[7], 2: f[9]} for f in TRUTH], TRUTH)
    assert result[:8] == pytest.approx((1,) * 8)
    assert (result.id_switches, result.missed, result.false) == (0, 0, 0)
    assert (result.true_tracks, result.predicted_tracks) == (2, 2)


def test_an_id_switch_in_the_middle() -> None:
    result = score([{1 if t < 4 else 3: f[7], 2: f[9]} for t, f in enumerate(TRUTH)], TRUTH)
    # object 7 keeps one of its halves: 4 + 8 of 16 masks have the right id
    assert pytest.approx(12 / 16) == result.IDF1
    assert result.id_switches == 1 and pytest.approx(15 / 16) == result.MOTA
    assert pytest.approx(1.0) == result.DetA
    # association of the 8 masks of object 7: 4 / (8 + 4 - 4) = 1/2, of object 9: 1
    assert pytest.approx(0.75) == result.AssA and pytest.approx(np.sqrt(0.75)) == result.HOTA


def test_swapped_ids_from_the_middle_on() -> None:
    found = [{1: f[7], 2: f[9]} if t < 4 else {2: f[7], 1: f[9]} for t, f in enumerate(TRUTH)]
    result = score(found, TRUTH)
    assert pytest.approx(0.5) == result.IDF1 and result.id_switches == 2
    assert pytest.approx(4 / 12) == result.AssA


def test_missed_and_invented_objects() -> None:
    missed = score([{1: f[7]} for f in TRUTH], TRUTH)
    assert (missed.missed, missed.false, missed.MOTA) == (8, 0, 0.5)
    assert pytest.approx(8 / 12) == missed.IDF1 and missed.IDP == 1.0 and missed.IDR == 0.5
    invented = score([{1: f[7], 2: f[9], 3: box(30)} for f in TRUTH], TRUTH)
    assert (invented.missed, invented.false, invented.MOTA) == (0, 8, 0.5)


def test_loose_masks_count_at_low_overlaps_only() -> None:
    loose = score([{1: box(t, 10)} for t in range(8)], [{7: box(t)} for t in range(8)])  # overlap 0.4
    assert loose.IDF1 == 0.0 and loose.MOTA == -1.0
    assert pytest.approx(8 / 19) == loose.DetA  # 0.05, 0.10, ... 0.40 of 19 thresholds
    assert pytest.approx((8 * 0.4 + 11 * 1.0) / 19) == loose.LocA  # TrackEval counts a level without match as 1


def test_absent_objects() -> None:
    empty = np.zeros((8, 40), bool)
    truth = [{7: box(0)}, {7: empty}, {}, {7: box(3)}]
    result = score([{1: box(0)}, {1: empty}, {}, {1: box(3)}], truth)
    assert result[:3] == pytest.approx((1, 1, 1)) and result.missed == result.false == 0
    nothing = score([{}] * 4, truth)
    assert nothing.HOTA == nothing.IDF1 == 0.0 and nothing.missed == 2
    ghosts = score([{1: box(0)}], [{}])
    assert ghosts.HOTA == 0.0 and ghosts.false == 1


def test_pairwise_iou() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 9, 11)) < 0.4, rng.random((5, 9, 11)) < 0.6
    a[2] = b[4] = False
    wanted = [[(x & y).sum() / (x | y).sum() if (x | y).any() else 0.0 for y in b] for x in a]
    assert np.abs(pairwise_iou(a, b) - wanted).max() < 1e-12


def test_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SizeError, match="2 sizes"):
        TrackingScorer().feed({1: box(0)}, {1: np.ones((4, 4), bool)})
    with pytest.raises(InputError, match="1 frames without"):
        score([{}], [{}])
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    with pytest.raises(AusmError, match="need TrackEval"):
        score([{1: box(0)}], [{}])
