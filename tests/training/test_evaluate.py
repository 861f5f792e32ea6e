"""`ausm eval occlusion` and `ausm eval sim` on clips of grey squares, with a stream whose masks are known."""

import json
from pathlib import Path

import numpy as np
import pytest

import ausm
from ausm import cli, weights
from ausm.config import StreamConfig
from ausm.errors import InputError
from tests.ausm.fake_stream import FakeStream, squares
from training import evaluate_occlusion, simulate
from training.evaluate_occlusion import BENCHMARK, ROWS, is_benchmark, read_clips, recover
from training.evaluate_sim import discover, open_videos
from training.sim_store import SimClips, clip_path, write_clip

TARGET, DOUBLE = 200, 120  # grey values, exact in JPEG: squares lie on its 8 x 8 blocks
HIDDEN = range(6, 12)
FRAMES = 18


def frame(t: int) -> np.ndarray:
    """(48, 64) uint8 of grey values: the target jumps by 16 columns while it is hidden, its look-alike stays."""
    image = np.zeros((48, 64), np.uint8)
    image[32:48, 40:56] = DOUBLE
    if t not in HIDDEN:
        x = 8 if t < HIDDEN.start else 24
        image[8:24, x : x + 16] = TARGET
    return image


def write(root: Path, index: int, **about) -> None:
    greys = [frame(t) for t in range(FRAMES)]
    labels = [np.uint8(1) * (g == TARGET) + np.uint8(2) * (g == DOUBLE) for g in greys]
    about = {"classes": {1: "block", 2: "block"}, **about}
    write_clip(clip_path(root, index), [np.repeat(g[..., None], 3, 2) for g in greys], labels, about)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    root.mkdir()
    for index, way in enumerate(("exit", "pan")):
        write(root, index, target=1, way=way, hidden=[HIDDEN.start, HIDDEN.stop])
    return root


class Forgetful(FakeStream):
    """Takes the double for its object when the object is gone; without its state it never comes back from it."""

    def step(self, image):
        output = super().step(image)
        for track_id, (value, source) in self.values.items():
            gone = not (image[..., 0] == TARGET).any()
            if gone or (self.wiped and value == DOUBLE):
                self.values[track_id] = DOUBLE, source
            elif value == DOUBLE:
                self.values[track_id] = TARGET, source
        return self.current if self.values else output


def test_rows_of_a_stream_that_needs_its_state(root: Path) -> None:
    made: list[Forgetful] = []

    def make() -> Forgetful:
        made.append(Forgetful())
        return made[-1]

    cases = recover(make, read_clips(SimClips(root)))
    outcomes = {row: [case.outcome for case in cases[row]] for row in ROWS}
    assert [o.recovered for o in outcomes["prediction"]] == [True, True]
    assert [o.recovered for o in outcomes["state wiped"]] == [False, False]
    assert all(o.taken and not o.lost and o.iou == 0 for o in outcomes["state wiped"])
    assert all(o.quiet == 0 for o in outcomes["prediction"])  # it sits on the double meanwhile
    assert not any(o.recovered for row in ("optical flow", "copy first mask") for o in outcomes[row])
    assert [case.way for case in cases["prediction"]] == ["exit", "pan"]
    plain, wiped, told = made[:3]
    assert (plain.wiped, wiped.wiped, told.wiped) == (0, 16, 0)  # every frame but the prompt's, to the last one judged
    assert [index for index, _ in plain.prompts] == [-1]
    # the truth is told on frames 1 to 5; nothing from the absence on
    assert [index for index, _ in told.prompts] == [-1, 1, 2, 3, 4, 5]


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> list[StreamConfig]:
    """The settings of the streams that were made."""
    configs: list[StreamConfig] = []

    def make(model, discover=True, seed=0, config=None):
        configs.append(config)
        return Forgetful() if not discover else FakeStream(discover=True)

    monkeypatch.setattr(ausm, "Stream", make, raising=False)
    monkeypatch.setattr(ausm, "load", lambda name, device: name, raising=False)
    monkeypatch.setattr(weights, "resolve", lambda name: name)
    monkeypatch.setattr(weights, "sha256", lambda path: "digest")
    return configs


