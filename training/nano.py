"""`ausm train-nano`: all three stages of `nano`, from data to checkpoint, with one command.

Give the same command again after a stop: what is finished is skipped, what was begun goes on. OUT holds s1, s2 and s3,
one folder a stage; OUT/s3/ema.safetensors is the result. OUT/plan.json remembers iterations and time.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ausm import weights
from ausm.checks import check_out_folder
from ausm.errors import AusmError, CheckpointError, InputError
from training.data_config import parse_data_config
from training.stages import Stage, nano, override

STAGES = (1, 2, 3)
PROBE, COLD = 10, 2  # iterations that measure the time of one; the first ones allocate and are not counted
LEAST = 20  # iterations of a stage, however short the time
SIMULATED = 0.25  # share of the batches of the simulated clips
# glibc would give large tensors back to the system after every operation (docs/training.md)
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "999999999999", "MALLOC_TOP_PAD_": "268435456"}


class Cost(NamedTuple):
    """Measured time of a stage in seconds."""

    iteration: float
    start: float  # of the processes, before the first iteration and after the last


class Progress(NamedTuple):
    """How far a stage is, as its checkpoint says."""

    iterations: int
    of: int
    seconds: float  # of training


def progress(folder: Path) -> Progress | None:
    """None where the stage has no checkpoint yet."""
    path = folder / "ema.safetensors"
    if not path.is_file():
        return None
    try:
        own = weights.read_metadata(path)[1]["recipe"][-1]
        return Progress(own["iterations"], own["stage"]["iterations"], own["seconds"])
    except (KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how it was trained: {error!r}") from error


def share_out(recipes: Sequence[Stage], costs: Sequence[Cost], seconds: float) -> list[int]:
    """Iterations of every stage: all scaled by one factor, so that together they take `seconds`."""
    needed = sum(recipe.iterations * cost.iteration for recipe, cost in zip(recipes, costs, strict=True))
    factor = (seconds - sum(cost.start for cost in costs)) / needed
    return [max(LEAST, int(factor * recipe.iterations)) for recipe in recipes]


class Plan:
    """OUT/plan.json: iterations of the stages that were begun, costs measured, seconds spent so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.iterations: dict[int, int] = {int(k): v for k, v in known.get("iterations", {}).items()}
        self.costs: dict[int, Cost] = {int(k): Cost(*v) for k, v in known.get("costs", {}).items()}
        self.spent: float = known.get("spent", 0.0)

    def save(self) -> None:
        partial = self.path.with_suffix(".partial")
        content = {"iterations": self.iterations, "costs": self.costs, "spent": round(self.spent, 1)}
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Counts what happens inside as time spent, also when it fails."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.spent += time.monotonic() - started
            self.save()


def call(command: list[str]) -> None:
    """Runs a child process with the allocator's settings and ends it when this process is told to end."""
    child = subprocess.Popen(command, env={**os.environ, **MALLOC})
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code:
        raise AusmError(f"exit code {code} of: {' '.join(command)}; give the same command again to go on")


