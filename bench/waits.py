"""`python -m bench.waits`: how the threads of a step should wait for one another, alone and beside busy processes.

One process per setting, because OpenMP reads its settings once; they take turns, a few steps each. `ausm` is what
`import ausm` sets. Busy processes, where asked for, spin all the time, each in a process group of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch

import ausm
from bench.measure import Lap, cpu_ms, finish, lap, load, parse_size, percentiles, progress, table
from bench.scene import Scene

# libgomp's variables; "" leaves one unset. `import ausm` sets what is not set, so the first row is its choice.
VARIANTS: dict[str, dict[str, str]] = {
    "ausm": {},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "active": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "infinity"},
    **{f"passive, spin {n}": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(n)} for n in (2000, 10000, 20000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
TURN = 5  # steps
BUSY = "while True: pass"


def work(args: argparse.Namespace) -> int:
    """A worker: for each line on stdin, `TURN` steps, whose laps go to stdout."""
    model, _ = load(args.preset, args.checkpoint, "cpu")
    stream, scene = ausm.Stream(model, discover=False, precision=args.precision), Scene(*parse_size(args.size), 1)
    stream.prompt(scene.masks(0))
    for turn, _line in enumerate(sys.stdin):
        images = [scene.image(TURN * turn + i) for i in range(TURN)]
        laps = [lap(torch.device("cpu"), partial(stream.step, image)) for image in images]
        print(json.dumps(laps), flush=True)
    return 0


def start(variables: dict[str, str], argv: list[str]) -> "subprocess.Popen[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "bench.waits", "--worker", *argv]
    return subprocess.Popen(
        command, env={**clean, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def take_turn(worker: "subprocess.Popen[str]") -> list[Lap]:
    assert worker.stdin is not None and worker.stdout is not None
    print("go", file=worker.stdin, flush=True)
    return [Lap(*values) for values in json.loads(worker.stdout.readline())]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--turns", type=int, default=10, help=f"of {TURN} steps (default %(default)s)")
    parser.add_argument("--busy", type=int, default=0, help="processes that spin meanwhile (default %(default)s)")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by semicolons")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return work(args)
    workers = {name: start(VARIANTS[name], argv) for name in args.variants.split(";")}
    for worker in workers.values():
        take_turn(worker)  # warm
    others = [
        subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True, stdout=subprocess.DEVNULL)
        for _ in range(args.busy)
    ]
    laps: dict[str, list[Lap]] = {name: [] for name in workers}
    try:
        for turn in range(args.turns):
            for name, worker in workers.items():
                laps[name] += take_turn(worker)
            progress(turn + 1, args.turns)
    finally:
        processes: list[subprocess.Popen[Any]] = [*others, *workers.values()]
        for process in processes:
            process.kill()
            process.wait()
    first = next(iter(laps.values()))
    rows: list[dict[str, Any]] = []
    for name, own in laps.items():
        figures = percentiles("step", own)
        ratio = float(np.median([a.wall / b.wall for a, b in zip(own, first, strict=True)]))
        rows.append({"waits": name, "p50 ms": figures["step_p50_ms"], "p95 ms": figures["step_p95_ms"],
                     "CPU ms": cpu_ms(own), "ratio of wall": ratio})  # fmt: skip
    print(f"{args.preset}, {args.size}, {args.precision}, {args.busy} busy processes, {time.strftime('%F')}")
    print(table(rows))
    return finish({"rows": rows, "busy": args.busy})


if __name__ == "__main__":
    sys.exit(main())
