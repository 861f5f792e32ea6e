"""`ausm bench stream`: does a long stream stay as fast and as small as a short one?

Prompts K moving shapes on the first frame and follows them. Prints a table and, as its last line, one JSON object:
`early_*` are frames 50 to 150, `late_*` the last 100; `rss_*` and `device_*` bytes after frame 50 and at the end.

A machine is not the same an hour later, so the last steps are also compared with those of a young stream of the same
model, 50 frames old, that takes turns with the old one: `paired_ratio` is the median of wall times old / young,
`paired_cpu_ratio` that of CPU times. Memory is read before the young stream exists. A line on stderr for each tenth.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import ausm
from ausm.config import PRESETS
from ausm.errors import AusmError
from bench.measure import (
    Lap,
    device_bytes,
    finish,
    lap,
    load,
    parse_size,
    percentiles,
    resident_bytes,
    table,
)
from bench.scene import Scene

LEAST_FRAMES = 10


class Windows(NamedTuple):
    """Which steps are compared."""

    warm: int  # steps before the early window; memory is read after them
    width: int  # steps in each window

    @classmethod
    def of(cls, frames: int) -> "Windows":
        """50 and 100; shorter streams in proportion."""
        return cls(min(50, frames // 5), min(100, 2 * frames // 5))


class Memory(NamedTuple):
    """Bytes at one moment."""

    rss: int
    device: int
    state: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=1000, help="length of the stream (default %(default)s)")
    parser.add_argument("--size", default="480x640", help="HxW of the images (default %(default)s)")
    parser.add_argument("--objects", type=int, default=1, help="prompted objects (default %(default)s)")
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS), help="default %(default)s")
    parser.add_argument("--checkpoint", help="name or path (default: the preset's released one, else random weights)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--short-side", type=int, help="inner resolution in pixels (default: the model's own)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = PyTorch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--discover", action="store_true", help="also look for new objects in every frame")
    parser.add_argument("--cuda-graph", action="store_true", help="replay the step as a CUDA graph (needs a GPU)")
    parser.add_argument(
        "--ahead", action="store_true", help="absorb each frame before the next one comes, outside the time measured"
    )


def run(args: argparse.Namespace) -> int:
    height, width = parse_size(args.size)
    if args.frames < LEAST_FRAMES or not 0 <= args.objects <= 100:
        raise AusmError(f"{args.frames} frames, {args.objects} objects: at least {LEAST_FRAMES} and 0..100")
    if args.threads:
        torch.set_num_threads(args.threads)
    model, source = load(args.preset, args.checkpoint, args.device, args.seed)
    config = ausm.StreamConfig(short_side=args.short_side)
    stream = ausm.Stream(model, args.discover, args.seed, config, args.precision, cuda_graph=args.cuda_graph)
    scene = Scene(height, width, args.objects, args.seed)
    if args.objects:
        stream.prompt(scene.masks(0))
    windows = Windows.of(args.frames)
    early, late, young, memory = measure(stream, scene, args.frames, windows, args.ahead)
    ratios = [(old.wall / new.wall, old.cpu / new.cpu) for old, new in zip(late, young, strict=True)]
    paired, paired_cpu = np.median(ratios, axis=0)
    visible = sum(t.frames_since_seen == 0 for t in stream.current.tracks) if stream.current else 0
    figures: dict[str, Any] = {**percentiles("early", early), **percentiles("late", late)}
    for name, at in zip(("early", "late"), memory, strict=True):
        figures |= {f"rss_{name}_bytes": at.rss, f"device_{name}_bytes": at.device}
    figures |= {
        "state_bytes": memory[1].state,
        "state_early_bytes": memory[0].state,
        "p50_ratio": round(figures["late_p50_ms"] / figures["early_p50_ms"], 4),
        "paired_ratio": round(float(paired), 4),
        "paired_cpu_ratio": round(float(paired_cpu), 4),
        "rss_growth_bytes": memory[1].rss - memory[0].rss,
        "frames": args.frames,
        "size": args.size,
        "objects": args.objects,
        "visible": visible,
        "preset": model.config.name,
        "weights": source,
        "device": str(model.X_0.device),
        "precision": stream.precision,
        "threads": torch.get_num_threads(),
        "discover": args.discover,
        "ahead": args.ahead,
        "cuda_graph": args.cuda_graph,
    }
    report(figures, memory, windows)
    return finish(figures)


def measure(
    stream: ausm.Stream, scene: Scene, frames: int, windows: Windows, ahead: bool
) -> tuple[list[Lap], list[Lap], list[Lap], tuple[Memory, Memory]]:
    """Laps of the early and the late window and of a young stream, and memory after the warm-up and at the end."""
    device = stream.model.X_0.device

    def step(one: ausm.Stream, frame: int) -> Lap:
        image = scene.image(frame)
        taken = lap(device, lambda: one.step(image))
        if ahead:
            one.absorb()
        return taken

    early: list[Lap] = []
    first = now(stream, device)
    for frame in range(frames - windows.width):
        one = step(stream, frame)
        if windows.warm <= frame < windows.warm + windows.width:
            early.append(one)
        if frame == windows.warm:
            first = now(stream, device)
        if (frame + 1) % max(1, frames // 10) == 0:
            grown = (resident_bytes() - first.rss) / 2**20
            print(f"{frame + 1}: CPU {1e3 * one.cpu:.1f} ms, RSS +{grown:.1f} MB", file=sys.stderr, flush=True)
    last = now(stream, device)
    fresh = ausm.Stream(stream.model, stream.config.discover, stream.seed, stream.config, stream.precision)
    if stream.in_use:
        fresh.prompt(scene.masks(0))
    for frame in range(windows.warm):
        step(fresh, frame)
    late: list[Lap] = []
    young: list[Lap] = []
    for i in range(windows.width):
        pair = [(late, stream, frames - windows.width + i), (young, fresh, windows.warm + i)]
        for laps, runner, frame in pair if i % 2 else pair[::-1]:
            laps.append(step(runner, frame))
    return early, late, young, (first, last)


def now(stream: ausm.Stream, device: torch.device) -> Memory:
    return Memory(resident_bytes(), device_bytes(device), stream.state_bytes)


def report(figures: dict[str, Any], memory: Sequence[Memory], windows: Windows) -> None:
    """The table for people."""
    print(
        f"{figures['preset']} ({figures['weights']}), {figures['size']}, {figures['objects']} objects, "
        f"{figures['frames']} frames, {figures['device']}, {figures['precision']}, {figures['threads']} threads"
    )
    names = (f"early, from {windows.warm}", f"late, last {windows.width}")
    rows = []
    for name, key, at in zip(names, ("early", "late"), memory, strict=True):
        times = {f"{p} ms": float(figures[f"{key}_{p}_ms"]) for p in ("p50", "p95", "p99", "cpu")}
        sizes = {"RSS MB": at.rss / 2**20, "device MB": at.device / 2**20, "state MB": at.state / 2**20}
        rows.append({"frames": name, **times, **sizes})
    print(table(rows))
    print(
        f"old / young stream, taking turns: {figures['paired_ratio']:.3f} (CPU {figures['paired_cpu_ratio']:.3f}); "
        f"RSS grew by {figures['rss_growth_bytes'] / 2**20:.1f} MB"
    )


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    add_arguments(cli)
    sys.exit(run(cli.parse_args()))
