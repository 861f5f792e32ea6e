"""The command line: dispatch, exit codes and messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import ausm
from ausm import cli
from ausm.class_names import CLASS_NAMES
from ausm.masks import read_palette_png, write_palette_png
from tests.ausm.fake_stream import FakeStream, squares


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Replaces the model by a stream of known masks; the list collects how it was asked for."""
    calls: list[dict] = []

    def make_stream(model: str, discover: bool, seed: int, config: dict) -> FakeStream:
        calls.append({"model": model, "seed": seed, **config})
        return FakeStream(discover)

    monkeypatch.setattr(ausm, "load", lambda name, device: f"{name} on {device}", raising=False)
    monkeypatch.setattr(ausm, "StreamConfig", dict, raising=False)
    monkeypatch.setattr(ausm, "Stream", make_stream, raising=False)
    return calls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clip").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"clip/{i:05d}.jpg"), squares({200: 4 + 2 * i}))
    return tmp_path / "clip"


def test_track_with_a_prompt(folder: Path, tmp_path: Path, fake_model, capsys) -> None:
    write_palette_png(tmp_path / "m.png", (squares({200: 4})[..., 0] > 0).astype(np.uint8) * 3)
    command = ["track", str(folder), "--out", str(tmp_path / "o"), "--prompt", str(tmp_path / "m.png"), "--seed", "5"]
    assert cli.main(command) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (last["frames"], last["tracks"], last["prompted"], last["discovered"]) == (3, 1, 1, 0)
    assert sorted(p.name for p in (tmp_path / "o/masks").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert set(np.unique(read_palette_png(tmp_path / "o/masks/00000.png"))) == {0, 3}
    call = fake_model[0]
    assert (call["model"], call["seed"], call["discover"], call["short_side"]) == ("nano on auto", 5, False, None)


def test_discovery_is_on_without_a_prompt_and_both_are_possible(folder: Path, tmp_path: Path, fake_model) -> None:
    assert cli.main(["track", str(folder), "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    write_palette_png(tmp_path / "m.png", np.eye(32, 48, dtype=np.uint8))
    both = ["track", str(folder), "--out", str(tmp_path / "b"), "--prompt", str(tmp_path / "m.png"), "--discover"]
    assert cli.main(both) == 0
    assert [call["discover"] for call in fake_model] == [True, True]


def test_settings_of_the_stream(folder: Path, tmp_path: Path, fake_model) -> None:
    given = ["--score-threshold", "0.6", "--prompt-threshold", "0.4", "--class-head", "coco", "--short-side", "64"]
    given += ["--part-gap", "0"]
    for words in ([], given):
        assert cli.main(["track", str(folder), "--out", str(tmp_path / "o"), *words]) == 0
    names = ("score_threshold", "prompt_threshold", "head", "short_side", "part_gap")
    found = [[call[name] for name in names] for call in fake_model]
    assert found == [[0.5, 0.0, None, None, 8], [0.6, 0.4, "coco", 64, 0]]


def test_class_names_of_the_released_weights(folder: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["track", str(folder), "--out", str(tmp_path / "o"), "--class-head", "zoo"]) == 2
    assert "no class head 'zoo'; this model has ['coco', 'sim']" in capsys.readouterr().err
    again = ["track", str(folder), "--out", str(tmp_path / "n"), "--class-head"]
    assert cli.main([*again, ""]) == 0  # none, as of the node
    capsys.readouterr()
    assert cli.main([*again, "zoo"]) == 2
    assert "replaces" not in capsys.readouterr().err
    write_palette_png(tmp_path / "m.png", (squares({200: 4})[..., 0] > 0).astype(np.uint8))
    prompt = ["--prompt", str(tmp_path / "m.png"), "--class-head", "sim", "--device", "cpu"]
    assert cli.main(["track", str(folder), "--out", str(tmp_path / "p"), *prompt]) == 0
    tracks = json.loads((tmp_path / "p" / "tracks.json").read_text())["tracks"]
    assert [t["class_name"] in CLASS_NAMES["sim"] for t in tracks] == [True]
    assert 0 < tracks[0]["class_score"] <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-discover"], "nothing to follow"),
        (["--prompt", "missing.png"], "missing.png"),
        (["--topic", "/camera"], "not a rosbag2"),
        (["--out", __file__], "is a file, a folder is needed"),
        (["--out", f"{__file__}/sub/folder"], "is a file, a folder is needed"),
    ],
)
def test_refused_requests_exit_2_with_one_line(
    folder: Path, tmp_path: Path, fake_model, capsys, options, words
) -> None:
    assert cli.main(["track", str(folder), "--out", str(tmp_path / "o"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ausm: error: ") and words in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not fake_model


def test_a_value_out_of_its_range_is_told_with_the_range(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ausm, "load", lambda name, device: pytest.fail("loaded before the options were checked"))
    assert cli.main(["track", str(folder), "--out", str(tmp_path / "o"), "--score-threshold", "1.5"]) == 2
    assert "score_threshold=1.5, must be 0 to 1" in capsys.readouterr().err


def test_only_the_first_frames(folder: Path, tmp_path: Path, fake_model, capsys) -> None:
    call = ["track", str(folder), "--out", str(tmp_path / "o"), "--max-frames"]
    assert cli.main([*call, "2"]) == 0 and json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 2
    assert len(list((tmp_path / "o/masks").iterdir())) == 2
    assert cli.main([*call, "9"]) == 0 and json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 3
    write_palette_png(tmp_path / "m.png", (squares({200: 4})[..., 0] > 0).astype(np.uint8))
    for words in (["0"], ["1", "--prompt", str(tmp_path / "m.png"), "--prompt-frame", "1"]):
        assert cli.main([*call, *words]) == 2 and "--max-frames" in capsys.readouterr().err
    assert cli.main([*call, "2", "--prompt-frame", "1"]) == 2
    assert "--prompt-frame goes with --prompt" in capsys.readouterr().err


def test_an_earlier_run_is_not_replaced_in_silence(folder: Path, tmp_path: Path, fake_model, capsys) -> None:
    again = ["track", str(folder), "--out", str(tmp_path / "o")]
    assert cli.main(again) == 0 and "earlier run" not in capsys.readouterr().err
    assert cli.main(again) == 0
    assert f"replaces the 3 masks of an earlier run in {tmp_path / 'o'}" in capsys.readouterr().err


def test_undecodable_input(tmp_path: Path, fake_model, capsys) -> None:
    (tmp_path / "v.mp4").write_bytes(b"\x00" * 100)
    assert cli.main(["track", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "o")]) == 2
    assert "v.mp4: cannot be decoded as a video" in capsys.readouterr().err


def test_help_and_unknown_commands(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS if name.split()[0] in ("track", "info", "eval"))
    monkeypatch.setitem(cli.COMMANDS, "gone", cli.Command("no_such_package.module", "a command of another release"))
    assert cli.main(["--help"]) == 0 and "another release" not in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["fly"]) == 2
    assert "no command 'fly', there are: track, info" in capsys.readouterr().err
    assert cli.main(["eval", "imagenet"]) == 2
    assert "no command 'eval imagenet', there are: eval davis" in capsys.readouterr().err
    assert cli.main(["eval", "--root", "x"]) == 2
    assert "no command 'eval', there are: eval davis" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["track", "--help"])
    assert exit_info.value.code == 0
    help_text = capsys.readouterr().out
    assert "--prompt-frame" in help_text and "palette PNG" in help_text


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []])
def test_a_word_that_several_commands_begin_with_lists_them(capsys, words: list[str]) -> None:
    assert cli.main(["eval", *words]) == (0 if words else 2)
    text = capsys.readouterr().out
    assert "  eval davis " in text and cli.COMMANDS["eval davis"].help in text
    assert "usage: ausm eval NAME" in text and "bench" not in text and "track" not in text.splitlines()[0]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "needs_rare.py").write_text("import a_rare_package.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "rare", cli.Command("needs_rare", "x"))
    monkeypatch.setitem(cli.COMMANDS, "gone", cli.Command("training.no_such_module", "x"))
    assert cli.main(["rare"]) == 2
    assert "needs the Python package a_rare_package, which is not installed" in capsys.readouterr().err
    assert cli.main(["gone"]) == 2
    assert "not part of this installation: no module training.no_such_module" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["track", "CLIP"], ["simulate", "--frames", "2"]])
