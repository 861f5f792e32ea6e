"""Scores and drawings of the bag evaluator against figures worked out by hand."""

import math

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.bag_page import choose_frames
from ausm_ros.bag_scores import BagScorer, matched_overlap
from ausm_ros.svg import Curve, nice_ticks, plot, thin


def square(number: int, row: int = 10) -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[row : row + 20, 5 + 4 * number : 30 + 4 * number] = True
    return mask


def test_scores_by_hand() -> None:
    scorer = BagScorer(prompted=True, height=64, width=96, frames=3)
    mask = square(0)
    half = mask.copy()
    half[20:] = False  # the upper 10 of 20 rows
    scorer.started(7, 1, 0)
    assert math.isnan(scorer.feed(0, {1: mask}, {1: 0.9}, {7: mask}))
    assert scorer.feed(1, {1: mask}, {1: 0.9}, {7: mask}) == 1.0
    assert scorer.feed(2, {1: half}, {1: 0.9}, {7: mask}) == 0.5
    figures, objects, notes = scorer.finish()
    assert figures["J"] == 75.0 and not notes and figures["true_tracks"] == 1
    assert [(o["object"], o["track_id"], o["frames"]) for o in objects] == [(7, 1, 2)]


def test_ap_by_hand() -> None:
    scorer = BagScorer(prompted=False, height=64, width=96, frames=3)
    a, b = square(0), square(0, row=40)
    for frame in range(3):
        found = {5: a} if frame < 2 else {5: a, 6: b}
        assert scorer.feed(frame, found, dict.fromkeys(found, 0.8), {1: a}) == 1.0
    figures, _, _ = scorer.finish()
    assert figures["AP"] == pytest.approx(100.0)  # of two found tracks with equal scores, the true one came first
    assert figures["predicted_tracks"] == 2 and figures["false"] == 1
    assert figures["MOTA"] == pytest.approx(100 * 2 / 3)
    too_long = BagScorer(prompted=False, height=2160, width=3840, frames=1000)
    too_long.feed(0, {1: a}, {1: 1.0}, {1: a})
    figures, _, notes = too_long.finish()
    assert "AP" not in figures and "--max-frames" in notes[0] and figures["HOTA"] == pytest.approx(100.0)


def test_matched_overlap() -> None:
    a, b = square(0), square(0, row=40)
    assert matched_overlap({1: a, 2: b}, {8: b, 9: a}) == 1.0
    assert matched_overlap({1: a}, {8: b, 9: a}) == 0.5
    assert matched_overlap({}, {8: b}) == 0.0
    assert math.isnan(matched_overlap({1: a}, {}))


def test_worst_frames_lie_apart() -> None:
    j = [0.5] * 100
    j[40], j[41], j[90] = 0.1, 0.2, 0.3
    chosen = choose_frames(j)
    assert chosen[:2] == [40, 90] and len(chosen) == 6
    assert all(abs(a - b) >= 8 for a in chosen for b in chosen if a != b)
    assert choose_frames([None] * 11) == [0, 2, 4, 6, 8, 10]
    assert choose_frames([None, 0.5]) == [1]


def test_plots() -> None:
    assert nice_ticks(0, 100) == [0, 25, 50, 75, 100]
    ticks = nice_ticks(0, 0.0)
    assert len(ticks) >= 2 and ticks[0] == 0
    spike = [0.0] * 5000
    spike[3333] = 9.0
    assert max(v for _, v in thin(spike, highest=True)) == 9.0 and len(thin(spike, highest=True)) <= 1000
    gap = plot("p", [Curve("c", [1.0, 2.0, math.nan, 3.0], "red")])
    assert gap.count("<polyline") == 1 and gap.count("<circle") == 1 and "nan" not in gap
    assert "nan" not in plot("p", [Curve("c", [math.nan], "red")])
