"""Do ids last? HOTA (Luiten et al. 2021), IDF1 (Ristani et al. 2016) and MOTA on masks, by the package TrackEval."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ausm.errors import AusmError, InputError, SizeError


class TrackingScores(NamedTuple):
    """Fractions (MOTA may be negative) and counts. HOTA, DetA, AssA, LocA are means over overlaps 0.05 .. 0.95."""

    HOTA: float
    DetA: float
    AssA: float
    LocA: float
    IDF1: float
    IDP: float
    IDR: float
    MOTA: float
    id_switches: int
    missed: int  # true masks without a match at overlap 0.5
    false: int  # predicted masks without one
    true_tracks: int
    predicted_tracks: int


def pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of masks (n, H, W) and (m, H, W) bool; 0 where both are empty."""
    a = first.reshape(len(first), -1).astype(np.float32)  # float32 holds counts up to 16 million pixels exactly
    b = second.reshape(len(second), -1).astype(np.float32)
    intersection = (a @ b.T).astype(np.float64)
    union = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64)[None, :] - intersection
    overlap: np.ndarray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return overlap


class TrackingScorer:
    """Collects one sequence frame by frame; holds overlaps and ids only, no masks."""

    def __init__(self) -> None:
        self._truth: list[np.ndarray] = []  # (n_t,) indices of true ids
        self._found: list[np.ndarray] = []  # (m_t,) indices of predicted ids
        self._overlaps: list[np.ndarray] = []  # (n_t, m_t)
        self._true_ids: dict[int, int] = {}
        self._found_ids: dict[int, int] = {}

    def feed(self, prediction: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray]) -> None:
        """The next frame: id -> (H, W) bool mask. Empty masks do not count. Raises SizeError for masks of two sizes."""
        found = {i: m for i, m in prediction.items() if m.any()}
        wanted = {i: m for i, m in truth.items() if m.any()}
        shapes = {m.shape for m in (*found.values(), *wanted.values())}
        if len(shapes) > 1:
            raise SizeError(f"masks of {len(shapes)} sizes on one frame: {sorted(shapes)} (H, W)")
        if found and wanted:
            overlaps = pairwise_iou(np.stack(list(wanted.values())), np.stack(list(found.values())))
        else:
            overlaps = np.zeros((len(wanted), len(found)))
        self._truth.append(_indices(wanted, self._true_ids))
        self._found.append(_indices(found, self._found_ids))
        self._overlaps.append(overlaps)

    def finish(self) -> TrackingScores:
        """Raises InputError when no frame was fed or there is nothing in any of them."""
        if not self._true_ids and not self._found_ids:
            raise InputError(f"{len(self._truth)} frames without any true or predicted object")
        data = {
            "num_timesteps": len(self._truth),
            "num_gt_ids": len(self._true_ids),
            "num_tracker_ids": len(self._found_ids),
            "num_gt_dets": sum(map(len, self._truth)),
            "num_tracker_dets": sum(map(len, self._found)),
            "gt_ids": self._truth,
            "tracker_ids": self._found,
            "similarity_scores": self._overlaps,
        }
        hota, identity, clear = (metric.eval_sequence(dict(data)) for metric in _metrics())
        return TrackingScores(
            HOTA=float(np.mean(hota["HOTA"])),
            DetA=float(np.mean(hota["DetA"])),
            AssA=float(np.mean(hota["AssA"])),
            LocA=float(np.mean(hota["LocA"])),
            IDF1=float(identity["IDF1"]),
            IDP=float(identity["IDP"]),
            IDR=float(identity["IDR"]),
            MOTA=float(clear["MOTA"]),
            id_switches=int(clear["IDSW"]),
            missed=int(clear["CLR_FN"]),
            false=int(clear["CLR_FP"]),
            true_tracks=len(self._true_ids),
            predicted_tracks=len(self._found_ids),
        )


def _indices(masks: Iterable[int], known: dict[int, int]) -> np.ndarray:
    """Positions of ids in order of first appearance, which TrackEval wants without gaps."""
    return np.array([known.setdefault(i, len(known)) for i in masks], dtype=int)


def _metrics() -> tuple[Any, Any, Any]:
    """TrackEval's metrics; it is no dependency because its own list would bring a second OpenCV."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of loaders that miss a package; none is used here
            from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise AusmError("HOTA and IDF1 need TrackEval: pip install --no-deps trackeval==1.3.0") from error
    return HOTA(), Identity({"PRINT_CONFIG": False}), CLEAR({"PRINT_CONFIG": False})
