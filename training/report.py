"""What a run tells of itself: log.jsonl, one line an iteration, and the same for TensorBoard where it is installed."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

NOT_LOSSES = ("lr", "grad_norm", "seconds", "data_seconds")


class Report:
    """Appends to OUT/log.jsonl and OUT/tensorboard. The log is the source of truth, TensorBoard a view of it."""

    def __init__(self, out: Path, iteration: int, tensorboard: bool = True) -> None:
        """iteration: that of the last step already taken; what an earlier run wrote beyond it is void."""
        path = out / "log.jsonl"
        if iteration:
            _cut_log(path, iteration)
        elif path.exists():
            path.replace(out / "log.jsonl.old")  # a new run in an old folder
        self._lines = path.open("a")
        self._board = _open_board(out / "tensorboard", iteration) if tensorboard else None

    def step(self, row: Mapping[str, Any]) -> None:
        """One iteration. `row` has "iteration", numbers (loss terms among them) and words."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        if self._board is None:
            return
        for name, value in row.items():
            if name != "iteration" and isinstance(value, (int, float)):
                group = "training" if name in NOT_LOSSES else "validation" if name.startswith("validation") else "loss"
                self._board.add_scalar(f"{group}/{name.removeprefix('validation_')}", value, row["iteration"])

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Images (H, W, 3) uint8 RGB by name, for TensorBoard alone."""
        for name, image in pictures.items():
            if self._board is not None:
                self._board.add_image(f"validation/{name}", image, iteration, dataformats="HWC")

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path, iteration: int) -> Any:
    """A SummaryWriter, or None and one line in the log where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        log.warning("no TensorBoard files (%s): pip install tensorboard; log.jsonl has the numbers", error)
        return None
    return SummaryWriter(str(folder), purge_step=iteration + 1)


def _cut_log(path: Path, iteration: int) -> None:
    """A killed run went on after its last checkpoint: those iterations come again, and its last line may be cut."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _iteration(line) <= iteration]
    if len(kept) < len(lines):
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)


def _iteration(line: str) -> float:
    """Of a line of the log; infinite if it is cut."""
    try:
        return float(json.loads(line)["iteration"]) if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf
