"""Discovery pooled over videos: the figures by hand, and the same as those of each video alone where it is alone."""

import numpy as np
import pytest

from ausm.errors import InputError
from ausm.metrics.discovery import DiscoveryScorer

pytest.importorskip("trackeval", reason="IDF1 is computed by TrackEval")

SIZE = (16, 40)


def box(x: int, width: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[2:10, x : x + width] = True
    return mask


def scorer_of(*videos: list[tuple[dict, dict]]) -> DiscoveryScorer:
    """Per frame: found masks and true masks. Every found one scores 0.9, but id 9 scores 0.1."""
    scorer = DiscoveryScorer()
    for video in videos:
        scorer.start(*SIZE)
        for found, truth in video:
            scorer.feed(found, {i: 0.1 if i == 9 else 0.9 for i in found}, truth)
    return scorer


def test_perfect_tracks_of_two_videos() -> None:
    video = [({1: box(2)}, {5: box(2)}), ({1: box(4)}, {5: box(4)})]
    scores = scorer_of(video, video).finish()
    assert (scores.AP, scores.AP50, scores.IDF1, scores.MOTA) == (100, 100, 100, 100)
    # the same ids in both videos are four tracks, not two
    assert (scores.true_tracks, scores.predicted_tracks, scores.videos, scores.frames) == (2, 2, 2, 4)


def test_an_id_switch_costs_half_of_idf1_and_all_of_ap50() -> None:
    truth = {1: box(2)}
    scores = scorer_of([*[({1: box(2)}, truth)] * 2, *[({2: box(2)}, truth)] * 2]).finish()
    # one of the two tracks is matched: 2 of 4 true masks and 2 of 4 found ones
    assert pytest.approx(50) == scores.IDF1 and scores.id_switches == 1
    assert pytest.approx(100) == scores.AP50  # overlap of one half is just enough
    late = scorer_of([({}, truth), ({1: box(2)}, truth), ({2: box(2)}, truth)]).finish()
    assert late.AP50 == 0


def test_a_false_track_counts_by_its_score() -> None:
    truth = {1: box(2)}
    weak = scorer_of([({1: box(2), 9: box(20)}, truth)] * 2).finish()
    assert pytest.approx(100) == weak.AP50  # ranked below the right one
    assert pytest.approx(50) == weak.IDP and pytest.approx(100) == weak.IDR and weak.false == 2
    strong = scorer_of([({9: box(2), 1: box(20)}, truth)] * 2).finish()
    assert pytest.approx(50) == strong.AP50  # precision where the one true track is found


def test_a_video_without_objects_still_counts_its_false_tracks() -> None:
    good, empty = [({1: box(2)}, {5: box(2)})], [({1: box(2)}, {}), ({1: box(2)}, {})]
    scores = scorer_of(good, empty).finish()
    assert scores.false == 2 and pytest.approx(100 / 3) == scores.IDP and scores.IDR == 100
    assert pytest.approx(100) == scores.AP50  # the two tracks tie; pycocotools keeps the order of the videos
    with pytest.raises(InputError, match="1 videos without any true object"):
        scorer_of(empty).finish()
