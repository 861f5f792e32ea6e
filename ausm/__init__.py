"""AUSM: Autoregressive Universal Video Segmentation Model (arXiv 2508.19242).

Legend of shapes: B clips, T frames, B' = B * T; N = h * w tokens at stride 8; D width; K tracked ids; Q = K + N_det
queries; H, W pixels. Symbols are the paper's: A ID vectors in use, B their buffer, V detection queries, X_t features,
E_t marked features, F_t compressed history, G_t decoded history, M_t masks.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before PyTorch loads OpenMP: threads that wait by spinning starve each other as soon as anything else wants the cores;
# threads that sleep at once spend a third of a step in waking up. So they spin for some 0.4 ms, longer than most of the
# gaps between a step's parallel regions, then sleep (docs/benchmarks.md). Whoever sets either variable decides alone.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}

if TYPE_CHECKING:
    from ausm.config import StreamConfig
    from ausm.errors import AusmError
    from ausm.stream import Stream
    from ausm.tracks import Source, StepOutput, Track, TrackState
    from ausm.weights import load

__all__ = ["AusmError", "Source", "StepOutput", "Stream", "StreamConfig", "Track", "TrackState", "load"]

# Loaded on first use: the command line's help and the simulator's worker processes need no PyTorch.
_HOME = {
    "AusmError": "errors",
    "Source": "tracks",
    "StepOutput": "tracks",
    "Stream": "stream",
    "StreamConfig": "config",
    "Track": "tracks",
    "TrackState": "tracks",
    "load": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ausm' has no attribute {name!r}")
    return getattr(import_module(f"ausm.{_HOME[name]}"), name)
