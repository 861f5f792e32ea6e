"""`ausm train`: one stage (`training.trainer`) from the command line; torchrun starts many processes of it."""

import argparse
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ausm import weights
from ausm.checks import check_out_folder
from ausm.config import PRESETS
from ausm.errors import AusmError, InputError
from ausm.model import AUSM
from training.clips import check_least
from training.data_config import load_data_config
from training.pretrained import load_pretrained_backbone
from training.stages import RECIPES, Stage, override
from training.trainer import RunConfig, Trainer

log = logging.getLogger(__name__)


def git_revision() -> str:
    """The commit of the code, "" outside a clone; with "-dirty" where files differ from it."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    revision = git("rev-parse", "HEAD")
    return f"{revision}-dirty" if revision and git("status", "--porcelain", "--untracked-files=no") else revision


def begin_manifest(init: str | None) -> dict[str, Any]:
    """The manifest of a run to come: stages, file name, licence and data of the checkpoint that it starts from."""
    manifest: dict[str, Any] = {"revision": git_revision()}
    if not manifest["revision"]:
        log.warning("the code is not in a git clone: the checkpoint's manifest will name no revision")
    if init:
        before = weights.read_metadata(init)[1]
        manifest["recipe"] = before.get("recipe", [])
        known = {k: v for k, v in before.items() if k not in ("recipe", "scores")}
        manifest["init"] = known | {"name": Path(init).name}
    return manifest


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keeps OUT for this run: two would write over each other's files. The lock ends with its process.

    Raises InputError where another process has it. A file system without locks is only warned about.
    """
    with (out / "lock").open("a+") as file:
        os.register_at_fork(after_in_child=file.close)  # data workers outlive a killed run by seconds
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(f"process {file.read().strip()} is training into {out}: wait for it or end it") from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other run writes there", out, error)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm train`."""
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
    parser.add_argument("--max-skipped", type=int, default=50, help="unreadable items passed over before the run stops")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per training process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--stop-at", type=int, help="stop at this iteration; the schedule is unchanged")
    parser.add_argument(
        "--checkpoint-activations", action="store_true", help="less memory: layers compute their forward pass twice"
    )
    parser.add_argument("--fsdp", action="store_true", help="under torchrun: divide the model among the processes")
    parser.add_argument("--no-tensorboard", action="store_true", help="only log.jsonl")
    parser.add_argument(
        "--validate-every", type=float, default=900.0, help="seconds between validation pictures, 0 = none (900)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains the stage to its end, or to --stop-at. Raises AusmError."""
    check_least(args, {"parts": 1, "threads": 1, "workers": 0, "seed": 0, "max_skipped": 0, "save_every": 0})
    if args.stop_at is not None:
        check_least(args, {"stop_at": 0})
    check_out_folder(args.out)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    torch.set_num_threads(args.threads)
    distributed = dist.is_torchelastic_launched()
    device = weights.resolve_device(args.device)
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    last = args.out / "last.pt"
    if last.is_file() and not args.resume:
        raise InputError(f"{last} is a run; --resume goes on with it, another --out begins a new one")
    stage = override(RECIPES[args.preset](args.stage), args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    with hold(args.out) if not distributed or dist.get_rank() == 0 else nullcontext():
        _train(args, stage, device)
    if distributed:
        dist.destroy_process_group()
    return 0


def _train(args: argparse.Namespace, stage: Stage, device: torch.device) -> None:
    torch.manual_seed(args.seed)
    manifest = begin_manifest(args.init)
    last, before = args.out / "last.pt", args.out / "ema.safetensors"
    if args.init:
        model = weights.load(args.init, "cpu", fuse=False)
        if model.config != PRESETS[args.preset]():
            log.warning("--init %s is another model than --preset %s: its own sizes are kept", args.init, args.preset)
    elif args.resume and before.is_file():  # sizes and earlier stages without naming --init again
        size, known = weights.read_metadata(before)
        model = AUSM(size)
        manifest["recipe"] = known.get("recipe", [])[:-1]
        manifest |= {"init": known["init"]} if "init" in known else {}
    else:
        if args.stage > 1 and not args.resume:
            log.warning("without --init stage %d starts from the ImageNet backbone", args.stage)
        model = AUSM(PRESETS[args.preset]())
        if not args.resume:
            load_pretrained_backbone(model)
    config = RunConfig(
        out=args.out,
        seed=args.seed,
        parts=args.parts,
        workers=args.workers,
        threads=args.threads,
        bf16=not args.fp32,
        save_every=args.save_every,
        stop_at=args.stop_at,
        checkpoint_activations=args.checkpoint_activations,
        fsdp=args.fsdp,
        tensorboard=not args.no_tensorboard,
        validate_every=args.validate_every,
        max_skipped=args.max_skipped,
    )
    trainer = Trainer(model.to(device), stage, load_data_config(args.data), config)
    if args.resume:
        trainer.resume(last)
    trainer.run(manifest)


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    add_arguments(cli)
    try:
        sys.exit(run(cli.parse_args()))
    except (AusmError, OSError) as refused:
        print(f"train: error: {refused}", file=sys.stderr)
        sys.exit(2)
