"""`python -m bench.startup`: from a fresh process to the first masks, by stage, with and without compiled kernels.

Each run is a process of its own. CPU seconds include the compiler's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from bench.measure import finish, table

STAGES = ("import", "load", "stream", "first step", "second step")
CHILD = """
import json, resource, sys, time
def spent():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.time(), sum(u.ru_utime + u.ru_stime for u in used)
marks = [(float(sys.argv[1]), 0.0)]
import ausm, numpy
ausm.Stream
marks.append(spent())
model = ausm.load(sys.argv[2], device=sys.argv[3])
marks.append(spent())
stream = ausm.Stream(model, precision="auto")
marks.append(spent())
for _ in range(2):
    stream.step(numpy.zeros((480, 640, 3), numpy.uint8))
    marks.append(spent())
print(json.dumps(marks))
"""


def start(checkpoint: str, device: str, cache: str) -> np.ndarray:
    """(stages, 2): wall and CPU seconds of each stage of one process."""
    import time

    command = [sys.executable, "-c", CHILD, str(time.time()), checkpoint, device]
    env = {**os.environ, "XDG_CACHE_HOME": cache}
    done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
    return np.diff(np.array(json.loads(done.stdout.splitlines()[-1])), axis=0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        cold = start(args.checkpoint, args.device, cache)
        warm = np.median([start(args.checkpoint, args.device, cache) for _ in range(args.runs)], axis=0)
    for name, values in (("first ever (kernels compiled)", cold), ("later", warm)):
        seconds = {stage: f"{wall:.2f} ({cpu:.2f})" for stage, (wall, cpu) in zip(STAGES, values, strict=True)}
        rows.append({"start: seconds (CPU)": name, **seconds, "to first masks": f"{values[:4, 0].sum():.2f}"})
    print(table(rows))
    return finish(
        {
            "first_ever_s": round(float(cold[:4, 0].sum()), 3),
            "first_ever_cpu_s": round(float(cold[:4, 1].sum()), 3),
            "later_s": round(float(warm[:4, 0].sum()), 3),
            "later_cpu_s": round(float(warm[:4, 1].sum()), 3),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
