"""The training loop of one stage: plain, one process or many, resumable at any moment, one JSONL log."""

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ausm import weights
from ausm.errors import CheckpointError, InputError
from ausm.model import AUSM
from training.clip_loss import ClipLoss
from training.data_config import check_classes
from training.loader import Batch, BatchLoader, ClipBatches, Source
from training.parallel import (
    agree,
    checkpoint_activations,
    cut_like,
    cut_optimizer,
    distribute,
    exchange_gradients,
    gathered,
)
from training.report import Report
from training.resume import MovingAverage, load_run, parameter_groups, save_run
from training.stages import Stage, from_json
from training.validate import Validation

log = logging.getLogger(__name__)
MODEL_DRAWS = 1  # marks the seed of what is drawn inside the loss


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
    checkpoint_activations: bool = False
    fsdp: bool = False
    tensorboard: bool = True
    validate_every: float = 900.0  # seconds; 0 = never
    max_skipped: int = 50  # bad items


class Trainer:
    """Owns model, optimizer, average and position of one run."""

    def __init__(self, model: AUSM, stage: Stage, sources: list[Source], run: RunConfig) -> None:
        self.stage, self.sources, self.run_config = stage, sources, run
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.device = model.X_0.device
        self.model = model
        check_classes(sources, dict(model.config.heads))
        _check_sizes(stage, sources, model.config.size_divisor)
        _check_ids(stage, any(source.reader.exhaustive for source in sources), model.config.N_id)
        if run.fsdp and stage.self_fed_stream:
            raise InputError(
                "self_fed_stream steps through a clip, which sharded weights cannot: leave out --fsdp, or "
                "--set self_fed_stream=false"
            )
        self.clip_loss = ClipLoss(model, stage).train()
        if run.checkpoint_activations:
            checkpoint_activations(model)
        groups = parameter_groups(model, stage.lr, stage.backbone_lr_scale, stage.weight_decay)
        self.wrapped = distribute(self.clip_loss, groups, run.fsdp)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.trained = [p for g in self.optimizer.param_groups for p in g["params"]]
        if stage.only and self.rank == 0:
            numbers = len(self.trained), sum(p.numel() for p in self.trained)
            log.info("only=%s: %d tensors with %d numbers are trained", stage.only, *numbers)
        self.average = MovingAverage(model, stage.ema) if stage.ema else None
        self.iteration = 0
        self.seconds = 0.0  # of training, over all resumes

    # --- position -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything `resume` needs. With --fsdp all processes must call it, and the first one writes."""
        whole = gathered(
            {
                "model": self.model.state_dict(),
                "average": self.average.values if self.average else None,
                "optimizer": self.optimizer.state_dict(),
            }
        )
        stage = json.dumps(dataclasses.asdict(self.stage))
        if self.rank == 0:
            draws = json.dumps(self.draws())
            save_run(path, iteration=self.iteration, seconds=self.seconds, stage=stage, draws=draws, **whole)

    def draws(self) -> dict[str, Any]:
        """What the run's random numbers hang on, and so its data, beside the stage."""
        r = self.run_config
        sources = [[x.reader.name, len(x.reader), x.weight] for x in self.sources]
        own = ({"alone": x.alone} | x.own() for x in self.sources)
        settings = [{name: value for name, value in values.items() if value is not None} for values in own]
        draws = {"seed": r.seed, "parts": self.world * r.parts, "sources": sources, "settings": settings}
        plain: dict[str, Any] = json.loads(json.dumps(draws))  # as it is read again: tuples are lists
        return plain

    def keep(self, base: dict[str, Any]) -> None:
        """Both files of OUT. With --fsdp all processes must call it.

        last.pt comes last: where it is, there is also the checkpoint that says how large the model is.
        """
        self.release(self.run_config.out / "ema.safetensors", self.manifest(base))
        self.save(self.run_config.out / "last.pt")

    def resume(self, path: Path) -> None:
        """Goes on from `save`.

        Raises CheckpointError for a file that cannot be read, was drawn from another seed or trained other parameters.
        """
        parts = load_run(path)
        self._compare_draws(path, json.loads(parts.get("draws", "{}")))  # runs of before have not written them
        before, now = from_json(json.loads(parts["stage"])), self.stage
        fields = [field.name for field in dataclasses.fields(Stage)]
        changed = sorted(name for name in fields if getattr(before, name) != getattr(now, name))
        then, trained = (
            [len(group["params"]) for group in groups]
            for groups in (parts["optimizer"]["param_groups"], self.optimizer.param_groups)
        )
        if before.only != now.only or then != trained:
            raise CheckpointError(
                f"{path} trained {sum(then)} tensors in groups of {then}, only={before.only!r}; this run would "
                f"train {sum(trained)} in groups of {trained}, only={now.only!r}: a run keeps its own; "
                f"--init {path.with_name('ema.safetensors')} with another --out begins a new one"
            )
        if changed:
            log.warning("resuming %s with other settings of the stage: %s", path, changed)
        names = ("lr", "initial_lr", "weight_decay")
        settings = [{k: group[k] for k in names} for group in self.optimizer.param_groups]
        own = self.model.state_dict()
        self.model.load_state_dict({k: cut_like(v, own[k]) for k, v in parts["model"].items()})
        if self.average and parts["average"]:
            self.average.values = {k: cut_like(v.to(own[k].device), own[k]) for k, v in parts["average"].items()}
        elif self.average:  # begun with this resume: at the weights as they are now
            self.average = MovingAverage(self.model, self.stage.ema)
        self.optimizer.load_state_dict(cut_optimizer(parts["optimizer"], self.optimizer))
        for group, wanted in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(wanted)  # the present stage's, which may differ from the file's
        self.iteration, self.seconds = parts["iteration"], parts["seconds"]

    def _compare_draws(self, path: Path, before: dict[str, Any]) -> None:
        now = self.draws()
        if before.get("seed", now["seed"]) != now["seed"]:
            raise CheckpointError(f"{path} was begun with --seed {before['seed']}, this run has {now['seed']}")
        for name, then in before.items():
            if name in now and then != now[name]:
                log.warning("resuming %s with other %s (then %s, now %s): other draws", path, name, then, now[name])

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights (without an average the last ones), whole. With --fsdp all processes must call it."""
        values: dict[str, Tensor] = gathered(self.average.values if self.average else self.model.state_dict())
        return values

    def release(self, path: Path, manifest: dict[str, Any]) -> None:
        """The averaged weights as a checkpoint that `ausm.load` reads."""
        values = self.averaged()
        if self.rank == 0:
            weights.save(path, self.model, manifest, values)

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
        # gradients are averaged over processes, summed over parts; a batch without objects counts as one
        num_masks = max(float(count), 1.0) / self.world
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.learning_rate_scale()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for p, (batch, target) in enumerate(zip(parts, targets, strict=True)):
            # points, stochastic depth, streamed histories draw from the global generator: a seed per part of the batch
            # a domain of its own: what the targets drew must not be what decides here
            torch.manual_seed(_mix(seed, self.iteration, self.rank * n + p, MODEL_DRAWS))
            exchange_gradients(self.wrapped, p == n - 1)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run_config.bf16):
                terms = self.wrapped(batch, target, self_fed, num_masks)
            loss = torch.stack(list(terms.values())).sum()
            if loss.requires_grad:  # with `only`, a batch may have no term that depends on what is trained
                loss.backward()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        if self.world > 1:
            shares = torch.tensor(list(totals.values()), device=self.device)
            dist.all_reduce(shares)
            totals = dict(zip(totals, (shares / self.world).tolist(), strict=True))
        norm = gathered(torch.nn.utils.clip_grad_norm_(self.trained, s.clip_norm))
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
        last = s.iterations if r.stop_at is None else min(s.iterations, r.stop_at)
        batches = ClipBatches(
            self.sources, s.clip_config(), r.seed, s.batch, rank=self.rank, world=self.world, parts=r.parts
        )
        loader = BatchLoader(batches, self.iteration, last, workers=r.workers, max_skipped=r.max_skipped)
        batch_of = iter(loader)
        bar = tqdm(total=s.iterations, initial=self.iteration, unit="it", disable=self.rank > 0, file=sys.stderr)
        began = self.iteration
        # data that cannot be read is told before OUT is touched: what lies there is another run's
        ahead = [next(batch_of) for _ in range(r.parts)] if began < last else []
        if self.world > 1:
            dist.barrier()
        report = Report(r.out, began, r.tensorboard) if self.rank == 0 else None
        validation = Validation(self.sources, s, r.seed) if r.validate_every else None
        saved = validated = time.monotonic()
        if began == 0:  # a run that is killed in its first seconds can be resumed, too
            self.keep(manifest)
        while self.iteration < last:
            started = time.monotonic()
            parts, ahead = ahead or [next(batch_of) for _ in range(r.parts)], []
            waited = time.monotonic() - started
            terms = self.step(parts)
            now = time.monotonic()
            self.seconds += now - started
            row: dict[str, Any] = {
                "iteration": self.iteration,
                "source": parts[0].sources[0].split("/")[0],
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": round(now - started, 3),
                "data_seconds": round(waited, 3),
                **{k: round(v, 5) for k, v in terms.items()},
            }
            end = self.iteration == last
            due = [
                end or now - saved > r.save_every,
                validation is not None and (end or now - validated > r.validate_every),
            ]
            must_save, must_validate = agree(due, self.device) if r.fsdp else [x and self.rank == 0 for x in due]
            if validation is not None and must_validate:
                row |= self.validate(validation, report)
                validated = time.monotonic()
            if report:
                report.step(row)
                bar.update()
                bar.set_postfix_str(f"loss {terms['loss']:.2f}")
            if must_save:
                self.keep(manifest)
                saved = time.monotonic()
        bar.close()
        if report:
            report.close()
        if loader.skipped:
            told = len(loader.skipped), self.rank, began, next(iter(loader.skipped))
            log.warning("%d bad items were passed over by process %d since iteration %d, the first: %s", *told)

    def validate(self, validation: Validation, report: Report | None) -> dict[str, float]:
        """Pictures to the report; what belongs into the iteration's line of the log."""
        values = self.averaged()
        if report is None:
            return {}
        started = time.monotonic()
        J, pictures = validation.run(self.model.config, values, self.device, self.run_config.bf16)
        report.pictures(self.iteration, pictures)
        row = {"validation_seconds": round(time.monotonic() - started, 3)}
        return row if J is None else {"validation_J": round(J, 4), **row}

    def manifest(self, base: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint says about itself: every stage it went through, with its settings and seconds."""
        own = {
            "stage": dataclasses.asdict(self.stage),
            "iterations": self.iteration,
            "seconds": round(self.seconds),
            "processes": self.world,
            "seed": self.run_config.seed,
            "revision": base.get("revision", ""),
            "sources": [
                {
                    "name": x.reader.name,
                    "items": len(x.reader),
                    "weight": x.weight,
                    "exhaustive": x.reader.exhaustive,
                    "head": x.reader.head,
                    "alone": x.alone,
                    **x.own(),
                }
                for x in self.sources
            ],
        }
        return {**base, "recipe": [*base.get("recipe", []), own]}


def _check_sizes(stage: Stage, sources: list[Source], divisor: int) -> None:
    """Raises InputError for crops that the backbone cannot halve."""
    own = [(f"size of source {x.reader.name}", x.size) for x in sources if x.size is not None]
    for what, (height, width) in [("size", stage.size), *own]:
        if min(height, width) < divisor or height % divisor or width % divisor:
            raise InputError(f"{what} {height}x{width}: height and width must be positive multiples of {divisor}")


def _check_ids(stage: Stage, exhaustive: bool, N_id: int) -> None:
    most, what = stage.max_instances, "max_instances"
    if exhaustive:  # the other settings hold for these sources only
        most = max(most, stage.clips.max_exhaustive) + bool(stage.noise and stage.noise.false_id)
        what = "max_instances, clips.max_exhaustive and a false id"
    if most > N_id:
        raise InputError(f"a clip may have {most} ids ({what}), the model has N_id={N_id}")


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several integers."""
    value = 0
    for n in numbers:
        value = (value * 1_000_003 + n + 1) % (2**63 - 25)
    return value


def _generator(*numbers: int) -> torch.Generator:
    """A CPU generator of its own for one draw site."""
    return torch.Generator().manual_seed(_mix(*numbers))