def train_command(args: argparse.Namespace, number: int, out: Path, recipe: Stage, extra: Sequence[str]) -> list[str]:
    """The command line of one stage."""
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.nproc_per_node), "-m"]
    command = [sys.executable, "-m", *(several if args.nproc_per_node > 1 else []), "training.train"]
    command += ["--stage", str(number), "--preset", "nano", "--data", str(args.data), "--out", str(out)]
    for name in ("seed", "workers", "threads", "device", "save_every"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    settings = [*args.set, *(f"{name}={getattr(recipe, name)}" for name in ("iterations", "warmup", "batch"))]
    return [*command, *extra, *(word for setting in settings for word in ("--set", setting))]


def recipe_of(args: argparse.Namespace, number: int) -> Stage:
    """nano's stage with the settings of the command line; every process needs the same number of clips."""
    stage = override(nano(number), args.set)
    return replace(stage, batch=-(-stage.batch // args.nproc_per_node) * args.nproc_per_node)


def scaled(recipe: Stage, iterations: int) -> Stage:
    """The stage with another length; a shorter one warms up for less."""
    warmup = min(recipe.warmup, recipe.warmup * iterations // recipe.iterations)
    return replace(recipe, iterations=iterations, warmup=warmup)


def measure(args: argparse.Namespace, number: int) -> Cost:
    """Times a few iterations of a stage, which are thrown away."""
    out = args.out / "probe"
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    extra = ["--stop-at", str(PROBE), "--no-tensorboard", "--validate-every", "0"]
    call(train_command(args, number, out, recipe_of(args, number), extra))
    wall = time.monotonic() - started
    seconds = [json.loads(line)["seconds"] for line in (out / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    counted = seconds[COLD:] or seconds
    return Cost(sum(counted) / len(counted), wall - sum(seconds))


def plan_stage(args: argparse.Namespace, plan: Plan, number: int) -> Stage:
    """The stage with its number of iterations, which stays once it was begun."""
    recipe = recipe_of(args, number)
    if number not in plan.iterations:
        plan.iterations[number] = recipe.iterations
        if args.minutes:
            left = range(number, STAGES[-1] + 1)
            for k in left:
                if k not in plan.costs:
                    with plan.clock():
                        plan.costs[k] = measure(args, k)
            seconds = 60 * args.minutes - plan.spent
            recipes = [recipe_of(args, k) for k in left]
            plan.iterations[number] = share_out(recipes, [plan.costs[k] for k in left], seconds)[0]
        plan.save()
    return scaled(recipe, plan.iterations[number])


def simulate(args: argparse.Namespace) -> Path:
    """Makes the simulated clips that are still missing; returns a copy of the data file that has them as a source."""
    clips = args.out / "sim"
    command = [sys.executable, "-m", "ausm.cli", "simulate", "--frames", str(args.simulate), "--out", str(clips)]
    command += ["--resume", "--workers", str(args.workers + 1), "--seed", str(args.seed)]
    if args.backgrounds:
        command += ["--backgrounds", *map(str, args.backgrounds)]
    call(command)
    tables = tomllib.loads(args.data.read_text())["source"]
    for table in tables:
        table["root"] = str((args.data.parent / table["root"]).resolve())
    others = sum(float(table.get("weight", 1.0)) for table in tables)
    weight = others * SIMULATED / (1 - SIMULATED)
    tables.append({"kind": "sim", "name": "simulated", "root": str(clips.resolve()), "weight": weight, "paste": 0.1})
    path: Path = args.out / "data.toml"
    path.write_text("\n".join(["# written by ausm train-nano", *map(_as_toml, tables)]) + "\n")
    return path


def _as_toml(table: dict[str, Any]) -> str:
    """Text, numbers, truth values and lists of text are written in TOML as in JSON."""
    return "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm train-nano`."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="TOML file naming the data sources (config/data_example.toml)")
    add("--out", type=Path, required=True, help="folder of the run; the same one goes on with it")
    add("--minutes", type=float, help="scale all stages so that the whole takes this long on this machine")
    add("--simulate", type=int, metavar="FRAMES", help="first make this many simulated frames, and train on them too")
    add("--backgrounds", type=Path, nargs="+", default=[], help="with --simulate: folders of photos for its textures")
    add("--nproc-per-node", type=int, default=1, help="training processes, one a GPU (torchrun)")
    add("--workers", type=int, default=1, help="data processes per training process")
    add("--threads", type=int, default=1, help="CPU threads per training process")
    add("--device", default="auto")
    add("--seed", type=int, default=0)
    add("--save-every", type=float, default=180.0, help="seconds between checkpoints")
    add("--set", action="append", default=[], metavar="a.b=c", help="override a field of all three stages")


def run(args: argparse.Namespace) -> int:
    """Trains what is not trained yet and prints one line a stage."""
    if args.nproc_per_node < 1 or (args.minutes is not None and args.minutes <= 0):
        raise InputError(f"--nproc-per-node {args.nproc_per_node} must be 1 or more, --minutes {args.minutes} positive")
    if any(setting.partition("=")[0] in ("iterations", "warmup") for setting in args.set) and args.minutes:
        raise InputError("--minutes decides iterations and warmup: leave them out of --set")
    check_out_folder(args.out)
    parse_data_config(args.data)  # complains before anything is written
    args.out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        plan = Plan(args.out / "plan.json")
        if args.simulate:
            with plan.clock():
                args.data = simulate(args)
        for number in STAGES:
            _train(args, plan, number)
    finally:
        signal.signal(signal.SIGTERM, before)
    for number in STAGES:
        at = progress(args.out / f"s{number}")
        if at is None:
            raise AusmError(f"stage {number} left no checkpoint in {args.out / f's{number}'}")
        result = f"{args.out}/s{number}/ema.safetensors"
        print(f"stage {number}: {at.iterations:,} iterations, {at.seconds:,.0f} s of training: {result}")
    return 0


def _train(args: argparse.Namespace, plan: Plan, number: int) -> None:
    out = args.out / f"s{number}"
    at = progress(out)
    if at is not None and at.iterations >= at.of:
        return
    if at is not None:
        plan.iterations[number] = at.of
    recipe = plan_stage(args, plan, number)
    extra = ["--init", str(args.out / f"s{number - 1}" / "ema.safetensors")] if number > 1 else []
    extra += ["--resume"] if (out / "last.pt").is_file() else []
    with plan.clock():
        call(train_command(args, number, out, recipe, extra))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
