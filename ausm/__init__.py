"""AUSM: Autoregressive Universal Video Segmentation Model (arXiv 2508.19242).

Legend of shapes: B clips, T frames, B' = B * T; N = h * w tokens at stride 8; D width; K tracked ids; Q = K + N_det
queries; H, W pixels. Symbols are the paper's: A ID vectors in use, B their buffer, V detection queries, X_t features,
E_t marked features, F_t compressed history, G_t decoded history, M_t masks.
"""

from ausm.config import StreamConfig
from ausm.errors import AusmError
from ausm.stream import Stream
from ausm.tracks import Source, StepOutput, Track, TrackState
from ausm.weights import load

__all__ = ["AusmError", "Source", "StepOutput", "Stream", "StreamConfig", "Track", "TrackState", "load"]