@pytest.mark.parametrize("command", [["occlusion", "--rows", "prediction"], ["sim"]])
def test_parts_may_be_one_object_as_in_the_paper(root: Path, fake_model, capsys, command) -> None:
    command = ["eval", *command, "--root", str(root), "--limit", "1"]
    for words, gap in ([], StreamConfig.part_gap), (["--part-gap", "0"], 0):
        fake_model.clear()
        assert cli.main([*command, *words]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["part_gap"] == gap and {config.part_gap for config in fake_model} == {gap}
    assert cli.main([*command, "--part-gap", "-1"]) == 2
    assert "part_gap=-1, must be 0 to 4096" in capsys.readouterr().err


def test_occlusion_command(root: Path, fake_model, capsys) -> None:
    assert cli.main(["eval", "occlusion", "--root", str(root), "--rows", "prediction,state wiped", "--cases"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert report["rows"]["prediction"]["recovered"] == 100 and report["rows"]["state wiped"]["recovered"] == 0
    assert report["rows"]["prediction"]["by_way"] == {"behind": None, "sweep": None, "exit": 100, "pan": 100}
    assert report["clips"] == 2 and report["clips_by_way"]["exit"] == 1 and report["benchmark"] is False
    assert "not the whole benchmark" in printed and "clip_00000001  pan      6 frames  100.0    0.0" in printed
    assert cli.main(["eval", "occlusion", "--root", str(root), "--limit", "1", "--rows", "prediction"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clips"] == 1
    # the stream that discovers, too, is another one here, which forgets nothing
    assert cli.main(["eval", "occlusion", "--root", str(root), "--rows", "state wiped", "--discover"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["discover"] is True and report["rows"]["state wiped"]["recovered"] == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--rows", "truth"], "no row 'truth'"), (["--limit", "0"], "at least 1"), (["--root", "/none"], "/none")],
)
def test_refused_in_one_line(root: Path, fake_model, capsys, options, words) -> None:
    assert cli.main(["eval", "occlusion", "--root", str(root), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_clips_that_hide_nothing_are_refused(root: Path) -> None:
    write(root, 2, kind="table")
    with pytest.raises(InputError, match=r"clip_00000002.*hides no object"):
        list(read_clips(SimClips(root)))
    assert len(list(read_clips(SimClips(root), limit=2))) == 2


def test_an_object_that_hardly_returns_is_not_judged(root: Path) -> None:
    write(root, 2, target=1, way="exit", hidden=[12, 18])  # it is seen before, not after
    assert [clip.name for clip in read_clips(SimClips(root))] == ["clip_00000000", "clip_00000001"]


def test_the_benchmark_is_known_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pybullet", reason="the simulator needs PyBullet")
    small = (*BENCHMARK, "--frames", "24", "--clip-length", "24", "--size", "64x96")
    monkeypatch.setattr(evaluate_occlusion, "BENCHMARK", small)
    root = tmp_path / "made"
    evaluate_occlusion.make_benchmark(root)
    evaluate_occlusion.make_benchmark(root)  # goes on where it was
    store = SimClips(root)
    assert len(store) == 1 and is_benchmark(store)
    assert 5 <= np.diff(store.meta(0)["hidden"])[0] <= 30
    record = json.loads((root / simulate.MANIFEST).read_text())
    (root / simulate.MANIFEST).write_text(json.dumps(record | {"seed": 1}))
    assert not is_benchmark(store)


def test_discovery_of_everything_and_of_nothing(root: Path) -> None:
    scores = discover(lambda: FakeStream(discover=True), open_videos(root))
    assert (scores.AP50, scores.IDF1, scores.true_tracks, scores.predicted_tracks) == (100, 100, 4, 4)
    assert (scores.videos, scores.frames) == (2, 2 * FRAMES)
    blind = discover(lambda: FakeStream(discover=False), open_videos(root))
    assert (blind.AP50, blind.IDF1, blind.missed) == (0, 0, 2 * (2 * FRAMES - len(HIDDEN)))


class Late(FakeStream):
    """Shows nothing before its tenth step; counts them."""

    steps = 0

    def step(self, image):
        output = super().step(image)
        self.steps += 1
        return output._replace(tracks=()) if self.steps <= 10 else output


def test_a_repeated_video_is_judged_by_its_last_pass(root: Path) -> None:
    streams: list[Late] = []

    def make_stream() -> Late:
        streams.append(Late(discover=True))
        return streams[-1]

    once = discover(make_stream, open_videos(root))
    assert once.missed > 0 and once.AP50 < 100
    again = discover(make_stream, open_videos(root), repeat=True)
    assert (again.missed, again.AP50, again.frames) == (0, 100, 2 * FRAMES)
    assert [stream.steps for stream in streams] == [FRAMES] * 2 + [3 * FRAMES - 2] * 2


def test_sim_command_on_clips_and_on_bags(root: Path, tmp_path: Path, fake_model, capsys) -> None:
    assert cli.main(["eval", "sim", "--root", str(root), "--limit", "1", "--controls"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["AP50"] == 100 and report["videos"] == 1 and report["controls"]["state wiped"]["IDF1"] == 100
    assert report["repeat"] is False
    assert cli.main(["eval", "sim", "--root", str(root), "--limit", "1", "--repeat"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["AP50"] == 100 and report["repeat"] is True
    with pytest.raises(InputError, match="neither simulated clips"):
        open_videos(tmp_path / "none")


def test_a_bag_is_judged_by_its_truth_topic(tmp_path: Path) -> None:
    from training.sim_bag import write_bag
    from training.sim_camera import Lens
    from training.sim_render import SimFrame

    image = squares({200: 8, 120: 24}, 48, 64)
    labels = np.where(image[..., 0] == 200, 1, np.where(image[..., 0] == 120, 2, 0)).astype(np.uint8)
    frames = [SimFrame(image, labels) for _ in range(3)]
    write_bag(tmp_path / "bag", frames, {1: "block", 2: "block"}, Lens(48, 64, 60.0), 10.0, "sqlite3")
    videos = open_videos(tmp_path)
    assert [video.name for video in videos] == ["bag"]
    scores = discover(lambda: FakeStream(discover=True), videos)
    assert (scores.AP50, scores.IDF1, scores.true_tracks, scores.frames) == (100, 100, 2, 3)
