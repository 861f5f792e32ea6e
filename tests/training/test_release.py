"""A released checkpoint is the trained weights, its card, and the calibration that the card names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import small_nano

from ausm import weights
from ausm.errors import CheckpointError
from ausm.model import AUSM
from training.release import release

CARD = {"summary": "a test", "data": ["none"], "licence": "none", "scores": {"J": 1.0}}


@pytest.mark.parametrize(("hidden", "bias"), [(0, "objectness.bias"), (8, "objectness.2.bias")])
def test_the_card_goes_into_the_file_and_the_shift_into_one_bias(tmp_path: Path, hidden: int, bias: str) -> None:
    config = small_nano()
    model = AUSM(replace(config, pixel_decoder=replace(config.pixel_decoder, objectness_hidden=hidden)))
    weights.save(tmp_path / "ema.safetensors", model, {"recipe": [1]})
    release([tmp_path / "ema.safetensors"], CARD, tmp_path / "out.safetensors", shift=0.5)
    manifest = weights.read_metadata(tmp_path / "out.safetensors")[1]
    assert manifest == {"recipe": [1], **CARD, "objectness_shift": 0.5}
    before, after = (weights.load(tmp_path / f"{name}.safetensors", "cpu").state_dict() for name in ("ema", "out"))
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed == [f"pixel_decoder.{bias}"]
    assert torch.allclose(after[changed[0]] - before[changed[0]], torch.tensor([0.5]))


def test_a_card_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="scores"):
        release([tmp_path / "ema.safetensors"], {**CARD, "scores": {}}, tmp_path / "out.safetensors")


def test_several_weights_are_averaged(tmp_path: Path) -> None:
    for name in "ab":
        weights.save(tmp_path / f"{name}.safetensors", AUSM(small_nano()), {"recipe": [name]})
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    out = tmp_path / "out.safetensors"
    release(paths, CARD, out)
    size, manifest = weights.read_metadata(out)
    assert manifest["recipe"] == ["b"] and manifest["averaged"] == [weights.sha256(path) for path in paths]
    first, second, found = (weights.load(path, "cpu", fuse=False).state_dict() for path in (*paths, out))
    for name, value in found.items():
        expected = (first[name] + second[name]) / 2 if value.is_floating_point() else second[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-3)  # matrices are stored as float16
    weights.save(tmp_path / "c.safetensors", AUSM(replace(size, N_det=size.N_det + 1)), {})
    with pytest.raises(CheckpointError, match="2 sizes"):
        release([*paths, tmp_path / "c.safetensors"], CARD, tmp_path / "out.safetensors")


def test_shares_of_a_mean(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        weights.save(path, AUSM(small_nano()), {})
    manifest = release(paths, CARD, tmp_path / "out.safetensors", shares=[3, 1])
    assert manifest["shares"] == [3, 1]
    first, second, found = (
        weights.load(path, "cpu", fuse=False).state_dict()["B"] for path in (*paths, tmp_path / "out.safetensors")
    )
    torch.testing.assert_close(found, 0.75 * first + 0.25 * second, atol=1e-3, rtol=1e-3)
    for wrong in ([1], [1, -1], [0, 0]):
        with pytest.raises(CheckpointError, match="2 checkpoints, shares"):
            release(paths, CARD, tmp_path / "out.safetensors", shares=wrong)


def test_a_licence_that_is_not_that_of_the_weights_it_began_with_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ema.safetensors"
    weights.save(path, AUSM(small_nano()), {"recipe": [1], "init": {"licence": "CC BY-NC 4.0"}})
    release([path], CARD, tmp_path / "out.safetensors")
    assert f"licence is 'none', that of {path} or of what it began with 'CC BY-NC 4.0'" in caplog.text
    later, free = tmp_path / "later.safetensors", tmp_path / "free.safetensors"
    weights.save(later, AUSM(small_nano()), {"init": {"name": "mine", "init": {"licence": "CC BY-NC 4.0"}}})
    weights.save(free, AUSM(small_nano()), {"licence": "none", "init": None})
    caplog.clear()
    release([later, free], CARD, tmp_path / "out.safetensors")  # a mean, and two stages on
    assert str(later) in caplog.text and str(free) not in caplog.text
    caplog.clear()
    release([path], {**CARD, "licence": "CC BY-NC 4.0"}, tmp_path / "out.safetensors")
    assert not caplog.records


def test_a_released_checkpoint_is_averaged_by_its_name(tmp_path: Path) -> None:
    """As docs/training.md shows it."""
    manifest = release([Path("nano"), weights.resolve("nano")], CARD, tmp_path / "out.safetensors", shares=[1, 1])
    assert manifest["averaged"] == [weights.sha256(weights.resolve("nano"))] * 2
