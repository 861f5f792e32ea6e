"""Recovery after an absence, on ten frames whose answers are worked out by hand."""

import numpy as np
import pytest

from ausm.metrics.recovery import Absence, judge_recovery, plan_absence

HEIGHT, WIDTH = 20, 60
PLACE, OTHER = (slice(2, 12), slice(5, 15)), (slice(2, 12), slice(30, 40))  # 100 pixels each


@pytest.fixture
def labels() -> np.ndarray:
    """Object 1 is out of sight on frames 3 to 6 of ten, object 2 (a look-alike) never."""
    maps = np.zeros((10, HEIGHT, WIDTH), np.uint8)
    maps[:, OTHER[0], OTHER[1]] = 2
    for t in (0, 1, 2, 7, 8, 9):
        maps[t, PLACE[0], PLACE[1]] = 1
    return maps


ABSENCE = Absence(0, 3, 7, (7, 8, 9))


def areas(**changed: int) -> np.ndarray:
    values = [100, 100, 100, 0, 0, 0, 0, 100, 100, 100]
    for name, value in changed.items():
        values[int(name[1:])] = value
    return np.array(values)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (areas(), ABSENCE),
        (areas(f0=63), Absence(1, 3, 7, (7, 8, 9))),  # too small a sliver to be prompted with
        (areas(f7=63), Absence(0, 3, 7, (8, 9))),  # or to be judged by
        (np.array([400, 400, 400, 0, 0, 0, 0, 99, 100, 400]), Absence(0, 3, 7, (8, 9))),  # a quarter of 400 is enough
        (np.array([100] * 3 + [0] * 4 + [100] * 9), Absence(0, 3, 7, (7, 8, 9, 10, 11))),  # five frames at most
        (areas(f0=0, f1=0, f2=10), None),
        (areas(f7=10, f8=10, f9=10), None),
    ],
)
def test_plan(found: np.ndarray, expected: Absence | None) -> None:
    assert plan_absence(found, 3, 7) == expected


def mask_at(*places: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for place in places:
        mask[place] = True
    return mask


NOTHING, HALF, LESS = mask_at(), mask_at((slice(2, 7), slice(5, 15))), mask_at((slice(2, 6), slice(5, 15)))


@pytest.mark.parametrize(
    ("hidden", "back", "iou", "recovered", "taken", "lost", "quiet"),
    [
        (NOTHING, mask_at(PLACE), 1.0, True, False, False, 1.0),
        (NOTHING, HALF, 0.5, True, False, False, 1.0),  # one half is enough,
        (NOTHING, LESS, 0.4, False, False, False, 1.0),  # less is not
        (mask_at(OTHER), mask_at(OTHER), 0.0, False, True, False, 0.0),
        (NOTHING, mask_at(PLACE, OTHER), 0.5, True, False, False, 1.0),  # as much on the one as on the other: no theft
        (NOTHING, NOTHING, 0.0, False, False, True, 1.0),
        (NOTHING, mask_at((slice(14, 20), slice(0, 20))), 0.0, False, False, False, 1.0),  # on the background
    ],
)
def test_outcomes(labels, hidden, back, iou, recovered, taken, lost, quiet) -> None:
    masks = {t: hidden if t < 7 else back for t in range(3, 10)}
    outcome = judge_recovery(masks, labels, 1, ABSENCE)
    assert outcome.iou == pytest.approx(iou)
    assert outcome[1:] == (recovered, taken, lost, quiet)


def test_the_mean_over_the_frames_decides(labels: np.ndarray) -> None:
    masks = dict.fromkeys(range(3, 10), NOTHING) | {8: mask_at(PLACE), 9: mask_at(PLACE)}
    masks[4] = mask_at(OTHER)
    outcome = judge_recovery(masks, labels, 1, ABSENCE)  # found one frame late
    assert outcome.iou == pytest.approx(2 / 3) and outcome.recovered and outcome.quiet == 0.75
    masks[9] = NOTHING
    assert not judge_recovery(masks, labels, 1, ABSENCE).recovered
