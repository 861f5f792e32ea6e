"""Track AP against TrackEval on random videos, and cases worked by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from trackeval.metrics import TrackMAP

from ausm.errors import InputError, SizeError
from ausm.metrics.tubes import Entry, Tube, TubeScores, encode_segmentation, evaluate_tubes, tube_of_segmentations

SIZE = (300, 420)  # large enough for all three area ranges


def random_track(rng: np.random.Generator, frames: int) -> list[np.ndarray | None]:
    """A drifting rectangle; None where it is hidden."""
    height, width = rng.integers(20, 290, 2)
    y, x = rng.integers(-20, 250), rng.integers(-20, 380)
    masks: list[np.ndarray | None] = []
    for _ in range(frames):
        y, x = y + rng.integers(-6, 7), x + rng.integers(-6, 7)
        mask = np.zeros(SIZE, bool)
        mask[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
        masks.append(mask if mask.any() and rng.random() > 0.2 else None)
    if all(m is None for m in masks):
        masks[0] = np.ones(SIZE, bool)
    return masks


def disturbed(rng: np.random.Generator, masks: list[np.ndarray | None]) -> list[np.ndarray | None]:
    shift = tuple(rng.integers(-30, 31, 2))
    found = [None if m is None or rng.random() < 0.1 else np.roll(m, shift, (0, 1)) for m in masks]
    return found if any(m is not None for m in found) else masks


def tube(masks: list[np.ndarray | None]) -> Tube:
    result = Tube(*next(m.shape for m in masks if m is not None))
    for mask in masks:
        result.append(mask)
    return result


def official(truth: list, found: list, videos: int, classes: list[int]) -> TubeScores:
    """The same by TrackEval. Tracks: (video, class, masks[, score])."""
    areas = [[0, 128**2], [128**2, 256**2], [256**2, 1e10]]
    settings = {"USE_TIME_RANGES": False, "AREA_RANGES": areas, "PRINT_CONFIG": False}

    def segments(masks):
        return {t: None if m is None else coco_mask.encode(np.asfortranarray(m, np.uint8)) for t, m in enumerate(masks)}

    def area(masks):
        return np.mean([m.sum() for m in masks if m is not None])

    def run(limit: int) -> list[dict]:
        results = []
        for wanted in classes:
            metric, sequences = TrackMAP(settings | {"MAX_DETECTIONS": limit}), {}
            for video in range(videos):
                t = [(i, e) for i, e in enumerate(truth, 1) if e[:2] == (video, wanted)]
                f = [(i, e) for i, e in enumerate(found, 1) if e[:2] == (video, wanted)]
                f.sort(key=lambda item: -item[1][3])
                sequences[video] = metric.eval_sequence(
                    {
                        "gt_track_ids": [i for i, _ in t],
                        "gt_tracks": [segments(e[2]) for _, e in t],
                        "gt_track_areas": [area(e[2]) for _, e in t],
                        "dt_track_ids": [i for i, _ in f],
                        "dt_tracks": [segments(e[2]) for _, e in f],
                        "dt_track_areas": [area(e[2]) for _, e in f],
                        "dt_track_scores": [e[3] for _, e in f],
                        "iou_type": "mask",
                    }
                )
            results.append(metric.combine_sequences(sequences))
        return results

    def mean(results: list[dict], field: str, part: slice | int = slice(None)) -> float:
        values = np.array([r[field][part] for r in results])
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    full = run(100)
    return TubeScores(
        mean(full, "AP_all"),
        mean(full, "AP_all", 0),
        mean(full, "AP_all", 5),
        mean(full, "AP_area_s"),
        mean(full, "AP_area_m"),
        mean(full, "AP_area_l"),
        mean(run(1), "AR_all"),
        mean(run(10), "AR_all"),
    )


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_trackeval(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for video in range(3):
        for _ in range(rng.integers(2, 5)):
            masks, wanted = random_track(rng, 4), int(rng.integers(1, 4))
            truth.append((video, wanted, masks))
            for _ in range(rng.integers(0, 3)):
                found.append((video, wanted, disturbed(rng, masks), float(rng.random())))
        found.append((video, int(rng.integers(1, 4)), random_track(rng, 4), float(rng.random())))
    ours = evaluate_tubes(
        [Entry(v, tube(m), c) for v, c, m in truth], [Entry(v, tube(m), c, s) for v, c, m, s in found]
    )
    theirs = official(truth, found, 3, sorted({c for _, c, _ in truth}))
    assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert 0.05 < ours.AP < 0.95  # the test says something
    agnostic = evaluate_tubes(
        [Entry(v, tube(m), c) for v, c, m in truth], [Entry(v, tube(m), c + 1, s) for v, c, m, s in found], True
    )
    flat = [(v, 1, m) for v, _, m in truth], [(v, 1, m, s) for v, _, m, s in found]
    assert agnostic == pytest.approx(official(*flat, 3, [1]), abs=1e-9, nan_ok=True)


def block(value: int, frames: int = 4) -> list[np.ndarray | None]:
    mask = np.zeros((8, 10), bool)
    mask[:, value : value + 2] = True
    return [mask] * frames


def test_perfect_and_absent_predictions() -> None:
    truth = [Entry(1, tube(block(0))), Entry(1, tube(block(4)))]
    assert evaluate_tubes(truth, truth)[:3] == pytest.approx((1, 1, 1))
    assert evaluate_tubes(truth, truth).AR1 == 0.5 and evaluate_tubes(truth, truth).AR10 == 1.0
    nothing = evaluate_tubes(truth, [])
    assert nothing.AP == nothing.AR10 == 0.0 and np.isnan(nothing.AP_large)


def test_an_id_switch_halves_the_overlap() -> None:
    truth = [Entry(1, tube(block(0)))]
    halves = [Entry(1, tube([*block(0)[:2], None, None]), 1, 0.9), Entry(1, tube([None, None, *block(0)[2:]]), 1, 0.8)]
    result = evaluate_tubes(truth, halves)  # overlap one half: a hit at 0.5 only
    assert pytest.approx(1.0) == result.AP50 and result.AP75 == 0.0
    assert pytest.approx(0.1) == result.AP


def test_a_false_track_above_the_true_one_costs_precision() -> None:
    truth = [Entry(1, tube(block(0)))]
    found = [Entry(1, tube(block(0)), 1, 0.5), Entry(1, tube(block(6)), 1, 0.9)]
    assert pytest.approx(0.5) == evaluate_tubes(truth, found).AP
    assert pytest.approx(1.0) == evaluate_tubes(truth, [found[0], found[1]._replace(score=0.1)]).AP


def test_wide_image_is_the_frames_side_by_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = [rng.random((5, 6)) < p for p in rng.choice([0, 0.3, 0.9, 1], 5)]
        built = Tube(5, 6)
        for mask in masks:
            built.append(mask if mask.any() or rng.random() < 0.5 else None)
        assert np.array_equal(coco_mask.decode(built.rle()), np.concatenate(masks, axis=1))
        areas = [m.sum() for m in masks if m.any()]
        assert built.mean_area == (np.mean(areas) if areas else 0)


def test_segmentations_of_every_form() -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:7] = True
    encoded = encode_segmentation(mask)
    polygon = [[3, 2, 7, 2, 7, 5, 3, 5]]
    plain = {"size": [8, 10], "counts": [26, 3, 5, 3, 5, 3, 5, 3, 27]}
    built = tube_of_segmentations([encoded, None, polygon, plain], 8, 10)
    wanted = np.concatenate([mask, np.zeros_like(mask), mask, mask], axis=1)
    assert np.array_equal(coco_mask.decode(built.rle()), wanted)
    assert encode_segmentation(np.zeros((8, 10), bool)) is None and isinstance(encoded["counts"], str)


def test_faults() -> None:
    with pytest.raises(InputError, match="no true track"):
        evaluate_tubes([], [Entry(1, tube(block(0)))])
    with pytest.raises(SizeError, match="mask 2x3 in a track of 8x10"):
        tube(block(0)).append(np.ones((2, 3), bool))
    with pytest.raises(SizeError, match="video 1"):
        evaluate_tubes([Entry(1, tube(block(0)))], [Entry(1, tube(block(0, frames=3)))])
