"""One batch from clips to loss terms: the parts of a batch, histories of the model's own, what is refused."""

import dataclasses

import pytest
import torch
from tiny_training import STAGE, batch, tiny_config
from torch import Tensor

from ausm.assemble import exclusive
from ausm.marker import marks_from_logits
from ausm.model import AUSM
from ausm.stream import Stream, StreamConfig
from training import clip_loss as clip_loss_module
from training import losses
from training.clip_loss import ClipLoss
from training.clips import ClipDataError
from training.loader import Batch
from training.preprocess import Targets, preprocess


def test_a_class_that_the_head_lacks_is_refused() -> None:
    clip_loss = ClipLoss(AUSM(tiny_config()), STAGE).train()
    part = batch([0, 1])._replace(class_ids=torch.tensor([[1, 2], [13, 2]]))
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ClipDataError, match=r"class id 13 in .*squares/1.*: head 'sim' has the classes 0\.\.12"):
        clip_loss(part, clip_loss.targets(part, generator))


def test_parts_of_a_batch_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of two clips at once equals the sum over one at a time, with one normaliser and the same points."""
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(tiny_config()), dataclasses.replace(STAGE, noise=None)).train()
    fixed = torch.quasirandom.SobolEngine(2).draw(512)
    monkeypatch.setattr(losses.torch, "rand", lambda *n, device=None: fixed[: n[-2]].expand(*n))

    def gradient(parts: list[Batch], ts: list[list[list[int]]]) -> dict[str, Tensor]:
        clip_loss.zero_grad()
        for part, switch in zip(parts, ts, strict=True):
            masks = part.masks.transpose(1, 2)
            ids = torch.tensor([[3, 7]]).repeat(len(masks), 1)
            targets = preprocess(masks, torch.tensor(switch), (4, 8), ids)
            torch.stack(list(clip_loss(part, targets, self_fed=True, num_masks=10.0).values())).sum().backward()
        return {n: p.grad.clone() for n, p in clip_loss.named_parameters() if p.grad is not None}

    whole = gradient([batch([0, 1])], [[[0, 2], [1, 3]]])
    parts = gradient([batch([0]), batch([1])], [[[0, 2]], [[1, 3]]])
    assert whole.keys() == parts.keys() and not any("backbone" in name for name in whole)
    for name, grad in whole.items():
        assert torch.allclose(grad, parts[name], atol=1e-5 + 1e-4 * float(grad.abs().max())), name


def test_a_backbone_that_is_trained_keeps_its_batch_statistics() -> None:
    """Else the weights would hang on how many clips a process has at once."""
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(tiny_config()), dataclasses.replace(STAGE, backbone_lr_scale=0.1)).train()
    before = {name: value.clone() for name, value in clip_loss.model.backbone.named_buffers()}
    part = batch([0, 1])
    torch.stack(
        list(clip_loss(part, clip_loss.targets(part, torch.Generator().manual_seed(0))).values())
    ).sum().backward()
    trained = [parameter for parameter in clip_loss.model.backbone.parameters() if parameter.grad is not None]
    assert any(float(parameter.grad.abs().max()) > 0 for parameter in trained)
    assert before and all(torch.equal(before[name], b) for name, b in clip_loss.model.backbone.named_buffers())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("history", ["_own_history", "_streamed_history"])
def test_the_pass_that_makes_a_history_takes_no_gradient_away(
    monkeypatch: pytest.MonkeyPatch, history: str, bf16: bool
) -> None:
    """It runs without gradients under the same autocast: copies of the weights made there are none for the loss."""
    torch.manual_seed(0)
    stage = dataclasses.replace(STAGE, noise=None, self_fed_stream=history == "_streamed_history")
    clip_loss = ClipLoss(AUSM(tiny_config()), stage).train()
    clip_loss.packs = False
    fixed = torch.quasirandom.SobolEngine(2).draw(512)
    points = lambda *n, device=None: fixed[: n[-2]].expand(*n) if n != ((),) else torch.zeros(())  # noqa: E731
    monkeypatch.setattr(losses.torch, "rand", points)
    part = batch([0, 1], 4)
    targets = preprocess(part.masks.transpose(1, 2), torch.tensor([[0, 2], [1, 3]]), (4, 8), torch.tensor([[3, 7]] * 2))

    def gradients(self_fed: bool, given: Targets) -> dict[str, Tensor]:
        clip_loss.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            torch.stack(list(clip_loss(part, given, self_fed).values())).sum().backward()
        return {name: p.grad.clone() for name, p in clip_loss.named_parameters() if p.grad is not None}

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = clip_loss._backbone()(clip_loss.model.normalise(part.images.flatten(0, 1)))
        made = getattr(clip_loss, history)(clip_loss.model.features(maps), 2, targets)
    assert not torch.equal(made, targets.history)
    alone, after = gradients(False, targets._replace(history=made)), gradients(True, targets)
    assert len(alone) > 50 and alone.keys() == after.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("draw", [0.0, 0.9])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_streamed_history_is_what_a_stream_marks(
    monkeypatch: pytest.MonkeyPatch, threshold: float, draw: float
) -> None:
    monkeypatch.setattr(clip_loss_module, "PROMPT_THRESHOLD", threshold)
    monkeypatch.setattr(clip_loss_module.torch, "rand", lambda *_, **__: torch.tensor(draw))
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(tiny_config()), dataclasses.replace(STAGE, noise=None, self_fed_stream=True)).eval()
    model, part = clip_loss.model, batch([0], 6)
    images, masks = part.images.flip(1), part.masks.flip(2)  # backwards one square leaves the image
    with torch.no_grad():
        model.pixel_decoder.objectness.weight.mul_(30)  # untrained, all would be about 1/2
    applied = threshold if draw < 0.5 else 0.0
    stream = Stream(model, config=StreamConfig(discover=False, short_side=32, prompt_threshold=applied))
    stream.prompt(masks[0, :, 0].numpy())
    targets = preprocess(masks.transpose(1, 2), torch.tensor([[0, 0]]), (4, 8), stream._slots()[None])
    with torch.no_grad():
        history = clip_loss._streamed_history(model.encode(images[0]), 1, targets)
    told = []
    for image in images[0]:
        told.append(stream._M.clone())
        stream.step(image.numpy())
    for t in range(2, len(told)):
        assert torch.equal(history[0, t], told[t])
    assert torch.equal(history[0, 1], targets.history[0, 1])  # A2: the prompt
    assert not torch.equal(history, targets.history)


@pytest.mark.parametrize("gate", [-1.0, 0.5])
def test_a_streamed_history_is_a_fixed_point(monkeypatch: pytest.MonkeyPatch, gate: float) -> None:
    """Given back to the parallel form, every frame marks just what the next one was told."""
    monkeypatch.setattr(clip_loss_module, "PROMPT_THRESHOLD", gate)
    monkeypatch.setattr(clip_loss_module.torch, "rand", lambda *_, **__: torch.zeros(()))
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(tiny_config()), dataclasses.replace(STAGE, noise=None, self_fed_stream=True)).train()
    part = batch([0, 1])
    targets = preprocess(part.masks.transpose(1, 2), torch.tensor([[0, 2], [1, 3]]), (4, 8), torch.tensor([[3, 7]] * 2))
    model = clip_loss.model
    with torch.no_grad():
        model.pixel_decoder.objectness.weight.mul_(30)  # untrained, all would be about 1/2
        features = model.encode(part.images.flatten(0, 1))
        history = clip_loss._streamed_history(features, 2, targets)
        out = model.decode_clip(features, 2, targets.ids, history, targets.active)[-1]
    logits = out.masks[:, :2].unflatten(0, (2, -1)).float()
    shown = targets.active & (out.objectness[:, :2].unflatten(0, (2, -1)).sigmoid() > gate)
    assert shown.any() and (gate < 0 or (targets.active & ~shown).any())
    assert torch.equal(history[:, :2], targets.history[:, :2])  # M_0 and M_1 are the prompt (A2)
    for t in range(2, history.shape[1]):
        for b in range(2):
            marks = marks_from_logits(
                exclusive(torch.where(shown[b, t - 1, :, None, None], logits[b, t - 1], -logits[b, t - 1].abs())),
                (4, 8),
            )
            own = targets.active[b, t - 1]
            new = history[b, t, targets.active[b, t] & ~own]
            assert torch.equal(history[b, t, own], marks[own] & ~new.any(0))
            assert torch.equal(history[b, t, ~own], targets.history[b, t, ~own])
    assert not torch.equal(history, targets.history)


@pytest.mark.parametrize("history", ["_own_history", "_streamed_history"])
def test_self_feeding_leaves_marks_that_are_wrong_on_purpose(history: str) -> None:
    torch.manual_seed(0)
    clip_loss = ClipLoss(AUSM(tiny_config()), STAGE).train()
    part = batch([0, 1])
    targets = preprocess(part.masks.transpose(1, 2), torch.tensor([[0, 0]] * 2), (4, 8), torch.tensor([[3, 7]] * 2))
    board = torch.arange(4)[:, None] % 2 != torch.arange(8) % 2  # no mask of the model is a chessboard
    targets = targets._replace(history=board.expand_as(targets.history))
    T = targets.active.shape[1]
    with torch.no_grad():
        features = clip_loss.model.encode(part.images.flatten(0, 1))
        for t in range(2, T):
            fixed = torch.zeros_like(targets.active)
            fixed[1, t, 0] = True
            fed = getattr(clip_loss, history)(features, 2, targets._replace(fixed=fixed))
            kept = (fed == board).flatten(3).all(-1)
            kept[:, :2] = False  # M_0 and M_1 are what was given (A2), whatever the model says
            assert torch.equal(kept, fixed)


@pytest.mark.parametrize("exhaustive", [True, False])
def test_only_exhaustive_clips_begin_unknown(exhaustive: bool) -> None:
    stage = dataclasses.replace(STAGE, noise=None, unknown_p=1.0, first_p=0.0)
    clip_loss = ClipLoss(AUSM(tiny_config()), stage)
    part = batch([0, 1])._replace(exhaustive=exhaustive)
    generator = torch.Generator().manual_seed(0)
    prompted = torch.stack([clip_loss.targets(part, generator).active[:, 0].any() for _ in range(30)])
    assert bool(prompted.any()) is not exhaustive
