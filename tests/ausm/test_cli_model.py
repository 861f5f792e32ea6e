"""The commands with a real model of random weights, from a checkpoint file to PNG files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import ausm
from ausm import cli, weights
from ausm.masks import read_palette_png, write_palette_png


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    manifest = {"recipe": {"stage": 0, "seconds": 0}, "data": ["none"], "licence": "Apache-2.0", "scores": {"J": 1.5}}
    weights.save(path, ausm.load("nano", device="cpu", weights=False), manifest)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One DAVIS sequence of noise with a moving square as its object."""
    rng = np.random.default_rng(0)
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "noise").mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"JPEGImages/noise/{i:05d}.jpg"), rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        labels = np.zeros((64, 96), np.uint8)
        labels[20:44, 10 + 4 * i : 40 + 4 * i] = 1
        write_palette_png(tmp_path / f"Annotations/noise/{i:05d}.png", labels)
    return tmp_path


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_info(checkpoint: Path, capsys) -> None:
    assert cli.main(["info", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert weights.sha256(checkpoint) in printed and "Apache-2.0" in printed and "short side 320" in printed
    assert "d_state" not in printed and "{" not in printed
    assert cli.main(["info", str(checkpoint), "--full"]) == 0
    assert "d_state" in capsys.readouterr().out
    assert cli.main(["info", str(checkpoint), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["preset"] == "nano" and figures["sha256"] == weights.sha256(checkpoint)
    assert figures["parameters"] > 1e6 and figures["bytes"] == checkpoint.stat().st_size
    assert "licence" in printed and figures["scores"] == {"J": 1.5} and figures["config"]["short_side"] == 320
    assert cli.main(["info", str(checkpoint.with_name("none.safetensors"))]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_info_of_a_run_says_what_binds_the_weights_it_began_with(tmp_path: Path, capsys) -> None:
    before = {"summary": "bought", "licence": "CC BY-NC 4.0", "data": ["photos"], "revision": "untold"}
    model = ausm.load("nano", device="cpu", weights=False)
    weights.save(tmp_path / "mine.safetensors", model, {"recipe": [], "init": before})
    assert cli.main(["info", str(tmp_path / "mine.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "began with:\n" in printed and "licence  CC BY-NC 4.0" in printed and "untold" not in printed
    later = {"recipe": [], "init": {"name": "mine.safetensors", "init": before | {"name": "theirs"}}}  # two stages on
    weights.save(tmp_path / "later.safetensors", model, later)
    assert cli.main(["info", str(tmp_path / "later.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "licence  CC BY-NC 4.0" in printed and "theirs" in printed and "mine" not in printed.split("began with")[1]
    weights.save(tmp_path / "free.safetensors", model, {"recipe": [], "init": {"revision": "1"}})
    assert cli.main(["info", str(tmp_path / "free.safetensors")]) == 0
    assert "began with" not in capsys.readouterr().out


def test_info_tells_the_recipe_in_one_line_a_run(tmp_path: Path, capsys) -> None:
    stage = {"name": "nano-1", "frames": 4, "batch": 2, "size": [192, 320], "lr": 0.5, "iterations": 1100}
    recipe = [{"stage": stage, "iterations": 831, "seconds": 2314, "sources": []}]
    path = tmp_path / "trained.safetensors"
    weights.save(path, ausm.load("nano", device="cpu", weights=False), {"recipe": recipe})
    assert cli.main(["info", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  1 nano-1, 192x320, 2 clips x 4 frames, 831 it, 2314 s"


@pytest.mark.parametrize("prompt_frame", [0, 2])
def test_track(checkpoint: Path, root: Path, capsys, prompt_frame: int) -> None:
    prompt = root / f"Annotations/noise/{prompt_frame:05d}.png"
    command = ["track", str(root / "JPEGImages/noise"), "--out", str(root / "o"), "--prompt", str(prompt)]
    command += ["--prompt-frame", str(prompt_frame), "--checkpoint", str(checkpoint), "--device", "cpu", "--discover"]
    assert cli.main([*command, "--short-side", "64"]) == 0
    figures = last_line(capsys)
    assert figures["frames"] == 4 and figures["prompted"] == 1
    masks = [read_palette_png(root / f"o/masks/{i:05d}.png") for i in range(4)]
    assert np.array_equal(masks[prompt_frame] == 1, read_palette_png(prompt) == 1)
    assert all(not (mask == 1).any() for mask in masks[:prompt_frame])
    table = json.loads((root / "o/tracks.json").read_text())
    assert table["tracks"][0]["id"] == 1 and table["tracks"][0]["source"] == "prompt"
    assert table["tracks"][0]["first_frame"] == prompt_frame


def test_track_is_repeatable(checkpoint: Path, root: Path, capsys) -> None:
    runs = []
    for name in ("a", "b"):
        command = ["track", str(root / "JPEGImages/noise"), "--out", str(root / name), "--checkpoint", str(checkpoint)]
        assert cli.main([*command, "--short-side", "64", "--score-threshold", "0.01", "--device", "cpu"]) == 0
        assert last_line(capsys)["discovered"] > 0
        runs.append([path.read_bytes() for path in sorted((root / name / "masks").iterdir())])
    assert runs[0] == runs[1]


def test_eval_davis_with_controls(checkpoint: Path, root: Path, capsys) -> None:
    command = ["eval", "davis", "--root", str(root), "--out", str(root / "o"), "--checkpoint", str(checkpoint)]
    assert cli.main([*command, "--short-side", "64", "--device", "cpu", "--controls"]) == 0
    figures = last_line(capsys)
    assert figures["checkpoint_sha256"] == weights.sha256(checkpoint)
    assert all(0 <= figures[key] <= 100 for key in ("J", "F", "JF"))
    assert set(figures["controls"]) == {"state wiped", "true history", "optical flow"}
    assert len(list((root / "o/noise").iterdir())) == 4


def test_corrupt_checkpoint(checkpoint: Path, root: Path, capsys) -> None:
    bad = root / "bad.safetensors"
    bad.write_bytes(checkpoint.read_bytes()[:1000])
    for command in (
        ["info", str(bad)],
        ["track", str(root / "JPEGImages/noise"), "--out", "o", "--checkpoint", str(bad)],
    ):
        assert cli.main(command) == 2
        assert "bad.safetensors (1000 bytes) cannot be read" in capsys.readouterr().err


def test_eval_of_prompted_and_discovered_sets(checkpoint: Path, root: Path, capsys) -> None:
    common = ["--root", str(root), "--checkpoint", str(checkpoint), "--short-side", "64", "--device", "cpu"]
    assert cli.main(["eval", "mose", "--out", str(root / "m"), *common]) == 0
    figures = last_line(capsys)
    assert figures["objects"] == 1 and 0 <= figures["J"] <= 100
    names = [f"noise/{i:05d}.jpg" for i in range(4)]
    video = {"id": 1, "height": 64, "width": 96, "length": 4, "file_names": names}
    table = {"videos": [video], "categories": [{"id": c, "name": str(c)} for c in range(1, 81)], "annotations": []}
    (root / "instances.json").write_text(json.dumps(table))
    classes = ["--head", "coco", "--score-threshold", "0.01", "--repeat"]
    assert cli.main(["eval", "youtube-vis", "--out", str(root / "v"), *common, *classes]) == 0
    assert last_line(capsys)["AP"] is None
    rows = json.loads((root / "v/results.json").read_text())
    assert rows and all(1 <= row["category_id"] <= 80 and 0 <= row["score"] <= 1 for row in rows)
    assert all(len(row["segmentations"]) == 4 for row in rows)
