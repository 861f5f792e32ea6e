"""`ausm train-nano` on a tiny model: hand-over, a stop in between, the time budget. Children run in this process."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_training import tiny_config, write_data

from ausm import weights
from ausm.config import PRESETS
from ausm.errors import AusmError, InputError
from training import nano, train
from training.augment import LONGEST_ABSENCE, SEEN, choose_frames
from training.clips import ClipConfig
from training.data_config import parse_data_config

TINY = ["frames=2", "size=[32,64]", "loss.points=64", "batch=1", "max_instances=4"]


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    nano.add_arguments(parser)
    words = ["--data", str(folder / "data.toml"), "--out", str(folder / "nano"), "--device", "cpu", "--workers", "0"]
    return parser.parse_args([*words, *(word for s in TINY for word in ("--set", s)), *more])


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Data on disk, a tiny preset, and `training.train` called instead of started."""
    write_data(tmp_path)
    monkeypatch.setitem(PRESETS, "nano", tiny_config)
    commands: list[list[str]] = []

    def call(command: list[str]) -> None:
        commands.append(command)
        assert command[:3] == [sys.executable, "-m", "training.train"]
        parser = argparse.ArgumentParser()
        train.add_arguments(parser)
        words = [*command[3:], "--fp32", "--no-tensorboard", "--validate-every", "0"]
        assert train.run(parser.parse_args(words)) == 0

    monkeypatch.setattr(nano, "call", call)
    return commands


