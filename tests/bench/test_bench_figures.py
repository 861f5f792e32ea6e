"""The benchmarks' arithmetic and their scene, on clocks and models whose answers are known."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_models import build, small_nano

import ausm
from ausm.errors import AusmError
from ausm.inference import mark_constant
from bench import backbone, batch, frame_path, measure, profile, stream, sweep
from bench.measure import Lap, Load
from bench.scene import Scene

SIZE = "48x64"


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every script gets a model that is quick; threads are as before afterwards."""
    model = mark_constant(build(small_nano()))
    for script in (stream, sweep, profile, frame_path, batch):
        monkeypatch.setattr(script, "load", lambda *_, **__: Load(model, "small"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def run_stream(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    return stream.run(parser.parse_args(["--size", SIZE, "--precision", "fp32", *arguments]))


def age_clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Steps take `seconds(frame of that stream)` of wall time, and one of CPU time."""
    ages: list[int] = []
    step = ausm.Stream.step

    def aging(self: ausm.Stream, image: np.ndarray) -> Any:
        out = step(self, image)
        ages.append(self.frame_index)
        return out

    def lap(_: torch.device, work: Callable[[], object]) -> Lap:
        work()
        return Lap(seconds(ages[-1]), 1.0)

    monkeypatch.setattr(ausm.Stream, "step", aging)
    monkeypatch.setattr(stream, "lap", lap)


def test_a_stream_that_slows_down_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    age_clock(monkeypatch, lambda age: 1.0 + age)
    assert run_stream("--frames", "20", "--objects", "2") == 0
    figures = printed(capsys)  # windows: 4 to warm, 8 wide
    assert figures["early_p50_ms"] == 1000 * np.median(np.arange(4, 12) + 1)
    assert figures["late_p50_ms"] == 1000 * np.median(np.arange(12, 20) + 1)
    assert figures["paired_ratio"] == pytest.approx(
        np.median((np.arange(12, 20) + 1) / (np.arange(4, 12) + 1)), abs=1e-4
    )
    assert figures["paired_cpu_ratio"] == 1 and figures["objects"] == 2


def test_a_busy_hour_is_no_slow_stream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine gets three times slower: late / early says so, old / young does not."""
    steps = iter(range(100))
    monkeypatch.setattr(stream, "lap", lambda _, work: (work(), Lap(1.0 if next(steps) < 12 else 3.0, 1.0))[1])
    assert run_stream("--frames", "20") == 0
    figures = printed(capsys)
    assert figures["p50_ratio"] == 3 and figures["paired_ratio"] == 1


def test_memory_that_grows_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    counted = iter(range(10**6))
    monkeypatch.setattr(stream, "resident_bytes", lambda: next(counted) * 2**20)
    assert run_stream("--frames", "20") == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out.splitlines()[-1])
    assert figures["rss_growth_bytes"] == figures["rss_late_bytes"] - figures["rss_early_bytes"] >= 2**20
    assert figures["state_bytes"] == figures["state_early_bytes"] > 0 and figures["visible"] <= 1
    assert len([line for line in captured.err.splitlines() if "RSS +" in line]) == 6  # tenths before the last window


def test_stream_refuses_what_it_cannot_measure() -> None:
    for bad in (["--frames", "9"], ["--objects", "101"], ["--size", "48"]):
        with pytest.raises(AusmError):
            run_stream(*bad)


def test_percentiles_sizes_and_tables() -> None:
    laps = [Lap(wall / 1000, 0.002) for wall in range(1, 102)]
    assert measure.percentiles("x", laps) == {"x_p50_ms": 51.0, "x_p95_ms": 96.0, "x_p99_ms": 100.0, "x_cpu_ms": 2.0}
    assert measure.parse_size("480x640") == (480, 640)
    for bad in ("480", "480x", "4x640", "480x9000"):
        with pytest.raises(AusmError, match="size"):
            measure.parse_size(bad)
    assert measure.table([{"a": 1.2345, "b": 1234.5}]).splitlines()[-1] == "| 1.23 | 1,234 |"


@pytest.mark.parametrize("objects", [0, 1, 7])
def test_scene_repeats_and_its_objects_do_not_overlap(objects: int) -> None:
    scenes = [Scene(48, 64, objects, seed=3) for _ in range(2)]
    for frame in (0, 40):
        assert np.array_equal(*(scene.image(frame) for scene in scenes))
        masks = scenes[0].masks(frame)
        assert masks.shape == (objects, 48, 64) and (masks.sum(0) <= 1).all() and masks.any((1, 2)).all()
    assert not np.array_equal(scenes[0].image(0), scenes[0].image(40))


def test_sweep_compares_with_the_row_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    turns = iter(range(10**6))
    monkeypatch.setattr(sweep, "lap", lambda _, work: (work(), Lap(2.0 if next(turns) % 2 else 1.0, 1.0))[1])
    monkeypatch.setattr(sweep, "parse_size", lambda _: (48, 64))
    assert sweep.main(["objects", "--values", "1,3", "--frames", "4", "--precision", "fp32"]) == 0
    rows = printed(capsys)["rows"]
    assert [(r["objects"], r["ratio of wall"], r["ratio of CPU"]) for r in rows] == [("1", 1.0, 1.0), ("3", 2.0, 1.0)]
    with pytest.raises(AusmError, match="not a number"):
        sweep.main(["objects", "--values", "one"])


def test_stopwatch_counts_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 8.0])  # outer begins, inner begins, inner ends, outer ends
    monkeypatch.setattr(profile.time, "process_time", lambda: next(clock))
    watch = profile.Stopwatch()
    watch.wrap("outer", watch.wrap("inner", lambda: None))()
    assert watch.take() == {"outer": 4.0, "inner": 4.0} and watch.take() == {}


