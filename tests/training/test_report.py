"""The log, TensorBoard's copy of it, and validation pictures, none of which may change the training."""

import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_training import STAGE, Squares, same, tiny_config, trainer

from ausm.model import AUSM
from training.loader import Source
from training.report import Report
from training.validate import CLIPS, Validation

SHORT = dataclasses.replace(STAGE, iterations=2)


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_log_and_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet = trainer(tmp_path / "quiet", SHORT)
    quiet.run({})
    shown = trainer(tmp_path / "shown", SHORT, tensorboard=True, validate_every=1e-6)
    shown.run({})
    assert same(quiet.model.state_dict(), shown.model.state_dict())
    assert not (tmp_path / "quiet/tensorboard").exists()
    rows = log_of(tmp_path / "shown")
    board = EventAccumulator(str(tmp_path / "shown/tensorboard"), size_guidance={"images": 0})
    board.Reload()
    tags = board.Tags()
    terms = {"trk_mask", "trk_dice", "trk_obj", "det_mask", "det_dice", "det_obj", "seed", "class", "loss"}
    wanted = {f"loss/{name}" for name in terms}
    wanted |= {f"training/{name}" for name in ("lr", "grad_norm", "seconds", "data_seconds")}
    assert set(tags["scalars"]) == wanted | {"validation/J", "validation/seconds"}
    for name, key in (("loss/det_mask", "det_mask"), ("training/lr", "lr"), ("validation/J", "validation_J")):
        assert [(e.step, e.value) for e in board.Scalars(name)] == [
            (row["iteration"], pytest.approx(row[key])) for row in rows
        ]
    assert len(tags["images"]) == 2 * CLIPS and "validation/0-prompted" in tags["images"]
    assert [image.step for image in board.Images("validation/0-prompted")] == [1, 2]


def test_without_tensorboard_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    report = Report(tmp_path, 0)
    report.step({"iteration": 1, "loss": 2.5, "source": "squares"})
    report.pictures(1, {"a": np.zeros((4, 4, 3), np.uint8)})
    report.close()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "pip install tensorboard" in warnings[0]
    assert log_of(tmp_path) == [{"iteration": 1, "loss": 2.5, "source": "squares"}]


def test_a_resumed_run_takes_back_what_it_repeats(tmp_path: Path) -> None:
    """Killed after iteration 4 in the middle of a line, resumed from 2."""
    lines = [json.dumps({"iteration": i}) + "\n" for i in (1, 2, 3, 4)]
    (tmp_path / "log.jsonl").write_text("".join(lines) + '{"iterat')
    report = Report(tmp_path, 2, tensorboard=False)
    report.step({"iteration": 3, "again": True})
    report.close()
    assert log_of(tmp_path) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "again": True}]
    Report(tmp_path, 0, tensorboard=False).close()  # a new run in the same folder
    assert log_of(tmp_path) == [] and (tmp_path / "log.jsonl.old").exists()


def test_validation_clips_are_fixed_and_plain() -> None:
    model = AUSM(tiny_config())
    stage = dataclasses.replace(STAGE, frames=4)
    source = [Source(Squares(), 1.0)]
    results = []
    for seed in (3, 3, 4):
        validation = Validation(source, stage, seed)
        results.append(validation.run(model.config, model.state_dict(), model.X_0.device, bf16=False))
    assert results[0].J == results[1].J and 0 <= results[0].J < 1
    names = {f"{i}-{how}" for i in range(CLIPS) for how in ("prompted", "discovered")}
    assert set(results[0].pictures) == names
    for name in names:
        assert np.array_equal(results[0].pictures[name], results[1].pictures[name])
    assert any(not np.array_equal(results[0].pictures[n], results[2].pictures[n]) for n in names)
    sheet = results[0].pictures["0-prompted"]
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 2 * 64 and sheet.shape[0] > 3 * 32  # three rows of two
