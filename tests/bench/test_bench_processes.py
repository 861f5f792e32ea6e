"""Benchmarks that need a process of their own: how threads wait, and start-up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import startup, waits

ROOT = Path(__file__).parents[2]
SHOW = "import os, ausm; print(*(os.environ.get(v, '-') for v in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["passive", "20000"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "-"]),
        ({"GOMP_SPINCOUNT": "7"}, ["-", "7"]),
    ],
)
def test_import_says_how_threads_wait_unless_the_user_does(given: dict[str, str], expected: list[str]) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env={**clean, **given}, cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == expected


def test_waits_takes_turns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["--size", "32x48", "--turns", "1", "--precision", "fp32", "--variants", "one thread;passive"]
    assert waits.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["waits"] for row in rows] == ["one thread", "passive"]
    assert rows[0]["ratio of wall"] == 1 and rows[1]["ratio of wall"] > 0 and rows[0]["CPU ms"] > 0


def test_startup_has_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # kernels need not be compiled again
    stages = startup.start("nano", "cpu", cache)
    assert stages.shape == (len(startup.STAGES), 2) and (stages[:, 0] > 0).all() and np.isfinite(stages).all()
    assert stages[:, 1].sum() > 0.1
