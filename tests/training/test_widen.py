"""A hidden layer of objectness that is given to trained weights changes no answer, and can be trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import small_nano

from ausm import weights
from ausm.errors import CheckpointError
from ausm.model import AUSM
from training.widen import main, widen


def linear() -> AUSM:
    config = small_nano()
    torch.manual_seed(0)
    return AUSM(replace(config, pixel_decoder=replace(config.pixel_decoder, objectness_hidden=0))).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_stay(dtype: torch.dtype) -> None:
    old = linear()
    new = widen(old, 8)
    assert new.config.pixel_decoder.objectness_hidden == 8
    queries = torch.randn(3, 6, old.config.D)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.no_grad():
        before, after = (model.pixel_decoder.objectness(queries) for model in (old, new))
    torch.testing.assert_close(after, before)
    for name, value in old.state_dict().items():
        assert name.startswith("pixel_decoder.objectness.") or torch.equal(value, new.state_dict()[name]), name


def test_every_unit_can_learn() -> None:
    head = widen(linear(), 8).pixel_decoder.objectness
    assert isinstance(head, torch.nn.Sequential)
    head(torch.randn(64, 128)).square().sum().backward()
    assert head[-1].weight.grad.count_nonzero() == 8  # the new ones' weights leave zero with the first step


def test_widths_that_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="1 hidden units"):
        widen(linear(), 1)
    with pytest.raises(CheckpointError, match="64 hidden units already"):
        widen(AUSM(small_nano()), 8)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save(tmp_path / "old.safetensors", linear(), {"recipe": [1]})
    command = ["widen", "--weights", str(tmp_path / "old.safetensors"), "--out", str(tmp_path / "new.safetensors")]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    config, manifest = weights.read_metadata(tmp_path / "new.safetensors")
    assert config == small_nano() and manifest == {"recipe": [1]}
    command[2] = command[4]  # widen the wide one
    assert main() == 2
    assert "widen: error: objectness has 64 hidden units already" in capsys.readouterr().err
