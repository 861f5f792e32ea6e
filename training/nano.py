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
PROBE, COLD = (10, 10, 30), 2  # iterations that measure the time of one, by stage; the first ones allocate, not counted
LEAST = 20  # iterations of a stage, however short the time
SIMULATED = 0.25  # share of the batches of the simulated clips
HIDDEN = 0.15  # share of stage 3's batches of clips that hide an object: costly, and they teach who can follow already
HIDDEN_LENGTH = 60  # frames of such a clip, as in the benchmark: an absence of up to 30 and what is before and after
# Each has half of that share. T has room for the longest absence: in every second or third frame; or in all of them,
# with one object known and its look-alikes not, as after an operator's prompt.
HIDDEN_SOURCES: tuple[dict[str, Any], ...] = (
    {"name": "hidden", "frames": 18, "size": [288, 384]},
    {"name": "hidden_alone", "frames": 36, "size": [224, 320], "alone": True},
)
DATA, DATA_HIDDEN = "data.toml", "data_hidden.toml"  # data files made here, in OUT
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

    @property
    def finished(self) -> bool:
        return self.iterations >= self.of


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
    """OUT/plan.json: iterations of the stages that were begun, costs, seconds spent so far, frames simulated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.iterations: dict[int, int] = {int(k): v for k, v in known.get("iterations", {}).items()}
        self.costs: dict[int, Cost] = {int(k): Cost(*v) for k, v in known.get("costs", {}).items()}
        self.spent: float = known.get("spent", 0.0)
        self.simulated: dict[str, int | None] | None = known.get("simulated")  # frames, by the option's name

    def save(self) -> None:
        partial = self.path.with_suffix(".partial")
        content = {"iterations": self.iterations, "costs": self.costs, "spent": round(self.spent, 1)}
        content |= {"simulated": self.simulated}
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
    command += ["--stage", str(number), "--preset", "nano", "--data", str(data_of(args, number)), "--out", str(out)]
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
    extra = ["--stop-at", str(PROBE[number - 1]), "--no-tensorboard", "--validate-every", "0"]
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


def data_of(args: argparse.Namespace, number: int) -> Path:
    """The data file of a stage: the user's, or what `simulate` made of it."""
    if args.simulate_hidden and number == STAGES[-1]:
        return Path(args.out / DATA_HIDDEN)
    return Path(args.out / DATA if args.simulate else args.data)


def simulate(args: argparse.Namespace) -> None:
    """Makes the simulated clips that are still missing, and copies of the data file that have them as sources."""
    tables = tomllib.loads(args.data.read_text())["source"]
    for table in tables:
        table["root"] = str((args.data.parent / table["root"]).resolve())
    if args.simulate:
        clips = _make_clips(args, "sim", args.simulate, [])
        source = {"kind": "sim", "name": "simulated", "root": clips, "paste": 0.1}
        tables.append(source | {"weight": _weight(tables, SIMULATED)})
        _write_data(args.out / DATA, tables)
    if args.simulate_hidden:
        how = ["--scenario", "occlusion", "--clip-length", str(HIDDEN_LENGTH)]
        clips = _make_clips(args, "hidden", args.simulate_hidden, how)
        source = {"kind": "sim", "root": clips, "paste": 0.0, "weight": _weight(tables, HIDDEN) / len(HIDDEN_SOURCES)}
        tables += [source | own for own in HIDDEN_SOURCES]
        _write_data(args.out / DATA_HIDDEN, tables)


def _make_clips(args: argparse.Namespace, name: str, frames: int, how: Sequence[str]) -> str:
    """Clips in OUT/`name`, those that are missing; returns the folder."""
    clips = args.out / name
    command = [sys.executable, "-m", "ausm.cli", "simulate", "--frames", str(frames), "--out", str(clips), *how]
    command += ["--resume", "--workers", str(args.workers + 1), "--seed", str(args.seed)]
    if args.backgrounds:
        command += ["--backgrounds", *map(str, args.backgrounds)]
    call(command)
    return str(clips.resolve())


def _weight(tables: Sequence[dict[str, Any]], share: float) -> float:
    """The weight of a new source that is to have this share of the batches."""
    return sum(float(table.get("weight", 1.0)) for table in tables) * share / (1 - share)


def _write_data(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    path.write_text("\n".join(["# written by ausm train-nano", *map(_as_toml, tables)]) + "\n")


def _as_toml(table: dict[str, Any]) -> str:
    """Text, numbers, truth values and lists of these are written in TOML as in JSON."""
    return "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm train-nano`."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="TOML file naming the data sources (config/data_example.toml)")
    add("--out", type=Path, required=True, help="folder of the run; the same one goes on with it")
    add("--minutes", type=float, help="scale all stages so that the whole takes this long on this machine")
    add("--simulate", type=int, metavar="FRAMES", help="first make this many simulated frames, and train on them too")
    add("--simulate-hidden", type=int, metavar="FRAMES", help="the same of scenes that hide an object, for stage 3")
    add("--backgrounds", type=Path, nargs="+", default=[], help="folders of photos: textures of simulated scenes")
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
    wrong = {name: number for name, number in _simulated(args).items() if number is not None and number < 1}
    if wrong or (args.backgrounds and not any(_simulated(args).values())):
        raise InputError(
            f"{wrong or '--backgrounds'}: 1 or more frames are to be simulated (--simulate, --simulate-hidden)"
        )
    check_out_folder(args.out)
    if args.data.resolve() in [(args.out / name).resolve() for name in (DATA, DATA_HIDDEN)]:
        raise InputError(f"{args.data} is where this command writes a data file of its own: give it another name")
    _check_inputs(args)
    args.out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        plan = Plan(args.out / "plan.json")
        then, now = plan.simulated, _simulated(args)
        if then is not None and then != now:
            changed = {name: (then.get(name), frames) for name, frames in now.items() if then.get(name) != frames}
            raise InputError(f"{args.out} was begun with other options, (then, now): {changed}; give the same again")
        plan.simulated = now
        last = progress(args.out / f"s{STAGES[-1]}")
        if any(now.values()) and not (last is not None and last.finished):
            with plan.clock():
                simulate(args)
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


def _check_inputs(args: argparse.Namespace) -> None:
    """Before anything is written or computed: the data file, the roots it names, the folders of photos."""
    roots = [args.data.parent / source.root for source in parse_data_config(args.data)]
    if missing := [str(path) for path in (*roots, *args.backgrounds) if not path.exists()]:
        raise InputError(f"{args.data} and --backgrounds: {', '.join(missing)} do not exist")


def _simulated(args: argparse.Namespace) -> dict[str, int | None]:
    """Frames to be simulated by the option's name, None where it was not given."""
    return {"--simulate": args.simulate, "--simulate-hidden": args.simulate_hidden}


def _train(args: argparse.Namespace, plan: Plan, number: int) -> None:
    out = args.out / f"s{number}"
    at = progress(out)
    if at is not None and at.finished:
        return
    if at is not None:
        plan.iterations[number] = at.of
    else:  # planned once, but its start failed: other options may be given now
        plan.iterations.pop(number, None)
    recipe = plan_stage(args, plan, number)
    extra = ["--init", str(args.out / f"s{number - 1}" / "ema.safetensors")] if number > 1 else []
    extra += ["--resume"] if (out / "last.pt").is_file() else []
    with plan.clock():
        call(train_command(args, number, out, recipe, extra))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
