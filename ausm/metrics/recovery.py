"""Is an object found again, under its own id, after it was out of sight? The question a memory is there to answer.

The object is given by its mask on the first frame that shows it, it disappears, it returns. It counts as recovered when
the masks under its id overlap it by 0.5 on average over the first five frames on which enough of it is back.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

VISIBLE = 64  # pixels from which on an object counts as shown: 8 x 8
BACK = 0.25  # of its usual area, from which on enough of a returning object is seen to be judged
JUDGED_FRAMES = 5
RECOVERED = 0.5  # mean overlap


class Absence(NamedTuple):
    """The plan of one clip, as frame numbers."""

    prompt: int  # the first frame that shows the object
    start: int  # the first frame without it
    stop: int  # the first frame that shows a pixel of it again
    judged: tuple[int, ...]  # one to five frames after its return


class Outcome(NamedTuple):
    """What became of the object's id."""

    iou: float  # mean overlap with the object over the judged frames
    recovered: bool
    taken: bool  # over the judged frames its mask lies on some other object more than on the object itself
    lost: bool  # its mask is empty on all judged frames
    quiet: float  # share of the frames of absence on which its mask has fewer than VISIBLE pixels, as it should


def plan_absence(areas: np.ndarray, start: int, stop: int) -> Absence | None:
    """From the object's pixels per frame (T,) and its absence [start, stop); None where there is nothing to judge.

    Judged are the first JUDGED_FRAMES frames from `stop` on that show VISIBLE pixels and BACK of the median area it had
    before, so that a sliver at the edge of whatever hid it decides nothing.
    """
    shown = np.flatnonzero(areas >= VISIBLE)
    before, after = shown[shown < start], shown[shown >= stop]
    if not len(before):
        return None
    enough = max(VISIBLE, BACK * float(np.median(areas[before])))
    judged = after[areas[after] >= enough][:JUDGED_FRAMES]
    if not len(judged):
        return None
    return Absence(int(before[0]), start, stop, tuple(int(t) for t in judged))


def judge_recovery(masks: Mapping[int, np.ndarray], labels: np.ndarray, target: int, absence: Absence) -> Outcome:
    """masks: frame -> (H, W) bool under the object's id, for the frames of absence and those judged.

    labels (T, H, W): true instance of every pixel, 0 = none. target: the object's label.
    """
    overlaps, on_instance = [], np.zeros(int(labels.max()) + 1, np.int64)
    for t in absence.judged:
        mask, truth = masks[t], labels[t] == target
        overlaps.append(float((mask & truth).sum() / (mask | truth).sum()))  # the truth of a judged frame has pixels
        on_instance += np.bincount(labels[t][mask], minlength=len(on_instance))
    others = np.delete(on_instance, [0, target])
    hidden = [int(masks[t].sum()) < VISIBLE for t in range(absence.start, absence.stop)]
    iou = float(np.mean(overlaps))
    return Outcome(
        iou,
        recovered=iou >= RECOVERED,
        taken=bool(others.size and others.max() > on_instance[target]),
        lost=int(on_instance.sum()) == 0,
        quiet=float(np.mean(hidden)),
    )
