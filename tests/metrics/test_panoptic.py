"""VPQ and STQ: against their definitions computed mask by mask, and cases worked by hand."""

import math

import numpy as np
import pytest

from ausm.errors import AusmError, InputError, SizeError
from ausm.metrics.panoptic import PanopticFrame, Segment, VpqScorer, vpq
from ausm.metrics.stq import StqScorer

THING, STUFF = 1, 2


def row(*ids: int) -> np.ndarray:
    return np.array([ids])


def frames(truth: list, found: list, true_segments: dict, found_segments: dict) -> list[PanopticFrame]:
    video = []
    for t, f in zip(truth, found, strict=True):
        listed = {i: s for i, s in found_segments.items() if i in f}
        video.append(PanopticFrame(t, f, {i: s for i, s in true_segments.items() if i in t}, listed))
    return video


def random_video(seed: int) -> list[PanopticFrame]:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.repeat(rng.integers(0, 5, (6, 4, 5)), 4, 1), 4, 2)
    found = np.where(rng.random(truth.shape) < 0.25, rng.integers(0, 6, truth.shape), truth)
    kinds = {i: Segment(int(rng.integers(1, 4))) for i in range(1, 6)}
    other = {i: s if rng.random() < 0.7 else Segment(1) for i, s in kinds.items()}
    return frames(list(truth), list(found), kinds, other)


def plain_vpq(video: list[PanopticFrame], window: int) -> float:
    """The definition, mask by mask."""
    overlap, hits, false, missed = (dict.fromkeys(range(1, 4), 0.0) for _ in range(4))
    for start in range(len(video) - window + 1):
        clip = video[start : start + window]
        truth, found = np.stack([f.truth for f in clip]), np.stack([f.prediction for f in clip])
        true_kind = {i: s.category for f in clip for i, s in f.truth_segments.items()}
        found_kind = {i: s.category for f in clip for i, s in f.predicted_segments.items()}
        used = set()
        for i, category in true_kind.items():
            match = None
            for k, other in found_kind.items():
                a, b = truth == i, (found == k) & (truth != 0)
                iou = (a & b).sum() / (a | b).sum()
                if other == category and iou > 0.5:
                    match = k, iou
            if match is None:
                missed[category] += 1
            else:
                used.add(match[0])
                hits[category] += 1
                overlap[category] += match[1]
        for k, category in found_kind.items():
            if k not in used and ((found == k) & (truth == 0)).sum() <= 0.5 * (found == k).sum():
                false[category] += 1
    sizes = {c: hits[c] + 0.5 * false[c] + 0.5 * missed[c] for c in overlap}
    return float(np.mean([overlap[c] / size for c, size in sizes.items() if size]))


@pytest.mark.parametrize("seed", range(5))
def test_vpq_is_its_definition(seed: int) -> None:
    video = random_video(seed)
    for window, quality in vpq([video], (1, 2, 4)).items():
        assert pytest.approx(plain_vpq(video, window), abs=1e-9) == quality.PQ
        assert 0.05 < quality.PQ < 0.95


def test_an_id_switch_hurts_only_windows_across_it() -> None:
    kinds, found_kinds = {1: Segment(THING)}, {8: Segment(THING), 9: Segment(THING)}
    video = frames([row(1, 1, 0)] * 4, [row(8, 8, 0)] * 2 + [row(9, 9, 0)] * 2, kinds, found_kinds)
    results = vpq([video], (1, 2, 4))
    assert results[1] == (1.0, 1.0, 1.0)
    # three windows of two frames: two hits, and one in which each id covers exactly one half, which is no hit
    assert pytest.approx(2 / (2 + 0.5 * 2 + 0.5 * 1)) == results[2].PQ and results[2].SQ == 1.0
    assert results[4].PQ == 0.0
    assert math.isnan(vpq([video], (6,))[6].PQ)  # too short for a tube


def test_void_and_crowds() -> None:
    on_void = frames(
        [row(1, 1, 0, 0, 0)], [row(7, 7, 7, 8, 8)], {1: Segment(THING)}, dict.fromkeys((7, 8), Segment(THING))
    )
    assert vpq([on_void], (1,))[1] == (1.0, 1.0, 1.0)  # void costs neither overlap nor a false alarm
    crowd = {1: Segment(THING), 2: Segment(THING, is_crowd=True)}
    on_crowd = frames([row(1, 1, 2, 2)], [row(7, 7, 8, 8)], crowd, dict.fromkeys((7, 8), Segment(THING)))
    assert vpq([on_crowd], (1,))[1] == (1.0, 1.0, 1.0)
    elsewhere = frames([row(1, 1, 2, 2)], [row(7, 7, 8, 8)], crowd, {7: Segment(THING), 8: Segment(STUFF)})
    assert pytest.approx((0.5, 0.5, 0.5)) == vpq([elsewhere], (1,))[1]  # another class on a crowd is false


