"""AUSM: Autoregressive Universal Video Segmentation Model (arXiv 2508.19242).

Legend of shapes: B clips, T frames, B' = B * T; N = h * w tokens at stride 8; D width; K tracked ids; Q = K + N_det
queries; H, W pixels. Symbols are the paper's: A ID vectors in use, B their buffer, V detection queries, X_t features,
E_t marked features, F_t compressed history, G_t decoded history, M_t masks.
"""

import os

# Before PyTorch loads OpenMP: threads that wait by spinning starve each other as soon as anything else wants the cores.
# Two threads on two cores beside one busy process: 3,180 ms a step spinning, 200 ms passive (docs/benchmarks.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ausm.config import StreamConfig  # noqa: E402
from ausm.errors import AusmError  # noqa: E402
from ausm.stream import Stream  # noqa: E402
from ausm.tracks import Source, StepOutput, Track, TrackState  # noqa: E402
from ausm.weights import load  # noqa: E402

__all__ = ["AusmError", "Source", "StepOutput", "Stream", "StreamConfig", "Track", "TrackState", "load"]
