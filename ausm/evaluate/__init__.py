"""Evaluation on the benchmarks of the paper. `davis` is the call that training makes between its iterations."""

from ausm.evaluate.semi_supervised import DavisResult, SequenceResult, davis

__all__ = ["DavisResult", "SequenceResult", "davis"]
