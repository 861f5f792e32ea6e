"""The training loop on clips of its own making: it learns, resumes bit by bit, and splits without any change."""

import argparse
import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import STAGE, batch, same, tiny_config, trainer, write_data
from torch import Tensor

from ausm import weights
from ausm.config import swin_t
from ausm.errors import CheckpointError, InputError
from ausm.model import AUSM
from training import train
from training.clip_loss import ClipLoss
from training.loader import Batch
from training.noise import HistoryNoise
from training.preprocess import Targets
from training.resume import parameter_groups
from training.stages import RECIPES, Stage, from_json, override
from training.trainer import RunConfig, Trainer

ROOT = Path(train.__file__).parents[1]


def test_it_learns(tmp_path: Path) -> None:
    one = trainer(tmp_path, dataclasses.replace(STAGE, noise=None, self_fed=0.0))
    frozen = {k: v.clone() for k, v in one.model.backbone.state_dict().items()}
    history = [one.step([batch([0, 1])]) for _ in range(40)]
    assert all(np.isfinite(list(terms.values())).all() for terms in history)
    assert set(history[0]) == {
        *("trk_mask", "trk_dice", "trk_obj", "det_mask", "det_dice", "det_obj", "seed", "class", "loss"),
        "grad_norm",
    }
    first, last = (float(np.mean([terms["loss"] for terms in part])) for part in (history[:5], history[-5:]))
    assert last < 0.75 * first, (first, last)
    assert same(frozen, one.model.backbone.state_dict())  # frozen: not even its batch statistics move


def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run({"revision": "x"})
    killed = trainer(tmp_path / "killed", save_every=0.0)
    step = Trainer.step

    def dying(self: Trainer, parts: list[Batch]) -> dict[str, float]:
        if self.iteration == 3:
            raise KeyboardInterrupt
        return step(self, parts)

    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.run({"revision": "x"})
    monkeypatch.undo()
    again = trainer(tmp_path / "killed")
    again.resume(tmp_path / "killed/last.pt")
    assert again.iteration == 3
    again.run({"revision": "x"})
    assert same(whole.model.state_dict(), again.model.state_dict())
    assert whole.average and again.average and same(whole.average.values, again.average.values)
    files = [tmp_path / name / "ema.safetensors" for name in ("whole", "killed")]
    assert same(weights.load_file(files[0]), weights.load_file(files[1]))
    rows = [[json.loads(line) for line in (f.parent / "log.jsonl").read_text().splitlines()] for f in files]
    assert [r["iteration"] for r in rows[1]] == [1, 2, 3, 4, 5]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    manifest = weights.read_metadata(files[1])[1]
    assert manifest["recipe"][0]["iterations"] == 5 and manifest["recipe"][0]["sources"][0]["name"] == "squares"
    assert (manifest["recipe"][0]["seed"], manifest["recipe"][0]["revision"]) == (5, "x")