def test_profile_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["--size", SIZE, "--frames", "2", "--precision", "fp32"]) == 0
    figures = printed(capsys)
    spent = {row["part"]: row["CPU ms"] for row in figures["rows"]}
    assert {"backbone", "neck", "compressor: Mamba", "history decoder: attention", "marker"} < spent.keys()
    assert {"outside: image resized", "outside: masks at full size"} < spent.keys()
    assert sum(row["share %"] for row in figures["rows"]) == pytest.approx(100)
    outside = [row["share %"] for row in figures["rows"] if row["part"].startswith("outside")]
    assert figures["largest_outside_percent"] == max(outside) < figures["outside_percent"] < 100
    assert spent["backbone"] == max(spent[part] for part in ("backbone", "marker", "outside: tracks published"))


def test_frame_path_variants_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame_path.main(["--size", SIZE, "--frames", "2"]) == 0
    figures = printed(capsys)
    names = [row["variant"] for row in figures["rows"]]
    assert names[0] == "as written, fp32" and "and layers packed, fp32" in names
    assert figures["rows"][0]["times as fast"] == 1
    assert all(row["overlap"] > 0.95 for row in figures["rows"] if row["variant"].endswith("fp32"))


def test_batch_compares_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.main(["--size", "64", "96", "--cameras", "3", "--objects", "1", "--frames", "2"]) == 0
    figures = printed(capsys)
    assert figures["cameras"] == 3 and [row[""] for row in figures["rows"]] == ["wall", "CPU"]
    for row in figures["rows"]:
        assert row["gain"] > 0 and row["batch ms"] > 0 and row["one after the other ms"] > 0


def test_backbone_compares_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert backbone.main(["--size", "64x96", "--frames", "1", "--repeats", "1"]) == 0
    figures = printed(capsys)
    assert figures["convolutions"] == 11  # of EfficientNet-Lite0's sixteen depthwise ones
    assert figures["ratio"] == pytest.approx(figures["plain_ms"] / figures["quick_ms"], rel=0.01)
    with pytest.raises(AusmError, match="size"):
        backbone.main(["--size", "large"])
