"""A released checkpoint is the trained weights, its card, and the calibration that the card names."""

from pathlib import Path

import pytest
import torch
from small_models import small_nano

from ausm import weights
from ausm.errors import CheckpointError
from ausm.model import AUSM
from training.release import release

CARD = {"summary": "a test", "data": ["none"], "licence": "none", "scores": {"J": 1.0}}


def test_the_card_goes_into_the_file_and_the_shift_into_one_bias(tmp_path: Path) -> None:
    model = AUSM(small_nano())
    weights.save(tmp_path / "ema.safetensors", model, {"recipe": [1]})
    release(tmp_path / "ema.safetensors", CARD, tmp_path / "out.safetensors", shift=0.5)
    manifest = weights.read_metadata(tmp_path / "out.safetensors")[1]
    assert manifest == {"recipe": [1], **CARD, "objectness_shift": 0.5}
    before, after = (weights.load(tmp_path / f"{name}.safetensors", "cpu").state_dict() for name in ("ema", "out"))
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed == ["pixel_decoder.objectness.bias"]
    assert torch.allclose(after[changed[0]] - before[changed[0]], torch.tensor([0.5]))


def test_a_card_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="scores"):
        release(tmp_path / "ema.safetensors", {**CARD, "scores": {}}, tmp_path / "out.safetensors")