def test_what_cannot_be_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = trainer(tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing to resume: .*last\.pt does not exist"):
        one.resume(tmp_path / "last.pt")
    one.save(tmp_path / "last.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.pt cannot be read"):
        one.resume(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.pt cannot be read"):
        one.resume(tmp_path / "text.pt")
    trainer(tmp_path, dataclasses.replace(STAGE, lr=1.0)).resume(tmp_path / "last.pt")
    assert "other settings of the stage: ['lr']" in caplog.text
    with pytest.raises(CheckpointError, match=r"only='';.* would train 2 in groups of \[1, 1\], only='objectness'"):
        trainer(tmp_path, dataclasses.replace(STAGE, only="objectness")).resume(tmp_path / "last.pt")
    assert "other" in caplog.text and "draws" not in caplog.text
    caplog.clear()
    still = trainer(tmp_path, dataclasses.replace(STAGE, weight_decay=0.0))  # groups that decay alike are not one
    still.resume(tmp_path / "last.pt")
    assert "other settings of the stage: ['weight_decay']" in caplog.text
    assert [group["weight_decay"] for group in still.optimizer.param_groups] == [0.0, 0.0]
    other = trainer(tmp_path)
    other.sources = [dataclasses.replace(other.sources[0], weight=0.5)]
    other.resume(tmp_path / "last.pt")
    assert "with other sources (then [['squares'," in caplog.text and "other draws" in caplog.text
    assert "with other settings (" not in caplog.text
    other.sources = [dataclasses.replace(other.sources[0], size=(64, 64))]
    other.resume(tmp_path / "last.pt")
    assert "with other settings (" in caplog.text and "'size': [64, 64]" in caplog.text
    other.run_config = dataclasses.replace(other.run_config, seed=6)
    with pytest.raises(CheckpointError, match=r"last\.pt was begun with --seed 5, this run has 6"):
        other.resume(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"another --out begins a new one"):  # a thawed backbone
        trainer(tmp_path, dataclasses.replace(STAGE, backbone_lr_scale=0.1)).resume(tmp_path / "last.pt")


def test_a_resumed_run_has_the_settings_it_is_given(tmp_path: Path) -> None:
    one = trainer(tmp_path, dataclasses.replace(STAGE, ema=0.0))
    one.step([batch([0, 1])])
    one.save(tmp_path / "last.pt")
    again = trainer(tmp_path, dataclasses.replace(STAGE, lr=1e-5, weight_decay=0.3))
    with torch.no_grad():
        again.model.X_0.add_(1)  # other weights than the file's
    again.resume(tmp_path / "last.pt")
    assert {group["initial_lr"] for group in again.optimizer.param_groups} == {1e-5}
    assert {group["weight_decay"] for group in again.optimizer.param_groups} == {0.0, 0.3}
    assert again.average is not None and same(again.average.values, one.model.state_dict())  # begins where the run is


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weeks of work")
    cli = argparse.ArgumentParser()
    train.add_arguments(cli)
    args = cli.parse_args(["--stage", "1", "--preset", "nano", "--data", "none.toml", "--out", str(tmp_path)])
    with pytest.raises(InputError, match=r"last\.pt is a run; --resume goes on with it"):
        train.run(args)
    assert (tmp_path / "last.pt").read_bytes() == b"weeks of work" and len(list(tmp_path.iterdir())) == 1


def test_the_papers_stage_3_trains_temporal_modules_and_heads() -> None:
    model = AUSM(tiny_config())
    ClipLoss(model, dataclasses.replace(RECIPES["swin_b"](3), size=(32, 64)))
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone", "neck", "norm_x"} and {"compressor", "decoder", "pixel_decoder"} <= trained


def test_the_loss_draws_other_numbers_than_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed for both would make what a stream shows a function of when its objects are first known."""
    seeds: list[list[int]] = [[], []]
    targets, forward = ClipLoss.targets, ClipLoss.forward

    def noted_targets(self: ClipLoss, part: Batch, generator: torch.Generator) -> Targets:
        seeds[0].append(generator.initial_seed())
        return targets(self, part, generator)

    def noted_forward(self: ClipLoss, *args: object) -> dict[str, Tensor]:
        seeds[1].append(torch.initial_seed())
        return forward(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipLoss, "targets", noted_targets)
    monkeypatch.setattr(ClipLoss, "forward", noted_forward)
    one = trainer(tmp_path)
    for _ in range(3):
        one.step([batch([0]), batch([1])])
    assert len(set(seeds[0] + seeds[1])) == 12


def test_a_run_from_before_a_setting_has_its_default() -> None:
    saved = json.loads(json.dumps(dataclasses.asdict(STAGE)))
    assert from_json(saved) == STAGE
    del saved["self_fed_stream"], saved["noise"]["late"], saved["loss"]["quality"]
    assert from_json(saved | {"gone": 1}) == STAGE
    plain = RECIPES["swin_t"](2)
    assert from_json(json.loads(json.dumps(dataclasses.asdict(plain)))) == plain and plain.noise is None


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tmp_path)
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    one.step([batch([0, 1])])
    assert same(before, one.model.state_dict()) and one.iteration == 1


def test_sharded_weights_refuse_to_stream(tmp_path: Path) -> None:
    run = RunConfig(out=tmp_path, seed=0, fsdp=True)
    with pytest.raises(InputError, match="self_fed_stream"):
        Trainer(AUSM(tiny_config()), dataclasses.replace(STAGE, self_fed_stream=True), trainer(tmp_path).sources, run)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_only_the_named_parameters_are_trained(tmp_path: Path, scale: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = dataclasses.replace(STAGE, only=r"pixel_decoder\.objectness", backbone_lr_scale=scale)
    one = trainer(tmp_path, stage)
    assert "2 tensors with 33 numbers are trained" in caplog.text
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.step([batch([0, 1])])
    changed = {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"pixel_decoder.objectness.weight", "pixel_decoder.objectness.bias"}
    with pytest.raises(InputError, match="objektness"):
        trainer(tmp_path, dataclasses.replace(STAGE, only="objektness"))
    with pytest.raises(InputError, match="no regular expression"):
        trainer(tmp_path, dataclasses.replace(STAGE, only="("))
    heads = trainer(tmp_path, dataclasses.replace(STAGE, only="class_heads"))
    terms = heads.step([batch([0, 1])._replace(head="")])  # no term depends on a class head
    assert terms["loss"] > 0 and terms["grad_norm"] == 0


def test_learning_rate_schedules(tmp_path: Path) -> None:
    def rates(stage: Stage, at: list[int]) -> list[float]:
        one = Trainer.__new__(Trainer)
        one.stage, found = stage, []
        for i in at:
            one.iteration = i
            found.append(one.learning_rate_scale())
        return found

    base = dataclasses.replace(STAGE, iterations=100, warmup=10)
    assert rates(base, [0, 4, 9, 99]) == pytest.approx([0.1, 0.5, 1, 1])
    steps = dataclasses.replace(base, decay_at=(0.5, 0.8))
    assert rates(steps, [49, 50, 79, 80]) == pytest.approx([1, 0.1, 0.1, 0.01])
    assert rates(dataclasses.replace(base, cooldown=0.2), [80, 90, 99]) == pytest.approx([1, 0.5, 0.05])


def test_settings_of_the_command_line() -> None:
    stage = override(RECIPES["nano"](2), ["lr=1e-3", "loss.points=99", "size=[64, 96]", "name=mine"])
    assert (stage.lr, stage.loss.points, stage.size, stage.name) == (1e-3, 99, (64, 96), "mine")
    with pytest.raises(InputError, match="Stage has no field 'colour'; fields: "):
        override(stage, ["colour=1"])
    with pytest.raises(InputError, match="'lr': expected name=value"):
        override(stage, ["lr"])
    kinds = override(stage, ["self_fed_stream=True", "iterations=1e3", "only=5", "decay_at=[0.5]", "noise=null"])
    assert kinds.self_fed_stream is True and kinds.iterations == 1000 and isinstance(kinds.iterations, int)
    assert (kinds.only, kinds.decay_at, kinds.noise) == ("5", (0.5,), None)
    assert override(kinds, ["noise.blackout=0.2"]).noise == HistoryNoise(blackout=0.2)
    for wrong, words in {
        "self_fed_stream=no": "true or false",  # a text would count as true
        "loss.quality=1": "true or false",
        "lr=fast": "a number, as in lr=0.001",
        "iterations=1.5": "a whole number",
        "batch=true": "a whole number",
        "size=[64]": "a list of 2 whole numbers, as in",
        "size=[320.5, 448]": "a list of 2 whole numbers",
        "lr=NaN": "a number",
        "noise=0": "null, or its fields one by one: noise.blackout=0.2",
        "loss=null": "its fields one by one: loss.w_class",
        "clips.frames=4": "frames is a field of the stage itself",
        "clips.paste=2": "probabilities outside 0..1: {'paste': 2}",
        "clips.max_paste=0": "too small: {'max_paste': 0}, need at least {'max_paste': 1}",
        "lr=-1": "too small: {'lr': -1}",
        "loss.points=0": "too small: {'points': 0}",
        "loss.w_seed=-2": "too small: {'w_seed': -2}",
        "unknown_p=1.5": "probabilities outside 0..1: {'unknown_p': 1.5}",
    }.items():
        with pytest.raises(InputError, match=words):
            override(stage, [wrong])
    for order in (1, -1):  # fields that need each other
        both = ["loss.quality_all=true", "loss.quality=true"][::order]
        assert override(RECIPES["nano"](1), both).loss.quality_all
    assert override(stage, ["lr=1", "lr=2"]).lr == 2
    assert override(stage, ["noise.late=0.9", "noise=null", "noise.late=0.3"]).noise == HistoryNoise(late=0.3)
    for preset, recipe in RECIPES.items():
        for number in (1, 2, 3):
            assert recipe(number).clip_config().frames == recipe(number).frames, preset
    assert override(stage, ["clips.paste=0", "frames=3"]).clip_config() == dataclasses.replace(
        stage.clip_config(), paste=0, frames=3
    )


def test_who_decays_and_how_fast_it_learns() -> None:
    """No decay on vectors, embeddings, ids, position tables, A_log and D; the backbone at its own rate."""
    full = swin_t()
    config = dataclasses.replace(full, D=32, N_id=8, neck=dataclasses.replace(full.neck, layers=1))
    config = dataclasses.replace(config, compressor=dataclasses.replace(full.compressor, layers=1))
    with torch.device("meta"):
        model = AUSM(config)
    model.neck.requires_grad_(False)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, lr=1e-3, backbone_scale=0.1, weight_decay=0.05)
    of = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert of.keys() == {n for n in names.values() if not n.startswith("neck.")}  # what is frozen is left out
    assert all(rate == pytest.approx(1e-4 if n.startswith("backbone.") else 1e-3) for n, (rate, _) in of.items())
    decayed = {n for n, (_, decay) in of.items() if decay}
    assert all(dict(model.named_parameters())[n].ndim >= 2 for n in decayed)
    for part in ("A_log", ".D", "query_feat", "query_embed", "level_embed", "relative_position_bias_table", "norm"):
        matching = {n for n in of if part in n}
        assert matching and not matching & decayed, part
    assert "B" not in decayed and "X_0" not in decayed
    for part in ("mamba.in_proj.weight", "attn.qkv.weight", "mask_embed.0.weight", "patch_embed.proj.weight"):
        assert any(part in n for n in decayed), part


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.mark.timeout(600)  # processes that start one after the other
def test_killed_at_a_random_moment(data: Path) -> None:
    """The command, ended by SIGKILL: resumed without --init it ends with every bit of the uninterrupted run."""
    settings = ["iterations=12", "batch=1", "frames=3", "size=[32,64]", "loss.points=64", "self_fed=0.5", "ema=0.9"]
    settings += ["self_fed_stream=true"]
    words = ["--stage", "2", "--data", str(data / "data.toml"), "--fp32", "--workers", "0", "--device", "cpu"]
    words += ["--save-every", "0", "--no-tensorboard", "--validate-every", "0"]
    words += [word for s in settings for word in ("--set", s)]
    start = ["--init", str(data / "init.safetensors")]
    command = [sys.executable, "-m", "training.train", *words, *start, "--out", str(data / "killed")]
    log, status = data / "killed/log.jsonl", 0
    for _ in range(3):  # a test that was not awake in time finds the run at its end
        shutil.rmtree(log.parent, ignore_errors=True)
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        lines, waited = random.randint(1, 6), time.monotonic()
        while child.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < lines):
            assert time.monotonic() - waited < 250
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        child.kill()
        status = child.wait()
        if status != 0:
            break
    assert status == -signal.SIGKILL
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    for more in ([*start, "--out", str(data / "whole")], ["--resume", "--out", str(data / "killed")]):
        assert train.run(parser.parse_args([*words, *more])) == 0
    whole, resumed = (torch.load(data / n / "last.pt", weights_only=True) for n in ("whole", "killed"))
    assert same(whole["model"], resumed["model"]) and same(whole["average"], resumed["average"])
    assert len(whole["optimizer"]["state"]) > 50
    for index, entry in whole["optimizer"]["state"].items():
        assert same(entry, resumed["optimizer"]["state"][index])
    rows = [[json.loads(s) for s in (data / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "killed")]
    assert [(r["iteration"], r["loss"]) for r in rows[0]] == [(r["iteration"], r["loss"]) for r in rows[1]]
    manifests = [weights.read_metadata(data / n / "ema.safetensors")[1] for n in ("whole", "killed")]
    assert [len(m["recipe"]) for m in manifests] == [1, 1]


def test_a_refusal_is_one_line(data: Path) -> None:
    command = [sys.executable, "-m", "training.train", "--stage", "2", "--data", str(data / "data.toml")]
    command += ["--out", str(data / "out"), "--set", "loss.quality_all=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stderr == "train: error: quality_all is part of quality: set both\n"


@pytest.mark.timeout(600)  # processes that start one after the other
def test_two_processes_equal_two_parts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ausm train` alone with --parts 2, and under torchrun with two processes: one loss curve."""
    settings = ["iterations=20", "batch=2", "frames=3", "size=[32,64]", "loss.points=64", "warmup=0", "self_fed=0.5"]
    settings += ["self_fed_stream=true"]
    arguments = ["--stage", "2", "--data", str(data / "data.toml"), "--init", str(data / "init.safetensors"), "--fp32"]
    arguments += ["--workers", "0", "--device", "cpu", *(word for s in settings for word in ("--set", s))]
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args([*arguments, "--out", str(data / "one"), "--parts", "2"])) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["training.train", *arguments, "--out", str(data / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(data / name / "last.pt", weights_only=True) for name in ("one", "two"))
    start = AUSM(tiny_config())
    weights.load_into(start, data / "init.safetensors")
    moved = 0.0
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], atol=1e-4), name
        moved = max(moved, float((value - start.state_dict()[name]).abs().max()))
    assert moved > 3e-4  # the steps were larger than the difference allowed
    rows = [[json.loads(s) for s in (data / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [row["iteration"] for row in rows[0]] == list(range(1, 21))
    for a, b in zip(*rows, strict=True):
        for key in ("loss", "trk_mask", "det_obj", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (a["iteration"], key)
