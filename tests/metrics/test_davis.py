"""J and F against vos-benchmark on random videos, and cases worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from vos_benchmark.benchmark import benchmark
from vos_benchmark.evaluator import Evaluator

from ausm.errors import InputError, SizeError
from ausm.masks import write_palette_png
from ausm.metrics.davis import SequenceScorer, boundary_f, jaccard, make_score, mean_statistics, statistics


def random_video(rng: np.random.Generator, frames: int, objects: int, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W) uint8: drifting ellipses that leave the image, hide each other and vanish for some frames."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    video = np.zeros((frames, *size), np.uint8)
    for i in range(1, objects + 1):
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        a, b = rng.uniform(1, size[0] / 2, 2)
        for t in range(frames):
            y, x = y + rng.normal(0, 4), x + rng.normal(0, 4)
            if t < 2 or rng.random() > 0.15:
                video[t][((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = i
    for i in range(1, objects + 1):
        video[:2, (7 * i) % size[0], (5 * i) % size[1]] = (
            i  # vos-benchmark starts to count when it first sees an object
        )
    return video


def disturbed(rng: np.random.Generator, video: np.ndarray) -> np.ndarray:
    """A prediction: shifted, with noise, wrong ids and empty frames."""
    found = np.stack([np.roll(frame, rng.integers(-3, 4, 2), (0, 1)) for frame in video])
    noise = rng.random(found.shape) < 0.02
    found[noise] = rng.integers(0, video.max() + 3, int(noise.sum()))
    found[rng.random(len(found)) < 0.1] = 0
    return found


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_vos_benchmark_frame_by_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = [(40, 64), (71, 53), (120, 213), (9, 9), (64, 40), (200, 120)][seed]
    truth = random_video(rng, 14, 1 + seed % 4, size)
    found = disturbed(rng, truth)
    official, ours = Evaluator(), SequenceScorer()
    for t in range(14):
        ours.feed(found[t], truth[t])
        if 0 < t < 13:
            official.feed_frame(found[t], truth[t])
    iou, f = official.conclude()
    scores = ours.finish()
    assert {s.object_id for s in scores} == set(iou)
    for score in scores:
        assert np.abs(np.array(score.j) - official.object_iou[score.object_id]).max() < 1e-9
        assert np.abs(np.array(score.f) - official.boundary_f[score.object_id]).max() < 1e-9
        assert 100 * score.J.mean == pytest.approx(iou[score.object_id], abs=1e-9)
        assert 100 * score.F.mean == pytest.approx(f[score.object_id], abs=1e-9)


def test_global_figures_equal_to_vos_benchmark_on_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    scores = []
    for name, objects in (("one", 1), ("three", 3)):
        truth = random_video(rng, 8, objects, (48, 80))
        found = disturbed(rng, truth)
        scorer = SequenceScorer()
        for kind, video in (("truth", truth), ("found", found)):
            (tmp_path / kind / name).mkdir(parents=True)
            for t, frame in enumerate(video):
                write_palette_png(tmp_path / kind / name / f"{t:05d}.png", frame)
        for t in range(8):
            scorer.feed(found[t], truth[t])
        scores += scorer.finish()
    jf, j, f, _ = benchmark([str(tmp_path / "truth")], [str(tmp_path / "found")], num_processes=1, verbose=False)
    ours = 100 * mean_statistics(s.J for s in scores).mean, 100 * mean_statistics(s.F for s in scores).mean
    assert ours == pytest.approx((j[0], f[0]), abs=1e-9)
    assert sum(ours) / 2 == pytest.approx(jf[0], abs=1e-9)


def test_by_hand() -> None:
    empty, full = np.zeros((10, 10), bool), np.ones((10, 10), bool)
    left = empty.copy()
    left[:, :5] = True
    assert jaccard(empty, empty) == 1.0 and boundary_f(empty, empty) == 1.0
    assert jaccard(empty, left) == 0.0 and boundary_f(empty, left) == boundary_f(left, empty) == 0.0
    assert jaccard(left, full) == 0.5
    assert boundary_f(full, empty) == 1.0  # a mask that fills the image has no boundary: the official tool says so too
    assert jaccard(full, empty) == 0.0
    shifted = np.roll(left, 3, axis=1)
    assert boundary_f(shifted, left) == 0.0  # tolerance is 1 pixel
    assert boundary_f(np.roll(left, 1, axis=1), left) == pytest.approx(2 * 0.5 * 1 / 1.5)  # of two edges one matches


def test_recall_and_decay_by_hand() -> None:
    result = statistics([1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.25, 0.25])
    assert result.mean == pytest.approx(3.5 / 8)
    assert result.recall == 2 / 8  # strictly above one half
    # bounds of the quarters are frames 0, 2, 4, 5, 7: 0..2 against 5..7
    assert result.decay == pytest.approx(2.5 / 3 - 0.5 / 3)
    assert statistics([0.7]) == (0.7, 1.0, 0.0)
    long = statistics(np.linspace(1, 0, 1000))
    assert long.decay == pytest.approx(0.75, abs=2e-3)
    with pytest.raises(InputError, match="0 frames"):
        statistics([])


def test_first_and_last_frame_do_not_count() -> None:
    truth, scorer, all_frames = np.ones((4, 4), np.uint8), SequenceScorer(), SequenceScorer(skip_ends=False)
    for found in (0, 1, 1, 0):
        scorer.feed(np.full((4, 4), found, np.uint8), truth)
        all_frames.feed(np.full((4, 4), found, np.uint8), truth)
    assert scorer.finish()[0].j == (1.0, 1.0)
    assert all_frames.finish()[0].j == (0.0, 1.0, 1.0, 0.0)


def test_an_object_nobody_found_scores_zero_and_an_absent_one_scores_one() -> None:
    truth = np.zeros((4, 6, 6), np.uint8)
    truth[:, 1:4, 1:4], truth[0, 5, 5] = 1, 2  # object 2 is there on the first frame only
    scorer = SequenceScorer()
    for frame in truth:
        scorer.feed(np.zeros_like(frame), frame)
    one, two = scorer.finish()
    assert one.j == one.f == (0.0, 0.0) and two.j == two.f == (1.0, 1.0)


def test_swapped_ids_score_zero() -> None:
    truth = np.zeros((8, 12), np.uint8)
    truth[1:5, 1:4], truth[1:5, 8:11] = 1, 2
    scorer = SequenceScorer()
    for _ in range(3):
        scorer.feed(np.where(truth, 3 - truth, 0), truth)
    assert [s.J.mean for s in scorer.finish()] == [0.0, 0.0]


def test_faults() -> None:
    scorer = SequenceScorer()
    with pytest.raises(SizeError, match=r"\(4, 5\).*\(5, 4\)"):
        scorer.feed(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))
    scorer.feed(np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8))
    with pytest.raises(SizeError):
        scorer.feed(np.zeros((5, 4), np.uint8), np.zeros((5, 4), np.uint8))
    with pytest.raises(InputError, match="no object"):
        scorer.finish()
    short = SequenceScorer()
    short.feed(np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8))
    with pytest.raises(InputError, match="at least 3"):
        short.finish()
    with pytest.raises(InputError, match="0 objects"):
        mean_statistics([])
    assert make_score(4, [1.0], [0.0]).F.mean == 0.0
