"""How a run begins: one run a folder, what its manifest says, and refusals before the first iteration."""

import argparse
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_training import STAGE, Squares, tiny_config, trainer, write_data

from ausm import weights
from ausm.errors import InputError
from ausm.model import AUSM
from training import train
from training.clips import ClipDataError
from training.loader import Source
from training.noise import HistoryNoise
from training.readers import RawClip
from training.trainer import _check_ids, _check_sizes

ROOT = Path(train.__file__).parents[1]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    words = rf"process {os.getpid()} is training into .*{tmp_path.name}"
    with train.hold(tmp_path), pytest.raises(InputError, match=words), train.hold(tmp_path):
        pass
    with train.hold(tmp_path):  # a lock that was left behind holds nobody up
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Also where a data worker that it has forked lives on for some seconds."""
    read, write = os.pipe()
    with train.hold(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.write(write, b"x")
            time.sleep(60)
            os._exit(0)
        assert os.read(read, 1) == b"x", "forked and at work"
    os.close(read)
    os.close(write)
    try:
        with train.hold(tmp_path):
            assert os.waitpid(worker, os.WNOHANG) == (0, 0), "the worker is still there"
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(train.fcntl, "flock", refuse)
    with train.hold(tmp_path):
        assert f"{tmp_path} cannot be locked" in caplog.text and "No locks available" in caplog.text


def test_without_git_a_manifest_names_no_revision(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert train.begin_manifest(None) == {"revision": ""}
    assert "will name no revision" in caplog.text


def test_what_the_file_system_refuses_is_one_line() -> None:
    call = [sys.executable, "-m", "training.train", "--stage", "1", "--data", "none.toml", "--out", "/proc/none"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("train: error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", [("parts", 0), ("threads", 0), ("seed", -1), ("stop_at", -1)])
def test_numbers_that_make_no_run_are_refused_before_it(tmp_path: Path, option: tuple[str, int]) -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    start = ["--stage", "1", "--data", "none.toml", "--out", str(tmp_path / "out")]
    name, value = option
    with pytest.raises(InputError, match=rf"too small: \{{'{name}': {value}\}}, need at least"):
        train.run(parser.parse_args([*start, f"--{name.replace('_', '-')}", str(value)]))
    assert not (tmp_path / "out").exists()


def test_a_run_may_stop_before_it_starts(tmp_path: Path) -> None:
    """`--stop-at 0` is not `no --stop-at`."""
    one = trainer(tmp_path, stop_at=0)
    one.run({})
    assert one.iteration == 0


def test_more_ids_than_the_model_has_are_refused_before_the_run(tmp_path: Path) -> None:
    words = r"a clip may have 33 ids \(max_instances, clips\.max_exhaustive and a false id\), the model has N_id=32"
    noise = HistoryNoise(false_id=0.1)
    trainer(tmp_path, dataclasses.replace(STAGE, max_instances=32))
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, dataclasses.replace(STAGE, max_instances=32, noise=noise))
    few = dataclasses.replace(STAGE, max_instances=33)
    with pytest.raises(InputError, match=r"33 ids \(max_instances\), the model has N_id=32"):
        _check_ids(few, False, 32)
    clips = dataclasses.replace(STAGE.clips, max_exhaustive=60)
    _check_ids(dataclasses.replace(STAGE, max_instances=32, clips=clips, noise=noise), False, 32)


def test_a_manifest_keeps_what_the_run_started_from(tmp_path: Path) -> None:
    """The licence of the weights before, and theirs in turn; their scores are not those of the new ones."""
    before = {"recipe": [{"stage": 1}], "licence": "CC BY-NC 4.0", "scores": {"J": 1}, "init": {"licence": "MIT"}}
    weights.save(tmp_path / "w.safetensors", AUSM(tiny_config()), before)
    manifest = train.begin_manifest(str(tmp_path / "w.safetensors"))
    assert manifest["recipe"] == [{"stage": 1}]
    kept = {"licence": "CC BY-NC 4.0", "init": {"licence": "MIT"}}
    assert kept.items() <= manifest["init"].items() and "scores" not in manifest["init"]
    assert set(train.begin_manifest(None)) == {"revision"}


@pytest.mark.parametrize("size", [(100, 64), (32, 0), (16, 64)])
def test_sizes_that_the_model_cannot_divide_are_refused_before_the_run(tmp_path: Path, size: tuple[int, int]) -> None:
    words = f"size {size[0]}x{size[1]}: height and width must be positive multiples of 32"
    with pytest.raises(InputError, match=f"^{words}"):
        trainer(tmp_path, dataclasses.replace(STAGE, size=size))
    one = trainer(tmp_path)
    name = one.sources[0].reader.name
    with pytest.raises(InputError, match=f"^size of source {name} {size[0]}x{size[1]}"):
        _check_sizes(STAGE, [dataclasses.replace(one.sources[0], size=s) for s in (size, (32, 32))], 32)


def test_a_run_without_a_first_iteration_does_not_block_its_folder(tmp_path: Path) -> None:
    """Labels that fit no image: refused, mended, and the same command trains."""
    data = write_data(tmp_path)
    words = ["--stage", "2", "--data", str(data / "data.toml"), "--init", str(data / "init.safetensors"), "--fp32"]
    settings = ["iterations=1", "batch=1", "frames=3", "size=[32,64]", "loss.points=64"]
    words += ["--device", "cpu", "--no-tensorboard", "--validate-every", "0", "--out", str(tmp_path / "out")]
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args([*words, *(word for s in settings for word in ("--set", s))])
    good = {path: path.read_bytes() for path in data.rglob("*.png") if "Annotations" in path.parts}
    assert good
    for path in good:
        cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    (tmp_path / "out").mkdir()
    before = {"ema.safetensors": "a run's, whose last.pt was moved away", "log.jsonl": "its log"}
    for name, text in before.items():
        (tmp_path / "out" / name).write_text(text)
    for _ in range(2):
        with pytest.raises(InputError, match=r"10 items in a row unreadable.*labels \(8, 8\): their sizes differ"):
            train.run(args)
        left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.name != "lock"}
        assert left == before
    for path, content in good.items():
        path.write_bytes(content)
    assert train.run(args) == 0 and (tmp_path / "out/last.pt").is_file()
    assert (tmp_path / "out/log.jsonl.old").read_text() == "its log"
    os.umask(umask := os.umask(0))
    assert (tmp_path / "out/ema.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask  # as any other file


def test_the_end_of_a_run_tells_what_it_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Torn(Squares):
        def load(self, item: int, frames: Sequence[int]) -> RawClip:
            if item in (1, 2):
                raise ClipDataError(f"squares/{item}: torn")
            return super().load(item, frames)

    one = trainer(tmp_path)
    one.sources = [Source(Torn(), 1.0)]
    one.run({})
    first = next(line.split(": ", 1)[1] for line in caplog.messages if line.startswith("bad item 1"))
    assert f"2 bad items were passed over by process 0 since iteration 0, the first: {first}" in caplog.messages
