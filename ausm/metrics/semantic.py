"""Mean IoU and video consistency (mVC) of semantic video segmentation, as VSPW defines them (Miao et al. 2021)."""

from collections.abc import Sequence

import numpy as np

from ausm.errors import AusmError, InputError, SizeError

VSPW_CLASSES = 124


def vspw_truth(labels: np.ndarray) -> np.ndarray:
    """A VSPW annotation (H, W) uint8 as classes 0..123 and 255: its values 0 ("others") and 255 are void."""
    return np.where((labels == 0) | (labels == 255), 255, labels - 1).astype(np.uint8)


class MeanIou:
    """Collects frames; classes are 0..classes-1, any other true value is void."""

    def __init__(self, classes: int = VSPW_CLASSES) -> None:
        self._classes = classes
        self._confusion = np.zeros((classes, classes), np.int64)

    def feed(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """The next frame, two (H, W) maps. Raises SizeError, and AusmError for a predicted class out of range."""
        if prediction.shape != truth.shape:
            raise SizeError(f"prediction {prediction.shape}, truth {truth.shape} (H, W)")
        judged = truth < self._classes
        found, wanted = prediction[judged].astype(np.int64), truth[judged].astype(np.int64)
        if found.size and not 0 <= found.min() <= found.max() < self._classes:
            raise AusmError(f"predicted classes {found.min()}..{found.max()}, there are 0..{self._classes - 1}")
        joint = wanted * self._classes + found
        self._confusion += np.bincount(joint, minlength=self._classes**2).reshape(self._classes, self._classes)

    def finish(self) -> float:
        """Mean over the classes that occur in the truth, 0..1. Raises InputError when no pixel was judged."""
        hits, wanted = self._confusion.diagonal(), self._confusion.sum(1)
        present = wanted > 0
        if not present.any():
            raise InputError("no pixel to judge")
        unions = wanted + self._confusion.sum(0) - hits
        return float((hits[present] / unions[present]).mean())


def clip_consistency(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray], window: int) -> list[float]:
    """Per clip of `window` frames: of the pixels whose true class stays, the share whose predicted class stays too.

    As the official tool does, the last clip of a video is left out (a video of `window` frames has none), and a clip
    without a lasting pixel is nan. mVC is the mean over the clips of all videos, nan left out.
    """
    if len(predictions) != len(truths):
        raise SizeError(f"{len(predictions)} predictions, {len(truths)} truths")
    still_true = [truths[i] == truths[i + 1] for i in range(len(truths) - 1)]
    still_found = [predictions[i] == predictions[i + 1] for i in range(len(predictions) - 1)]
    values = []
    for start in range(len(truths) - window):
        lasting = np.logical_and.reduce(still_true[start : start + window - 1])
        kept = np.logical_and.reduce(still_found[start : start + window - 1]) & lasting
        count = np.count_nonzero(lasting)
        values.append(np.count_nonzero(kept) / count if count else float("nan"))
    return values
