"""The packed copy that streams run on a CPU gives the model's own results, and the model stays as it was."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SMALL, build, small_nano
from torch import Tensor, nn

import ausm
from ausm import inference, weights
from ausm.attention import Attention
from ausm.frame_modules import FrameAttention
from ausm.model import AUSM

SIZE = (90, 120)  # no multiple of 32: the grid is padded
needs_onednn = pytest.mark.skipif(not inference._has_operators("fp32"), reason="PyTorch without oneDNN")
needs_bf16 = pytest.mark.skipif(not inference._has_operators("bf16"), reason="a CPU without bfloat16 in oneDNN")


def trained(preset: str, seed: int = 0) -> AUSM:
    """A small model whose batch norms have seen data: fresh ones would fold to nothing."""
    model = build(SMALL[preset](), seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 2.0)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.1)
    return model


@pytest.fixture(scope="module", params=sorted(SMALL))
def model(request: pytest.FixtureRequest) -> AUSM:
    return inference.mark_constant(trained(request.param))


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    return [np.roll(ground, 4 * i, axis=1) for i in range(3)]


def follow(model: AUSM, frames: list[np.ndarray], precision: str) -> tuple[ausm.Stream, list[Tensor]]:
    """A stream after two prompted objects in three frames, and every number the model gave."""
    stream = ausm.Stream(model, precision=precision, config=ausm.StreamConfig(short_side=90))
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 20:60, 20:50] = masks[1, 30:70, 60:110] = True
    stream.prompt(masks)
    numbers = []
    for image in frames:
        stream.step(image)
        predictions, _ = stream.last_predictions
        numbers += [t.float().clone() for t in predictions[:3]]
    return stream, numbers


@needs_onednn
def test_packed_equals_plain(model: AUSM, frames: list[np.ndarray]) -> None:
    plain = trained(model.config.name)
    assert inference.frame_model(plain, "fp32") == (plain, "fp32")  # nobody promised that its weights stay
    slow, expected = follow(plain, frames, "fp32")
    fast, got = follow(model, frames, "fp32")
    assert fast.model is not model and fast.precision == "fp32"
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Conv2d | nn.Linear) for m in fast.model.modules())
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
    for a, b in zip(slow.current.tracks, fast.current.tracks, strict=True):
        assert a.track_id == b.track_id and np.array_equal(a.mask, b.mask)


@needs_bf16
def test_bfloat16_is_close(model: AUSM, frames: list[np.ndarray]) -> None:
    _, expected = follow(model, frames, "fp32")
    stream, got = follow(model, frames, "bf16")
    assert stream.precision == "bf16" and any(type(m) is FrameAttention for m in stream.model.modules())
    for a, b in zip(expected[:3], got[:3], strict=True):  # later frames may differ by a mark that flipped
        a, b = a[:, :2], b[:, :2]  # the two ids; random weights give detections no order that rounding would keep
        assert (a - b).norm() < 0.05 * a.norm()
    assert all(t.isfinite().all() for t in got)


@needs_onednn
def test_streams_share_one_copy_and_the_model_is_untouched(model: AUSM, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one, two = ausm.Stream(model), ausm.Stream(model, seed=1)
    assert one.model is two.model
    assert not any(type(m) is FrameAttention for m in model.modules())
    assert any(type(m) is Attention for m in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    weights.save(tmp_path / "again.safetensors", model, {})
    shared = {t.data_ptr() for t in model.parameters()}
    assert {t.data_ptr() for t in one.model.parameters()} <= shared  # what is not packed is not copied


def test_only_what_can_be_packed_is(model: AUSM) -> None:
    assert inference.frame_model(model, "fp16") == (model, "fp16")
    model.train()
    try:
        assert inference.frame_model(model, "fp32") == (model, "fp32")
    finally:
        model.eval()
    assert inference.frame_model(model, "fp32")[0].training is False


def test_without_onednn_streams_run_the_model_itself(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert ausm.Stream(model).model is model
    assert ausm.Stream(model, precision="auto").precision == "fp32"


@needs_onednn
def test_a_wrong_order_of_layers_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = inference.mark_constant(trained("nano"))
    block = model.backbone.body.blocks[1][0]

    class Crossed(type(block)):  # type: ignore[misc]
        """The first two norms change places in the calls only; they have other statistics."""

        def forward(self, x: Tensor) -> Tensor:
            return self.bn3(self.conv_pwl(self.bn1(self.conv_dw(self.bn2(self.conv_pw(x))))))

    block.__class__ = Crossed
    with caplog.at_level(logging.WARNING, "ausm"):
        assert ausm.Stream(model).model is model
    assert "efficientnet_lite0 is not packed: its maps would differ by" in caplog.text


@needs_bf16
@pytest.mark.parametrize(("gain", "choice"), [(1.6, "bf16"), (1.05, "fp32")])
def test_auto_takes_bfloat16_where_it_is_faster(
    gain: float, choice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[AUSM] = []

    def measured(model: AUSM) -> float:
        calls.append(model)
        return gain

    monkeypatch.setattr(inference, "self_test", measured)
    model = inference.mark_constant(build(small_nano()))
    with caplog.at_level(logging.INFO, "ausm"):
        streams = [ausm.Stream(model, precision="auto") for _ in range(3)]
    assert [s.precision for s in streams] == [choice] * 3
    assert len(calls) == 1 and caplog.text.count(f"precision auto: {choice}") == 1


@needs_bf16
def test_self_test_compares_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    made: list[str] = []

    def stepper(model: AUSM, precision: str) -> Callable[[], None]:
        made.append(precision)
        cost = {"fp32": 3, "bf16": 1}[precision]

        def step() -> None:
            for _ in range(cost):
                next(ticks)

        return step

    monkeypatch.setattr(inference, "_stepper", stepper)
    monkeypatch.setattr(inference.time, "process_time", lambda: next(ticks))
    assert inference.self_test(inference.mark_constant(build(small_nano()))) == pytest.approx(4 / 2)
    assert made == ["fp32", "bf16"]


def test_load_promises_constant_weights(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    weights.save(path, build(small_nano()), {})
    assert ausm.load(path, "cpu") in inference._constant
    assert ausm.load(path, "cpu", fuse=False) not in inference._constant
