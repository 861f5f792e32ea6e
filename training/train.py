"""`ausm train`: one stage, plain loop; one process or many (torchrun), resumable at any moment, one JSONL log."""

import argparse
import dataclasses
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ausm import weights
from ausm.config import PRESETS
from ausm.errors import InputError
from ausm.model import AUSM
from training.clip_loss import ClipLoss
from training.data_config import load_data_config
from training.loader import Batch, BatchLoader, ClipBatches, Source
from training.pretrained import load_pretrained_backbone
from training.resume import MovingAverage, load_run, parameter_groups, save_run
from training.stages import RECIPES, Stage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a stage runs on this machine; none of it changes the result beyond rounding."""

    out: Path
    seed: int = 0
    parts: int = 1  # gradient accumulation steps per process
    workers: int = 1
    threads: int = 1
    bf16: bool = True
    save_every: float = 180.0  # seconds
    stop_at: int | None = None  # iterations, before the stage's end (its schedule is unchanged)


class Trainer:
    """Owns model, optimizer, average and position of one run."""

    def __init__(self, model: AUSM, stage: Stage, sources: list[Source], run: RunConfig) -> None:
        self.stage, self.sources, self.run_config = stage, sources, run
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.device = model.X_0.device
        self.model = model
        self.clip_loss = ClipLoss(model, stage).train()
        self.wrapped: torch.nn.Module = self.clip_loss
        if self.world > 1:
            self.wrapped = DistributedDataParallel(
                self.clip_loss, broadcast_buffers=False, find_unused_parameters=True  # heads of other datasets
            )
        groups = parameter_groups(model, stage.lr, stage.backbone_lr_scale, stage.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.trained = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.average = MovingAverage(model, stage.ema) if stage.ema else None
        self.iteration = 0
        self.seconds = 0.0  # of training, over all resumes

    # --- position -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        save_run(
            path,
            iteration=self.iteration,
            seconds=self.seconds,
            model=self.model.state_dict(),
            average=self.average.values if self.average else None,
            optimizer=self.optimizer.state_dict(),
            stage=json.dumps(dataclasses.asdict(self.stage)),
        )

    def resume(self, path: Path) -> None:
        parts = load_run(path)
        before, now = json.loads(parts["stage"]), json.loads(json.dumps(dataclasses.asdict(self.stage)))
        changed = sorted(k for k in now if before.get(k) != now[k])
        if changed:
            log.warning("resuming %s with other settings of the stage: %s", path, changed)
        self.model.load_state_dict(parts["model"])
        if self.average and parts["average"]:
            self.average.values = parts["average"]
        self.optimizer.load_state_dict(parts["optimizer"])
        self.iteration, self.seconds = parts["iteration"], parts["seconds"]

    def release(self, path: Path, manifest: dict[str, Any]) -> None:
        """The averaged weights as a checkpoint that `ausm.load` reads."""
        weights.save(path, self.model, manifest, self.average.values if self.average else None)

    # --- one iteration ------------------------------------------------------------------------------------------

    def learning_rate_scale(self) -> float:
        s, i = self.stage, self.iteration
        scale = min(1.0, (i + 1) / max(s.warmup, 1))
        for at in s.decay_at:
            scale *= 0.1 if i >= at * s.iterations else 1.0
        if s.cooldown:
            left = (s.iterations - i) / (s.cooldown * s.iterations)
            scale *= min(1.0, max(left, 0.0))
        return scale

    def step(self, parts: list[Batch]) -> dict[str, float]:
        """One optimizer step over the micro-batches of this process; returns the loss terms (mean over processes)."""
        s, n = self.stage, len(parts)
        seed = self.run_config.seed
        self_fed = float(torch.rand((), generator=_generator(seed, self.iteration, -1))) < s.self_fed
        targets = []
        for p, batch in enumerate(parts):
            targets.append(self.clip_loss.targets(batch, _generator(seed, self.iteration, self.rank * n + p)))
        count = torch.tensor(float(sum(int(t.active.sum() + t.det.sum()) for t in targets)), device=self.device)
        if self.world > 1:
            dist.all_reduce(count)
        num_masks = float(count) / self.world  # gradients are averaged over processes, summed over parts
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.learning_rate_scale()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for p, (batch, target) in enumerate(zip(parts, targets, strict=True)):
            # points and stochastic depth draw from the global generator: one seed per global part of the batch
            torch.manual_seed(_mix(seed, self.iteration, self.rank * n + p))
            if isinstance(self.wrapped, DistributedDataParallel):
                self.wrapped.require_backward_grad_sync = p == n - 1
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run_config.bf16):
                terms = self.wrapped(batch, target, self_fed, num_masks)
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        if self.world > 1:
            shares = torch.tensor(list(totals.values()), device=self.device)
            dist.all_reduce(shares)
            totals = dict(zip(totals, (shares / self.world).tolist(), strict=True))
        norm = torch.nn.utils.clip_grad_norm_(self.trained, s.clip_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            if self.average:
                self.average.update(self.model, self.iteration)
        else:
            log.warning("iteration %d: gradient norm %s, step skipped", self.iteration, float(norm))
        self.iteration += 1
        return {**totals, "loss": sum(totals.values()), "grad_norm": float(norm)}

    def run(self, manifest: dict[str, Any]) -> None:
        """From the current position to the end of the stage, saving as it goes."""
        r, s = self.run_config, self.stage
        last = min(s.iterations, r.stop_at or s.iterations)
        batches = ClipBatches(
            self.sources, s.clip_config(), r.seed, s.batch, rank=self.rank, world=self.world, parts=r.parts
        )
        loader = iter(BatchLoader(batches, self.iteration, last, workers=r.workers))
        bar = tqdm(total=s.iterations, initial=self.iteration, unit="it", disable=self.rank > 0, file=sys.stderr)
        saved = time.monotonic()
        with (r.out / "log.jsonl").open("a") as lines:
            while self.iteration < last:
                started = time.monotonic()
                parts = [next(loader) for _ in range(r.parts)]
                waited = time.monotonic() - started
                terms = self.step(parts)
                took = time.monotonic() - started
                self.seconds += took
                if self.rank == 0:
                    row = {
                        "iteration": self.iteration,
                        "source": parts[0].sources[0].split("/")[0],
                        "lr": self.optimizer.param_groups[0]["lr"],
                        "seconds": round(took, 3),
                        "data_seconds": round(waited, 3),
                        **{k: round(v, 5) for k, v in terms.items()},
                    }
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    bar.update()
                    bar.set_postfix_str(f"loss {terms['loss']:.2f}")
                    if time.monotonic() - saved > r.save_every or self.iteration == last:
                        self.save(r.out / "last.pt")
                        self.release(r.out / "ema.safetensors", self.manifest(manifest))
                        saved = time.monotonic()
        bar.close()

    def manifest(self, base: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint says about itself: every stage it went through, with its settings and seconds."""
        own = {
            "stage": dataclasses.asdict(self.stage),
            "iterations": self.iteration,
            "seconds": round(self.seconds),
            "processes": self.world,
            "sources": [{"name": x.reader.name, "items": len(x.reader), "weight": x.weight} for x in self.sources],
        }
        return {**base, "recipe": [*base.get("recipe", []), own]}


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several integers."""
    value = 0
    for n in numbers:
        value = (value * 1_000_003 + n + 1) % (2**63 - 25)
    return value


def _generator(*numbers: int) -> torch.Generator:
    """A CPU generator of its own for one draw site."""
    return torch.Generator().manual_seed(_mix(*numbers))


def git_revision() -> str:
    """The commit of the code, "" outside a clone."""
    root = Path(__file__).parent
    done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def override(stage: Stage, settings: list[str]) -> Stage:
    """`--set a.b=c` on the frozen tree; the value is read as JSON, else as a string. Raises InputError."""
    for setting in settings:
        name, sep, text = setting.partition("=")
        if not sep:
            raise InputError(f"--set {setting!r}: expected name=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        stage = _replace(stage, name.split("."), tuple(value) if isinstance(value, list) else value)
    return stage


def _replace(node: Any, path: list[str], value: Any) -> Any:
    names = {f.name for f in dataclasses.fields(node)}
    if path[0] not in names:
        raise InputError(f"--set: {type(node).__name__} has no field {path[0]!r}; fields: {sorted(names)}")
    inner = value if len(path) == 1 else _replace(getattr(node, path[0]), path[1:], value)
    return dataclasses.replace(node, **{path[0]: inner})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--data", required=True, help="TOML file naming the data sources (config/data_example.toml)")
    parser.add_argument("--out", type=Path, required=True, help="folder of log.jsonl, last.pt, ema.safetensors")
    parser.add_argument("--init", help="checkpoint of the stage before (name or path)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a field of the stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="gradient accumulation steps per process")
    parser.add_argument("--workers", type=int, default=1, help="data processes per training process")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per training process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--stop-at", type=int, help="stop at this iteration; the schedule is unchanged")


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    torch.set_num_threads(args.threads)
    distributed = dist.is_torchelastic_launched()
    device = weights.resolve_device(args.device)
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
            torch.cuda.set_device(device)
    stage = override(RECIPES[args.preset](args.stage), args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    manifest: dict[str, Any] = {"revision": git_revision()}
    if args.init:
        model = weights.load(args.init, "cpu", fuse=False)
        manifest["recipe"] = weights.read_metadata(args.init)[1].get("recipe", [])
    else:
        model = AUSM(PRESETS[args.preset]())
        if not args.resume:
            load_pretrained_backbone(model)
    config = RunConfig(
        args.out, args.seed, args.parts, args.workers, args.threads, not args.fp32, args.save_every, args.stop_at
    )
    trainer = Trainer(model.to(device), stage, load_data_config(args.data), config)
    if args.resume:
        trainer.resume(args.out / "last.pt")
    trainer.run(manifest)
    if distributed:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    add_arguments(cli)
    sys.exit(run(cli.parse_args()))