def test_an_output_folder_that_cannot_be_made_is_one_line(command: list[str], folder: Path, fake_model, capsys) -> None:
    out = "/proc/no_such_folder"  # none can be made there, though root may write
    given = [str(folder) if word == "CLIP" else word for word in command]
    assert cli.main([*given, "--out", out]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("ausm") and "/proc" in told[0]


def test_an_error_of_the_system_is_one_line_but_not_a_closed_pipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    (tmp_path / "full_command.py").write_text(
        "def add_arguments(parser): parser.add_argument('kind')\n"
        "def run(args): raise (BrokenPipeError if args.kind == 'pipe' else OSError)(28, 'No space left', 'o.png')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "full", cli.Command("full_command", "x"))
    assert cli.main(["full", "disk"]) == 2
    assert capsys.readouterr().err == "ausm: error: [Errno 28] No space left: 'o.png'\n"
    with pytest.raises(BrokenPipeError):
        cli._run(["full", "pipe"])


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "slow_command.py").write_text(
        "def add_arguments(parser): pass\ndef run(args): raise KeyboardInterrupt\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "slow", cli.Command("slow_command", "x"))
    assert cli.main(["slow"]) == 130


def test_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "ausm", "track"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "INPUT" in result.stderr


@pytest.mark.parametrize(
    ("words", "buffered"),
    [(["--help"], True), (["--help"], False), (["info", "--help"], True)],  # unbuffered, argparse hides the last one
)
def test_a_reader_that_has_enough_is_no_error(words: list[str], buffered: bool) -> None:
    """As `ausm --help | head -0`: no traceback, and the status that says so."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "ausm", *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait(60) == 141
    run.stderr.close()


def test_without_standard_output(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it where the descriptor is closed: `ausm --help >&-`
    assert cli.main(["--help"]) == 0 and not capsys.readouterr().err
