"""How the time of a step grows with the number of objects, the size of the image, or the inner resolution.

    python -m bench.sweep objects [--values 0,1,5,10,20,50]
    python -m bench.sweep size [--values 240x320,480x640,720x1280,1080x1920]
    python -m bench.sweep short_side [--values 192,256,320,384]

The streams take turns, frame by frame, so that a busy machine slows all alike: read the ratios to the row marked 1.
Every object is prompted anew before each step, outside the time measured, so that all of them are there to be followed.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch

import ausm
from ausm.config import PRESETS
from ausm.errors import AusmError
from bench.measure import Lap, cpu_ms, finish, lap, load, parse_size, percentiles, progress, table
from bench.scene import Scene

VALUES = {"objects": "0,1,5,10,20,50", "size": "240x320,480x640,720x1280,1080x1920", "short_side": "192,256,320,384"}
REFERENCE = {"objects": "1", "size": "480x640", "short_side": "320"}  # the row that ratios refer to
WARM = 5  # rounds before the measurement


class Runner:
    """One stream with its own scene."""

    def __init__(self, model: Any, size: str, objects: int, short_side: int | None, precision: str) -> None:
        self.scene = Scene(*parse_size(size), objects)
        self.stream = ausm.Stream(model, False, 0, ausm.StreamConfig(short_side=short_side), precision)
        self.laps: list[Lap] = []
        self.ids = self.stream.prompt(self.scene.masks(0)) if objects else []

    def step(self, frame: int) -> None:
        if self.ids and frame:
            self.stream.prompt(self.scene.masks(frame - 1), track_ids=self.ids)
        image = self.scene.image(frame)
        one = lap(self.stream.model.X_0.device, lambda: self.stream.step(image))
        if frame >= WARM:
            self.laps.append(one)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(VALUES))
    parser.add_argument("--values", help="separated by commas")
    parser.add_argument("--frames", type=int, default=60, help="rounds (default %(default)s)")
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS))
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    values = (args.values or VALUES[args.what]).split(",")
    model, source = load(args.preset, args.checkpoint, args.device)
    runners = {}
    for value in values:
        settings = {"size": "480x640", "objects": "1", "short_side": "", args.what: value}
        if args.what != "size" and not value.isdecimal():
            raise AusmError(f"{args.what} {value!r} is not a number")
        short_side = int(settings["short_side"]) if settings["short_side"] else None
        runners[value] = Runner(model, settings["size"], int(settings["objects"]), short_side, args.precision)
    for frame in range(WARM + args.frames):
        for runner in runners.values():
            runner.step(frame)
        progress(frame + 1, WARM + args.frames)
    reference = runners.get(REFERENCE[args.what], next(iter(runners.values())))
    rows = []
    for value, runner in runners.items():
        paired = zip(runner.laps, reference.laps, strict=True)
        wall, cpu = np.median([(a.wall / b.wall, a.cpu / b.cpu) for a, b in paired], axis=0)
        rows.append(
            {
                args.what: value,
                "p50 ms": percentiles("step", runner.laps)["step_p50_ms"],
                "CPU ms": cpu_ms(runner.laps),
                "ratio of wall": float(wall),
                "ratio of CPU": float(cpu),
                "state MB": runner.stream.state_bytes / 2**20,
            }
        )
    first = next(iter(runners.values())).stream
    print(f"{model.config.name} ({source}), {first.precision}, {torch.get_num_threads()} threads, {args.frames} rounds")
    print(table(rows))
    return finish({"what": args.what, "rows": rows, "precision": first.precision, "weights": source})


if __name__ == "__main__":
    sys.exit(main())
