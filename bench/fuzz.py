"""`python -m bench.fuzz --requests 100000`: random requests and images; only typed results, and the stream goes on.

Three parts: the real callbacks, checks and decoders on a scripted stream, which is quick; the same on the real model
(`--real`); a node in a process of its own over DDS (`--dds`), with damaged messages on the wire and the rate of images
with and without a flood of requests. What is asserted: every answer has a known code that is not INTERNAL_ERROR; no
exception; images are counted without a gap; memory does not grow by what a message announces (PEAK); an ordinary
image is processed afterwards. Prints a table and, as its last line, one JSON object; the exit status is 0 if all hold.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ausm.errors import AusmError

PEAK = 150 * 2**20  # bytes that the peak of resident memory may rise: the smallest image bomb takes 192 MB
WARM_UP = 500  # requests before memory is compared


class Failed(AusmError):
    """Something that must never happen."""


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def throw(rig: Any, dice: Any, number: int, seen: Counter[Any]) -> int:
    """`number` random messages through the callbacks; returns by how many bytes the peak of memory rose."""
    from bench.fuzz_rig import check_answer

    base = peak_bytes()
    for k in range(number):
        kind = dice.r.random()
        if kind < 0.4:
            rig.camera.receive(dice.camera_image())
        elif kind < 0.45:
            rig.camera.receive(dice.compressed())
        else:
            name, request, response = dice.request()
            if rig.answers[name](request, response) is not response:
                raise Failed(f"{name} gave another object back")
            check_answer(name, request, response, seen)
        if k % 50 == 0:
            rig.camera.enabled = True
        if k == min(WARM_UP, number // 2):
            base = peak_bytes()
        if k % 5000 == 0:
            print(f"\r{k}/{number}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    return peak_bytes() - base


def in_process(number: int, seed: int, real: bool) -> dict[str, Any]:
    """One part without DDS; raises Failed or AssertionError. real: the model, at 64x96, else a scripted stream."""
    from ausm_ros.counts import DROPS
    from bench.fuzz_dice import Dice
    from bench.fuzz_rig import Rig
    from bench.scripted_stream import ScriptedStream

    if real:
        import ausm

        model = ausm.load("nano", device="cpu", weights=False)
        stream: Any = ausm.Stream(model, config=ausm.StreamConfig(short_side=64))
        size = (64, 96)
    else:
        stream, size = ScriptedStream(discover=True, capacity=100), (24, 32)
    rig, dice, seen = Rig(stream), Dice(seed, size), Counter[Any]()
    rig.worker.start()
    start = time.monotonic()
    try:
        rise = throw(rig, dice, number, seen)
        rig.camera.enabled = True
        before, end = rig.published, time.monotonic() + 60
        while rig.published == before:  # after all that, an ordinary image is processed as ever
            if time.monotonic() > end:
                raise Failed(f"no image is processed any more: {rig.fatal} {rig.errors}")
            rig.camera.receive(dice.good_image())
            time.sleep(0.01)
    finally:
        rig.worker.stop()
    lines = [text for text in rig.errors if "failed at" in text]
    if rig.fatal or lines or rig.errors["internal"] or rig.errors["prompt"]:
        raise Failed(f"errors inside: {rig.fatal} {lines} {rig.errors}")
    totals = rig.counts.totals((*DROPS, "received", "processed"))
    if totals["received"] != totals["processed"] + sum(totals[name] for name in DROPS):
        raise Failed(f"images do not add up: {totals}")
    if rise > PEAK:
        raise Failed(f"the peak of memory rose by {rise / 2**20:.0f} MiB")
    return {
        "messages": number,
        "seconds": time.monotonic() - start,
        "images": totals["processed"],
        "peak_mib": rise / 2**20,
        "codes": {code.name: n for code, n in sorted(seen.items())},
    }


def report(name: str, part: dict[str, Any]) -> None:
    codes = part.pop("codes")
    figures = "  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in part.items())
    print(f"{name:10s} {figures}")
    print(f"{'':10s} {' '.join(f'{k} {v}' for k, v in codes.items())}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="messages on the scripted stream")
    parser.add_argument("--real", type=int, default=500, help="messages on the real model")
    parser.add_argument("--dds", type=int, default=1000, help="requests to a node over DDS; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    parts: dict[str, dict[str, Any]] = {}
    failed = ""
    try:
        for name, number in (("scripted", args.requests), ("model", args.real)):
            if number:
                parts[name] = in_process(number, args.seed, name == "model")
                report(name, dict(parts[name]))
        if args.dds:
            from bench.fuzz_dds import over_dds

            log = Path(tempfile.mkdtemp(prefix="ausm_fuzz_")) / "node.log"
            parts["dds"] = over_dds(args.dds, args.seed, log)
            report("dds", dict(parts["dds"]))
    except (AssertionError, AusmError) as error:
        failed = f"{type(error).__name__}: {error}"
        print(failed, file=sys.stderr)
    rounded = {
        name: {k: round(v, 3) if isinstance(v, float) else v for k, v in part.items()} for name, part in parts.items()
    }
    print(json.dumps({**rounded, "seed": args.seed, "failed": failed, "passed": not failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
