"""What the benchmarks share: the model under test, clocks, memory, and how figures are printed."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import ausm
from ausm import weights
from ausm.errors import AusmError
from ausm.model import AUSM


class Load(NamedTuple):
    """A model and where its weights are from."""

    model: AUSM
    weights: str  # path, or "random"


class Lap(NamedTuple):
    """One step. CPU time is that of all threads of this process: waiting is not in it, the machine's own speed is."""

    wall: float  # seconds
    cpu: float


def load(preset: str, checkpoint: str | None, device: str, seed: int = 0, fuse: bool = True) -> Load:
    """The checkpoint, or the released one of the preset, or random weights where there is none (speed is the same)."""
    torch.manual_seed(seed)
    try:
        path = weights.resolve(checkpoint or preset)
    except AusmError:
        if checkpoint:
            raise
        return Load(ausm.load(preset, device=device, weights=False, fuse=fuse), "random")
    return Load(ausm.load(path, device=device, fuse=fuse), path.name)


def lap(device: torch.device, work: Callable[[], object]) -> Lap:
    """Times one call, the device's queue included."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return Lap(time.perf_counter() - wall, time.process_time() - cpu)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def percentiles(prefix: str, laps: Sequence[Lap]) -> dict[str, float]:
    """`<prefix>_p50_ms`, `_p95_ms`, `_p99_ms` of the wall clock, `_cpu_ms` the median CPU time."""
    values = np.percentile([1e3 * lap.wall for lap in laps], [50, 95, 99])
    figures = {f"{prefix}_p{p}_ms": round(float(v), 3) for p, v in zip((50, 95, 99), values, strict=True)}
    return figures | {f"{prefix}_cpu_ms": cpu_ms(laps)}


def cpu_ms(laps: Sequence[Lap]) -> float:
    """Median CPU time of a step, all threads together."""
    return round(float(np.median([1e3 * lap.cpu for lap in laps])), 3)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_bytes(device: torch.device) -> int:
    """Memory that tensors hold on a GPU; 0 on a CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def parse_size(text: str) -> tuple[int, int]:
    """ "480x640" -> (480, 640). Raises AusmError."""
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)) or not all(8 <= int(v) <= 8192 for v in match.groups()):
        raise AusmError(f"size {text!r} is not HxW of 8..8192 pixels, such as 480x640")
    return int(match[1]), int(match[2])


def progress(done: int, total: int, note: str = "") -> None:
    """A line on stderr that overwrites itself, some fifty times in all."""
    if done % max(1, total // 50) == 0 or done == total:
        print(f"\r{done}/{total} {note}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one set of keys as a Markdown table; numbers with three digits."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.3g}" if isinstance(v, float) and abs(v) < 100 else f"{v:,.0f}" if isinstance(v, float) else str(v)
               for v in row.values()] for row in rows]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finish(figures: dict[str, Any]) -> int:
    """The last line of every benchmark."""
    print(json.dumps(figures))
    return 0