def test_things_and_stuff_apart() -> None:
    kinds = {1: Segment(THING), 2: Segment(STUFF)}
    scorer = VpqScorer(1)
    scorer.feed(frames([row(1, 1, 2, 2)], [row(1, 1, 1, 2)], kinds, kinds))
    assert pytest.approx(2 / 3) == scorer.finish([THING]).PQ
    assert scorer.finish([STUFF]).PQ == 0.0  # one half is no hit
    assert pytest.approx(1 / 3) == scorer.finish().PQ


def test_vpq_faults() -> None:
    good = PanopticFrame(row(1, 1), row(1, 1), {1: Segment(1)}, {1: Segment(1)})
    with pytest.raises(SizeError, match=r"\(1, 2\), prediction \(1, 3\)"):
        VpqScorer(1).feed([good._replace(prediction=row(1, 1, 1))])
    with pytest.raises(InputError, match=r"not listed: \[5\], listed only: \[1\]"):
        VpqScorer(1).feed([good._replace(prediction=row(5, 5))])


def plain_stq(videos: list[tuple[np.ndarray, ...]], classes: int, things: set[int]) -> tuple[float, float]:
    """The definition, tube by tube, without void."""
    terms = []
    for true_class, true_instance, found_class, found_instance in videos:
        crowd = np.isin(true_class, list(things)) & (true_instance == 0)
        for c in things:
            for i in np.unique(true_instance[true_class == c]):
                tube = (true_class == c) & (true_instance == i) & ~crowd
                if not tube.any():
                    continue
                total = 0.0
                for d in things:
                    for k in np.unique(found_instance[found_class == d]):
                        other = (found_class == d) & (found_instance == k) & ~crowd
                        common = (tube & other).sum()
                        total += common * common / max((tube | other).sum(), 1)
                terms.append(total / tube.sum())
    ious = []
    for c in range(classes):
        a = np.concatenate([(v[0] == c).ravel() for v in videos])
        b = np.concatenate([(v[2] == c).ravel() for v in videos])
        if (a | b).any():
            ious.append((a & b).sum() / (a | b).sum())
    return float(np.mean(terms)), float(np.mean(ious))


@pytest.mark.parametrize("seed", range(5))
def test_stq_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    videos = []
    for _ in range(2):
        truth = [np.repeat(rng.integers(0, n, (5, 3, 4)), 5, 2) for n in (4, 3)]
        videos.append((*truth, *(np.where(rng.random(m.shape) < 0.2, rng.integers(0, 3, m.shape), m) for m in truth)))
    scorer = StqScorer(4, {1, 2})
    for name, video in enumerate(videos):
        for frame in zip(*video, strict=True):
            scorer.feed(*frame, sequence=str(name))
    result, (association, quality) = scorer.finish(), plain_stq(videos, 4, {1, 2})
    assert pytest.approx((association, quality), abs=1e-9) == (result.AQ, result.SQ)
    assert pytest.approx(math.sqrt(association * quality), abs=1e-9) == result.STQ


def test_stq_by_hand() -> None:
    scorer = StqScorer(3, {1})
    for instance in (5, 5, 6, 6):  # an id switch in the middle
        scorer.feed(row(0, 1, 1, 255), row(0, 1, 1, 0), row(0, 1, 1, 2), row(0, instance, instance, 0))
    # the tube of 8 pixels is covered by two halves: (4 * 4/8 + 4 * 4/8) / 8
    assert scorer.finish() == pytest.approx((math.sqrt(0.5), 0.5, 1.0))  # class 2 on void costs nothing


def test_stq_crowd_does_not_count() -> None:
    scorer = StqScorer(2, {1})
    scorer.feed(row(1, 1, 1, 1), row(3, 3, 0, 0), row(1, 1, 1, 1), row(9, 9, 9, 9))
    assert scorer.finish().AQ == 1.0


def test_stq_faults() -> None:
    scorer = StqScorer(2, {1})
    with pytest.raises(InputError, match="no pixel"):
        scorer.finish()
    with pytest.raises(SizeError, match="sizes"):
        scorer.feed(row(1), row(1), row(1, 1), row(1))
    with pytest.raises(AusmError, match=r"classes 5\.\.5, there are 0\.\.1 and 255"):
        scorer.feed(row(1), row(1), row(5), row(1))
    with pytest.raises(AusmError, match="65535"):
        scorer.feed(row(1), row(1), row(1), row(1 << 16))