def test_three_stages_with_a_stop_in_between(
    tmp_path: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(tmp_path, "--set", "iterations=2")
    working: Callable[[list[str]], None] = nano.call

    def stopping(command: list[str]) -> None:
        if option(command, "--stage") == "2":
            working([*command, "--stop-at", "1"])
            raise KeyboardInterrupt
        working(command)

    monkeypatch.setattr(nano, "call", stopping)
    with pytest.raises(KeyboardInterrupt):
        nano.run(args)
    assert nano.progress(tmp_path / "nano/s1") == (2, 2, pytest.approx(0, abs=60))
    assert nano.progress(tmp_path / "nano/s2")[:2] == (1, 2) and nano.progress(tmp_path / "nano/s3") is None
    monkeypatch.setattr(nano, "call", working)
    calls.clear()
    assert nano.run(args) == 0
    assert [option(c, "--stage") for c in calls] == ["2", "3"]  # the first is done
    assert ["--resume" in c for c in calls] == [True, False]
    assert [option(c, "--init") for c in calls] == [str(tmp_path / f"nano/s{k}/ema.safetensors") for k in (1, 2)]
    recipe = weights.read_metadata(tmp_path / "nano/s3/ema.safetensors")[1]["recipe"]
    assert [(stage["stage"]["name"], stage["iterations"]) for stage in recipe] == [
        *(("nano-1", 2), ("nano-2", 2), ("nano-3", 2))
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"stage {k}: 2 iterations" for k in (1, 2, 3)]
    calls.clear()
    assert nano.run(args) == 0 and calls == []


def test_minutes_scale_all_stages(tmp_path: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of 1, 2 and 4 seconds an iteration: nano's 1000, 1000 and 1150 would take 7600 s; 3600 s are given."""
    costs = {1: nano.Cost(1.0, 10.0), 2: nano.Cost(2.0, 10.0), 3: nano.Cost(4.0, 10.0)}
    monkeypatch.setattr(nano, "measure", lambda args, number: costs[number])
    monkeypatch.setattr(nano, "call", lambda command: calls.append(command))
    args = arguments(tmp_path, "--minutes", "60")
    (tmp_path / "nano").mkdir()
    plan = nano.Plan(tmp_path / "nano/plan.json")
    stage = nano.plan_stage(args, plan, 1)
    factor = (3600 - 30) / 7600
    assert (stage.iterations, stage.warmup) == (int(1000 * factor), 150 * int(1000 * factor) // 1000)
    plan.spent += 1000.0  # the first stage took twice as long as planned: the others get less
    assert nano.plan_stage(args, plan, 2).iterations == int(1000 * (2600 - 20) / 6600)
    plan.save()
    again = nano.Plan(tmp_path / "nano/plan.json")
    assert again.costs == costs and again.spent == pytest.approx(1000, abs=1)
    assert nano.plan_stage(args, again, 1).iterations == stage.iterations  # begun: stays
    assert nano.share_out([nano.recipe_of(args, 1)], [costs[1]], 1.0) == [nano.LEAST]


def test_a_stage_that_never_began_is_planned_anew(
    tmp_path: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(command: list[str]) -> None:
        calls.append(command)
        raise AusmError("exit code 2")

    monkeypatch.setattr(nano, "call", failing)
    monkeypatch.setattr(nano, "measure", lambda args, number: nano.Cost(2.0, 0.0))
    for minutes in ([], ["--minutes", "60"]):
        with pytest.raises(AusmError, match="exit code 2"):
            nano.run(arguments(tmp_path, *minutes))
    wanted = [word.partition("=")[2] for call in calls for word in call if word.startswith("iterations=")]
    assert int(wanted[0]) == nano.nano(1).iterations and 500 < int(wanted[1]) < 600  # 3600 s for 3150 of 2 s


def test_roots_and_photos_that_are_not_there(tmp_path: Path, calls: list[list[str]]) -> None:
    args = arguments(tmp_path, "--simulate", "16", "--backgrounds", str(tmp_path / "photos"))
    with pytest.raises(InputError, match="photos do not exist"):
        nano.run(args)
    args = arguments(tmp_path)
    args.data.write_text('[[source]]\nkind = "davis2016"\nroot = "nowhere"\n')
    with pytest.raises(InputError, match="nowhere do not exist"):
        nano.run(args)
    assert calls == [] and not (tmp_path / "nano").exists()


def test_the_time_of_an_iteration_is_measured(tmp_path: Path, calls: list[list[str]]) -> None:
    cost = nano.measure(arguments(tmp_path), 3)
    assert option(calls[0], "--stop-at") == str(nano.PROBE[2]) and option(calls[0], "--stage") == "3"
    assert 0 < cost.iteration < 60 and cost.start > 0
    assert not (tmp_path / "nano/probe").exists()


def test_simulated_clips_become_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    (tmp_path / "nano").mkdir()
    commands: list[list[str]] = []
    monkeypatch.setattr(nano, "call", commands.append)
    args = arguments(tmp_path, "--simulate", "640", "--backgrounds", str(tmp_path))
    (tmp_path / "nano/sim").mkdir()
    nano.simulate(args)
    assert option(commands[0], "--frames") == "640" and "--resume" in commands[0] and len(commands) == 1
    assert {nano.data_of(args, number) for number in nano.STAGES} == {tmp_path / "nano/data.toml"}
    davis, simulated = parse_data_config(tmp_path / "nano/data.toml")
    assert Path(davis.root) == (tmp_path / "davis").resolve() and davis.kind == "davis2017"
    assert Path(simulated.root) == (tmp_path / "nano/sim").resolve()
    assert simulated.weight / (simulated.weight + davis.weight) == pytest.approx(nano.SIMULATED)


@pytest.mark.parametrize("others", [[], ["--simulate", "640"]])
def test_clips_of_hidden_objects_are_sources_of_the_third_stage(
    others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    for folder in ("sim", "hidden"):
        (tmp_path / "nano" / folder).mkdir(parents=True)
    commands: list[list[str]] = []
    monkeypatch.setattr(nano, "call", commands.append)
    args = arguments(tmp_path, "--simulate-hidden", "1200", *others)
    nano.simulate(args)
    assert [option(c, "--scenario") for c in commands] == [None, "occlusion"][not others :]
    assert (option(commands[-1], "--frames"), option(commands[-1], "--clip-length")) == ("1200", "60")
    before = tmp_path / ("nano/data.toml" if others else "data.toml")
    assert [nano.data_of(args, n) for n in nano.STAGES] == [before, before, tmp_path / "nano/data_hidden.toml"]
    *known, seen, alone = parse_data_config(tmp_path / "nano/data_hidden.toml")
    assert [source.kind for source in known] == ["davis2017", "sim"][: 2 if others else 1]
    assert (seen.alone, alone.alone) == (False, True)
    for source in (seen, alone):  # the longest absence is spanned, with what is before and after
        config = ClipConfig(frames=source.frames or 0)
        drawn = [
            choose_frames(np.random.default_rng(k), nano.HIDDEN_LENGTH, config, (15, 15 + LONGEST_ABSENCE))
            for k in range(50)
        ]
        assert all(min(frames) <= 15 - SEEN and max(frames) >= 15 + LONGEST_ABSENCE + SEEN - 1 for frames in drawn)
    assert Path(seen.root) == Path(alone.root) == (tmp_path / "nano/hidden").resolve()
    total = sum(source.weight for source in (*known, seen, alone))
    assert seen.weight == alone.weight == pytest.approx(total * nano.HIDDEN / 2)


def test_each_stage_is_trained_on_its_data_and_options_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    commands: list[list[str]] = []

    def call(command: list[str]) -> None:
        commands.append(command)
        if "simulate" in command:
            Path(option(command, "--out") or "").mkdir()

    monkeypatch.setattr(nano, "call", call)
    with pytest.raises(AusmError, match="stage 1 left no checkpoint"):
        nano.run(arguments(tmp_path, "--simulate-hidden", "120"))
    simulate, *stages = commands
    assert option(simulate, "--scenario") == "occlusion"
    hidden = str(tmp_path / "nano/data_hidden.toml")
    assert [option(c, "--data") for c in stages] == [str(tmp_path / "data.toml"), str(tmp_path / "data.toml"), hidden]
    with pytest.raises(InputError, match=r"begun with other options, .*'--simulate-hidden': \(120, None\)"):
        nano.run(arguments(tmp_path))
    finished = nano.Progress(5, 5, 1.0)
    monkeypatch.setattr(nano, "progress", lambda folder: finished)
    commands.clear()
    assert nano.run(arguments(tmp_path, "--simulate-hidden", "120")) == 0 and not commands  # all is done


def test_several_processes_share_every_batch(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--nproc-per-node", "3")
    args.set = []
    assert [nano.recipe_of(args, k).batch for k in (1, 2, 3)] == [6, 3, 3]
    command = nano.train_command(args, 1, tmp_path, nano.recipe_of(args, 1), [])
    assert command[2] == "torch.distributed.run" and option(command, "--nproc-per-node") == "3"
    assert "batch=6" in command


def test_children_get_the_allocator_settings_and_failures_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in nano.MALLOC:
        monkeypatch.delenv(name, raising=False)
    code = "import os, sys, json; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    nano.call([sys.executable, "-c", code, str(tmp_path / "env.json")])
    child = json.loads((tmp_path / "env.json").read_text())
    assert {k: child[k] for k in nano.MALLOC} == nano.MALLOC
    with pytest.raises(AusmError, match=r"exit code 3 of: .*; give the same command again to go on"):
        nano.call([sys.executable, "-c", "raise SystemExit(3)"])


def test_what_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(InputError, match="--minutes decides iterations"):
        nano.run(arguments(tmp_path, "--minutes", "5", "--set", "iterations=7"))
    with pytest.raises(InputError, match=r"--minutes -1\.0 positive"):
        nano.run(arguments(tmp_path, "--minutes", "-1"))
    with pytest.raises(InputError, match=r"none\.toml"):
        nano.run(arguments(tmp_path, "--data", str(tmp_path / "none.toml")))
    with pytest.raises(InputError, match="'--simulate': 0}: 1 or more frames"):
        nano.run(arguments(tmp_path, "--simulate", "0"))
    with pytest.raises(InputError, match="--backgrounds: 1 or more frames are to be simulated"):
        nano.run(arguments(tmp_path, "--backgrounds", str(tmp_path)))
    assert not (tmp_path / "nano").exists()
    (tmp_path / "nano").mkdir()
    own = (tmp_path / "data.toml").rename(tmp_path / "nano/data.toml")
    with pytest.raises(InputError, match="give it another name"):
        nano.run(arguments(tmp_path, "--data", str(own), "--simulate", "640"))
    assert list((tmp_path / "nano").iterdir()) == [own]
