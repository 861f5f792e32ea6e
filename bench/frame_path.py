"""`python -m bench.frame_path`: what each part of `ausm.inference` gains, in paired steps of the same frames.

The variants take turns on every frame; ratios are of the CPU time of all threads, against the model as written in
float32. Last column: least overlap (IoU) of the followed object's mask with that of the first row.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import ausm
from ausm import attention_cpu, inference
from ausm.attention import Attention
from ausm.config import PRESETS
from ausm.frame_modules import FrameAttention
from ausm.model import AUSM
from bench.measure import Lap, cpu_ms, finish, lap, load, parse_size, percentiles, progress, table
from bench.scene import Scene

WARM = 5


@contextmanager
def without(name: str) -> Iterator[None]:
    """`pack` without one of its parts: "packed layers", "kernels", or "one-pass kernels" (all but attention's)."""
    if name == "packed layers":
        with patch.object(inference, "_pack_layer", lambda *_: None):
            yield
    else:
        kept = {Attention: FrameAttention} if name == "one-pass kernels" else {}
        with patch.object(inference, "FRAME_CLASSES", kept):
            yield


def variants(model: AUSM, bf16: bool) -> dict[str, tuple[AUSM, str]]:
    """Name -> model to run and its precision. Models of the last rows are made by `pack`."""
    made = {"as written, fp32": (model, "fp32")}
    with without("packed layers"):
        made["norms folded, fp32"] = (inference.pack(model, "fp32"), "fp32")
    made["and layers packed, fp32"] = (inference.pack(model, "fp32"), "fp32")
    if bf16:
        made["as written, bf16 autocast"] = (model, "bf16")
        with without("kernels"):
            made["norms folded, layers packed, bf16"] = (inference.pack(model, "bf16"), "bf16")
        with without("one-pass kernels"):
            made["and attention kernel, bf16"] = (inference.pack(model, "bf16"), "bf16")
        made["and one-pass kernels, bf16"] = (inference.pack(model, "bf16"), "bf16")
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS))
    parser.add_argument("--checkpoint")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, source = load(args.preset, args.checkpoint, "cpu", fuse=False)
    scene = Scene(*parse_size(args.size), 1)
    streams = {}
    for name, (variant, precision) in variants(model, inference._has_operators("bf16")).items():
        stream = streams[name] = ausm.Stream(variant, discover=False, precision=precision)
        stream.prompt(scene.masks(0))
    laps: dict[str, list[Lap]] = {name: [] for name in streams}
    overlap = dict.fromkeys(streams, 1.0)
    for frame in range(WARM + args.frames):
        image, expected = scene.image(frame), None
        for name, stream in streams.items():
            one = lap(torch.device("cpu"), partial(stream.step, image))
            if frame >= WARM:
                laps[name].append(one)
            assert stream.current is not None
            mask = stream.current.tracks[0].mask
            expected = mask if expected is None else expected
            overlap[name] = min(overlap[name], float((mask & expected).sum() / max(1, (mask | expected).sum())))
        progress(frame + 1, WARM + args.frames)
    first = next(iter(laps.values()))
    rows: list[dict[str, Any]] = []
    for name, own in laps.items():
        gain = float(np.median([b.cpu / a.cpu for a, b in zip(own, first, strict=True)]))
        wall = percentiles("", own)["_p50_ms"]
        row = {"variant": name, "p50 ms": wall, "CPU ms": cpu_ms(own), "times as fast": gain, "overlap": overlap[name]}
        rows.append(row)
    print(f"{model.config.name} ({source}), {args.size}, one object, {torch.get_num_threads()} threads")
    print(table(rows))
    return finish({"rows": rows, "weights": source, "kernel": attention_cpu.available(32)})


if __name__ == "__main__":
    sys.exit(main())
