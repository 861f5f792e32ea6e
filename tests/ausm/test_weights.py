"""Checkpoints: what is written is read back; what is missing, broken or foreign is refused in clear words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import build, small_nano

import ausm
from ausm import weights
from ausm.config import PRESETS, AusmConfig, config_from_dict, config_to_dict
from ausm.errors import CheckpointError
from ausm.model import AUSM

MANIFEST = {"recipe": [{"stage": {"name": "nano-1"}}], "licence": "Apache-2.0", "scores": {"JF": 60.4}}


@pytest.fixture(scope="module")
def model() -> AUSM:
    return build(small_nano())


@pytest.fixture(scope="module")
def saved(model: AUSM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save(path, model, MANIFEST)
    return path


def test_round_trip(model: AUSM, saved: Path) -> None:
    loaded = ausm.load(saved, device="cpu")
    assert loaded.config == model.config and not loaded.training
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    for name, value in own.items():
        if value.is_floating_point() and value.ndim >= 2 and not name.endswith("A_log"):
            assert torch.equal(theirs[name], value.half().float())  # matrices and kernels are stored as fp16
        else:
            assert torch.equal(theirs[name], value), name
    assert not list(saved.parent.glob("*.partial"))
    second = saved.with_name("again.safetensors")
    weights.save(second, loaded, MANIFEST)
    again = load_file(second)
    assert all(torch.equal(v, again[k]) for k, v in load_file(saved).items())


def test_other_tensors_may_be_saved_in_place_of_the_models(model: AUSM, tmp_path: Path) -> None:
    average = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    weights.save(tmp_path / "ema.safetensors", model, {}, average)
    assert torch.equal(ausm.load(tmp_path / "ema.safetensors", "cpu").X_0, model.X_0 + 1)


def test_describe(model: AUSM, saved: Path) -> None:
    text = weights.describe(saved)
    assert (text["name"], text["preset"]) == ("small", "nano")
    assert text["parameters"] == sum(p.numel() for p in model.parameters())
    assert text["bytes"] == saved.stat().st_size and len(text["sha256"]) == 64
    assert text["licence"] == "Apache-2.0" and text["scores"] == {"JF": 60.4}
    assert config_from_dict(json.loads(json.dumps(text["config"]))) == model.config


def test_what_is_measured_is_not_taken_from_the_file(saved: Path, tmp_path: Path) -> None:
    claims = json.dumps({"sha256": "0" * 64, "preset": "swin_b", "parameters": 1, "licence": "MIT"})
    text = weights.describe(rewritten(saved, tmp_path / "boast.safetensors", load_file(saved), manifest=claims))
    assert text["sha256"] == weights.sha256(tmp_path / "boast.safetensors")
    assert text["preset"] == "nano" and text["parameters"] > 1 and text["licence"] == "MIT"


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "local-dir:/tmp", "no_such_model", "resnet18/evil"])
def test_a_file_fetches_no_backbone(name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, and no code is taken from elsewhere, because a checkpoint says so."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    config = config_to_dict(small_nano())
    config["backbone"]["name"] = name
    path = rewritten(saved, tmp_path / "far.safetensors", load_file(saved), config=json.dumps(config))
    for read in (weights.describe, ausm.load):
        with pytest.raises(CheckpointError, match=f"no model has its sizes .*'{name}' is no model of timm's own"):
            read(path)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_configs_survive_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    with pytest.raises(TypeError, match=r"DecoderConfig: unknown fields \['colour'\]"):
        data = config_to_dict(config)
        config_from_dict({**data, "decoder": {**data["decoder"], "colour": 1}})


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 'huge': neither a file nor one of the released \["):
        ausm.load("huge")
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        ausm.load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"no preset 'huge', presets are \['nano', 'swin_b', 'swin_t'\]"):
        ausm.load("huge", weights=False)
    with pytest.raises(CheckpointError, match="device 'cuda:99' cannot be used"):
        ausm.load("nano", device="cuda:99", weights=False)
    with pytest.raises(CheckpointError, match="device 'toaster' cannot be used"):
        ausm.load("nano", device="toaster", weights=False)


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_corrupt(saved: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"bad.safetensors \({path.stat().st_size} bytes\) cannot be read"):
        ausm.load(path, device="cpu")


def rewritten(saved: Path, path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    base = {"format": weights.FORMAT, "config": json.dumps(config_to_dict(small_nano())), "manifest": "{}"}
    save_file(load_file(saved) if tensors is None else tensors, path, {**base, **metadata})
    return path


def test_foreign(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    foreign = tmp_path / "foreign.safetensors"
    save_file(state, foreign)
    with pytest.raises(CheckpointError, match="has format None, this version reads 'ausm-1'"):
        ausm.load(foreign, device="cpu")
    for metadata, message in (
        ({"format": "ausm-9"}, "has format 'ausm-9'"),
        ({"config": "{"}, "unusable metadata"),
        ({"config": "{}"}, "unusable metadata: 'backbone'"),
        ({"manifest": "no json"}, "unusable metadata"),
        ({"manifest": "[1]"}, "unusable metadata: its manifest is a list"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ausm.load(rewritten(saved, foreign, state, **metadata), device="cpu")


def test_tensors_that_do_not_fit(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    del state["X_0"]
    state["extra"] = torch.zeros(3)
    state["B"] = state["B"][:5].clone()
    path = rewritten(saved, tmp_path / "odd.safetensors", state)
    with pytest.raises(CheckpointError) as error:
        ausm.load(path, device="cpu")
    text = str(error.value)
    assert "1 keys missing ['X_0']" in text and "1 unknown ['extra']" in text
    assert "1 of another shape ['B (5, 128) instead of (12, 128)']" in text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers(value: float, saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    state["X_0"].view(-1)[3] = value
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors hold NaN or infinity: \['X_0'\]"):
        ausm.load(rewritten(saved, tmp_path / "broken.safetensors", state), device="cpu")


def test_one_changed_bit_is_noticed(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-5] ^= 1  # the tensors are at the end; still a number, or the test above would tell
    path = tmp_path / "bit.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bit.safetensors is damaged: its tensors have sha256 [0-9a-f]{12}, "):
        ausm.load(path, device="cpu")


def test_files_from_before_the_digest_are_read(saved: Path, tmp_path: Path) -> None:
    old = rewritten(saved, tmp_path / "old.safetensors", load_file(saved))
    assert torch.equal(ausm.load(old, device="cpu").X_0, ausm.load(saved, device="cpu").X_0)


def test_impossible_sizes_are_refused() -> None:
    config: AusmConfig = small_nano()
    with pytest.raises(ValueError, match="N_id 129 > D 128"):
        replace(config, N_id=129)
