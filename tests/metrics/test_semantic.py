"""Mean IoU, mVC and the overall score of YouTube-VOS, by definition and by hand."""

import math

import numpy as np
import pytest

from ausm.errors import AusmError, InputError, SizeError
from ausm.metrics.davis import SequenceScorer, make_score
from ausm.metrics.semantic import MeanIou, clip_consistency, vspw_truth
from ausm.metrics.youtube_vos import LateObjectScorer, overall_score


def test_mean_iou_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 6, (4, 9, 11)), rng.integers(0, 5, (4, 9, 11))
    truth[truth == 5] = 255
    truth[truth == 3] = 255  # class 3 never occurs: its predictions count against no class of their own
    scorer = MeanIou(5)
    for t, f in zip(truth, found, strict=True):
        scorer.feed(f, t)
    judged = truth != 255
    ious = [((truth == c) & (found == c)).sum() / (((truth == c) | (found == c)) & judged).sum() for c in (0, 1, 2, 4)]
    assert scorer.finish() == pytest.approx(np.mean(ious), abs=1e-12)


def test_mean_iou_faults() -> None:
    scorer = MeanIou(3)
    with pytest.raises(SizeError):
        scorer.feed(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(AusmError, match=r"0\.\.9, there are 0\.\.2"):
        scorer.feed(np.array([[0, 9]]), np.array([[0, 1]]))
    scorer.feed(np.array([[0, 9]]), np.array([[255, 255]]))  # void: whatever is predicted there
    with pytest.raises(InputError, match="no pixel"):
        scorer.finish()


def test_vspw_void() -> None:
    assert vspw_truth(np.array([[0, 1, 124, 255]], np.uint8)).tolist() == [[255, 0, 123, 255]]


def test_consistency_by_hand() -> None:
    truth = [np.array([[1, 1, 1, 2]])] * 4
    found = [np.array([[1, 1, 3, 3]]), np.array([[1, 1, 3, 4]]), np.array([[1, 2, 3, 4]]), np.array([[9, 9, 9, 9]])]
    assert clip_consistency(found, truth, 2) == [3 / 4, 3 / 4]  # frames 0-1 and 1-2; the last clip is left out
    assert clip_consistency(found, truth, 3) == [2 / 4]
    assert clip_consistency(found, truth, 4) == []
    moving = [np.array([[1]]), np.array([[2]]), np.array([[2]])]
    values = clip_consistency(moving, moving, 2)
    assert len(values) == 1 and math.isnan(values[0])  # no pixel of the first clip lasts
    with pytest.raises(SizeError, match="4 predictions, 3 truths"):
        clip_consistency(found, truth[:3], 2)


def test_consistency_looks_at_the_first_frame_of_the_clip() -> None:
    rng = np.random.default_rng(1)
    truth, found = rng.integers(0, 2, (9, 5, 6)), rng.integers(0, 2, (9, 5, 6))
    for i, value in enumerate(clip_consistency(list(found), list(truth), 3)):
        lasting = (truth[i : i + 3] == truth[i]).all(0)
        assert value == pytest.approx((lasting & (found[i : i + 3] == found[i]).all(0)).sum() / lasting.sum())


def test_late_objects_count_after_their_first_frame() -> None:
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, 1:3, 1:3], truth[2:, 5:7, 5:7] = 1, 2
    found = truth.copy()
    found[1] = 0
    found[3][truth[3] == 2] = 0
    scorer = LateObjectScorer()
    for f, t in zip(found, truth, strict=True):
        scorer.feed(f, t)
    one, two = scorer.finish()
    assert one.j == (0.0, 1.0, 1.0) and two.j == (0.0,)
    with pytest.raises(SizeError):
        scorer.feed(np.zeros((2, 2), int), np.zeros((3, 3), int))


def test_without_late_objects_it_is_the_davis_score_with_the_last_frame() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(np.repeat(rng.integers(0, 3, (5, 4, 4)), 6, 1), 6, 2)
    truth[0, 0, :2] = 1, 2
    late, davis = LateObjectScorer(), SequenceScorer(skip_ends=False)
    for t in truth:
        late.feed(np.roll(t, 2), t)
        davis.feed(np.roll(t, 2), t)
    for a, b in zip(late.finish(), davis.finish(), strict=True):
        assert a.j == b.j[1:] and a.f == b.f[1:]


def test_overall_score() -> None:
    objects = [
        (make_score(1, [0.8], [0.6]), True),
        (make_score(2, [0.4], [0.2]), True),
        (make_score(1, [0.2], [0.1]), False),
    ]
    assert overall_score(objects) == pytest.approx((0.325, 0.6, 0.2, 0.4, 0.1))
    with pytest.raises(InputError, match="no object of unseen categories among 2"):
        overall_score(objects[:2])
