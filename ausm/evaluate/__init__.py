"""Evaluation on the benchmarks of the paper. Training calls `davis` and `coco` between its iterations."""

from ausm.evaluate.images import CocoResult, coco
from ausm.evaluate.semi_supervised import DavisResult, SequenceResult, davis

__all__ = ["CocoResult", "DavisResult", "SequenceResult", "coco", "davis"]
