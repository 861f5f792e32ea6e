"""One micro-batch through the parallel form: Preprocess, (first pass), model, losses: Alg. 2 in one forward."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.assemble import shown_masks
from ausm.errors import InputError
from ausm.inference import can_pack, pack
from ausm.marker import marks_from_logits
from ausm.model import AUSM, Features
from training.clips import ClipDataError
from training.depthwise import quicken
from training.false_tracks import add_false_track
from training.joined_tracks import join_tracks
from training.loader import Batch
from training.losses import Criterion
from training.noise import add_noise
from training.preprocess import Targets, preprocess, sample_ids, sample_switch
from training.stages import Stage

PROMPT_THRESHOLD = 0.4  # as the ROS node's `prompt.threshold`


class ClipLoss(nn.Module):
    """Wraps the model so that data-parallel wrappers see one forward from batch to loss terms."""

    def __init__(self, model: AUSM, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        self.criterion = Criterion(stage.loss, model)
        self.frozen = stage.backbone_lr_scale == 0
        model.backbone.requires_grad_(not self.frozen)
        if stage.only:
            _train_only(model, stage.only)
            self.frozen = not any(parameter.requires_grad for parameter in model.backbone.parameters())
        if not self.frozen:
            quicken(model.backbone)
        self.packs = True  # whether a frozen backbone may be packed
        self._packed: list[nn.Module] = []  # in a list: not a part of this module

    def train(self, mode: bool = True) -> "ClipLoss":
        """A frozen backbone stays in eval mode, and one that is trained keeps its batch statistics, as in detectors:
        those of the few clips a process has at once are poor, and the result would hang on how many processes run.
        """
        super().train(mode)
        for module in self.model.backbone.modules():
            if self.frozen or isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                module.eval()
        return self

    def targets(self, batch: Batch, generator: torch.Generator) -> Targets:
        """Draw switch times and ID vectors, build targets and history (Alg. 2 l. 1-3) on the model's device."""
        masks = batch.masks.transpose(1, 2)  # (B, T, K, H, W)
        B, _, K, H, W = masks.shape
        d = self.model.config.size_divisor
        if H % d or W % d:
            raise ValueError(f"training size {H}x{W} is not a multiple of {d}")
        visible = masks.flatten(3).any(-1)
        first_p = 0.0 if batch.exhaustive else self.stage.first_p
        unknown_p = self.stage.unknown_p if batch.exhaustive else 0.0
        ts = sample_switch(visible, batch.valid, first_p, generator, unknown_p)
        noise = self.stage.noise
        false_p = noise.false_id if noise is not None and batch.exhaustive else 0.0
        ids = sample_ids(B, K + (false_p > 0), self.model.config.N_id, generator)
        device = self.model.X_0.device
        t = preprocess(masks.to(device), ts.to(device), (H // 8, W // 8), ids[:, :K].to(device))
        if noise is not None:
            noisy = add_noise(t.history, t.active, noise, generator)
            t = t._replace(history=noisy.history, fixed=noisy.fixed)
            if noise.joined > 0:  # without it the sequence of draws stays what it was
                t = join_tracks(t, noise.joined, generator)
        return add_false_track(t._replace(ids=ids.to(device)), false_p, generator) if false_p else t

    def forward(
        self, batch: Batch, targets: Targets, self_fed: bool = False, num_masks: float | None = None
    ) -> dict[str, Tensor]:
        """Weighted loss terms of one micro-batch; their sum is L."""
        images = batch.images.to(self.model.X_0.device)
        B = images.shape[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self._backbone()(self.model.normalise(images.flatten(0, 1)))
        features = self.model.features(maps)
        if self_fed and targets.active.shape[1] > 2:  # M_0 and M_1 are what was given (A2)
            own = self._streamed_history if self.stage.self_fed_stream else self._own_history
            targets = targets._replace(history=own(features, B, targets))
        outputs = self.model.decode_clip(features, B, targets.ids, targets.history, targets.active, every_layer=True)
        class_ids = batch.class_ids.to(images.device)
        class_ids = F.pad(class_ids, (0, targets.active.shape[2] - class_ids.shape[1]), value=-1)  # a false id: none
        known = batch.head if batch.head in self.model.pixel_decoder.class_heads else ""
        _check_class_ids(batch, dict(self.model.config.heads).get(known))
        return self.criterion(outputs, targets, class_ids, known, batch.exhaustive, num_masks)

    def _backbone(self) -> nn.Module:
        """The frozen one packed where that is possible (CPU, bfloat16): half the time, the same to rounding."""
        if not (self.packs and self.frozen and torch.is_autocast_enabled("cpu") and can_pack(self.model, "bf16")):
            return self.model.backbone
        if not self._packed:
            self._packed.append(pack(self.model, "bf16").backbone)
        return self._packed[0]

    @torch.no_grad()
    def _own_history(self, features: Features, B: int, targets: Targets) -> Tensor:
        """History made of the model's own masks of a first pass (parallel scheduled sampling).

        Keeps the parallel form: two passes instead of T steps. Only frames on which an instance was tracked change.
        """
        K = targets.ids.shape[1]
        out = self.model.decode_clip(features, B, targets.ids, targets.history, targets.active)[-1]
        logits = out.masks[:, :K].unflatten(0, (B, -1)).float()  # (B, T, K, H/4, W/4)
        logits = logits.masked_fill(~targets.active[..., None, None], -1e4)
        if K > 1:  # one object a pixel, as the stream's output has it
            logits = torch.where(logits == logits.amax(2, keepdim=True), logits, -logits.abs())
        marks = marks_from_logits(logits, features.size)
        history = targets.history.clone()
        own = targets.active[:, :-1] & ~targets.fixed[:, 1:]
        own[:, 0] = False  # A2: on the frame of the prompt the prompt is the mark, whatever is predicted
        history[:, 1:] = torch.where(own[..., None, None], marks[:, :-1], history[:, 1:])
        return history

    @torch.no_grad()
    def _streamed_history(self, features: Features, B: int, targets: Targets) -> Tensor:
        """History made of the model's own masks as a stream makes it (Alg. 1): frame after frame, so that a mistake is
        believed and grows for as long as it does at test. T steps on the features at hand.

        Only frames on which an instance was tracked change; one that is new takes its tokens from the others. In half
        of the clips, at random, what has an objectness below PROMPT_THRESHOLD is not marked
        (`StreamConfig.prompt_threshold`).
        """
        history, size = targets.history.clone(), features.size
        X, c2 = (part.unflatten(0, (B, -1)) for part in (features.X, features.c2))
        for b in range(B):
            if not targets.active[b].any():
                continue
            least = PROMPT_THRESHOLD if torch.rand(()) < 0.5 else -1.0
            state = self.model.new_state(8 * size[0], 8 * size[1])
            for t in range(X.shape[1] - 1):
                active, after = targets.active[b, t], targets.active[b, t + 1]
                self.model.absorb(state, targets.ids[b], history[b, t] & active[:, None, None])  # Alg. 1 l. 11-12
                frame = Features(X[b, t, None], c2[b, t, None], size)
                out = self.model.decode_frame([state], frame, targets.ids[b, None], active[None])  # l. 13-14
                if t == 0:
                    continue  # A2: on the frame of the prompt the prompt is the mark, whatever is predicted
                logits = out.masks[0, : len(active)].float()
                shown = active & (out.objectness[0, : len(active)].float().sigmoid() > least)
                own = active & ~targets.fixed[b, t + 1]
                marks = marks_from_logits(shown_masks(logits, shown)[own], size)  # l. 19
                history[b, t + 1, own] = marks & ~history[b, t + 1, after & ~active].any(0)
        return history


def _check_class_ids(batch: Batch, classes: int | None) -> None:
    """A recording's ids have no table to check beforehand: the first one without a class would be taken for "no
    object", others end in an index error. Raises ClipDataError."""
    if classes is None or not batch.class_ids.numel():
        return
    if (highest := int(batch.class_ids.max())) >= classes:
        known = f"head {batch.head!r} has the classes 0..{classes - 1}"
        raise ClipDataError(f"class id {highest} in {batch.sources}: {known}")


def _train_only(model: AUSM, pattern: str) -> None:
    """Freezes every parameter whose name the regular expression does not find. Raises InputError if none is left."""
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"only={pattern!r} is no regular expression: {error}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and found(name) is not None)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"only={pattern!r}: no parameter that may be trained has such a name")
