"""L = sum_t L_trk + L_det (Alg. 2 l. 8) with Mask2Former's terms, deep supervision and point sampling."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm.errors import InputError
from ausm.model import AUSM
from ausm.pixel_decoder import Predictions
from training.clips import check_chances, check_least
from training.matcher import match
from training.preprocess import Targets
from training.seed_loss import seed_loss, way_to_seeds


@dataclass(frozen=True)
class LossConfig:
    """Weights of Mask2Former; `points` per mask, 3x oversampled, 3/4 of them where the prediction is least certain."""

    w_class: float = 2.0
    w_mask: float = 5.0
    w_dice: float = 5.0
    w_objectness: float = 2.0
    w_seed: float = 2.0
    w_way: float = 5.0  # of the matcher: from seed to target
    no_object: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75
    hard: bool = False  # the 3/4 are where the mask is most wrong, then least certain: it may be sure of its neighbour
    deep: float = 1.0  # weight of the intermediate outputs
    quality: bool = False  # objectness of a matched detection is taught `mask_quality` instead of 1
    quality_all: bool = False  # ... and of an unmatched one the same of the target it covers best, instead of 0

    def __post_init__(self) -> None:
        if self.quality_all and not self.quality:
            raise InputError("quality_all is part of quality: set both")
        weights = [field.name for field in fields(self) if field.name.startswith("w_")]
        check_least(self, {"points": 1, "oversample": 1, **dict.fromkeys((*weights, "no_object", "deep"), 0)})
        check_chances(self, ("importance",))


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """maps (M, H, W), points (M, P, 2) as x, y in 0..1 -> (M, P), bilinear."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps[:, None], grid, align_corners=False, padding_mode="border")[:, 0, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """(M, P, 2): 3/4 of the points with the smallest |logit| of a random oversample, the rest uniform (PointRend).

    With `config.hard` the logit counts as negative where it has the wrong sign: errors first, then what is uncertain.
    """
    M, P = len(logits), config.points
    candidates = torch.rand(M, int(P * config.oversample), 2, device=logits.device)
    certainty = sample_points(logits, candidates)
    certainty = certainty * (2 * sample_points(targets.float(), candidates) - 1) if config.hard else certainty.abs()
    important = int(P * config.importance)
    index = certainty.topk(important, dim=1, largest=False).indices
    chosen = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    return torch.cat((chosen, torch.rand(M, P - important, 2, device=logits.device)), 1)


def mask_losses(logits: Tensor, targets: Tensor, visible: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Sums over masks of BCE and dice. logits (M, h, w), targets (M, H, W) bool, visible (M,) bool.

    An absent object's mask is trained towards zero by BCE; dice is undefined without a target and left out (A7).
    """
    if len(logits) == 0:
        zero = logits.sum()
        return zero, zero
    logits = logits.float()
    points = uncertain_points(logits, targets, config)
    x = sample_points(logits, points)
    y = sample_points(targets.float(), points)
    bce = F.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1).sum()
    p = x.sigmoid()
    dice = 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    return bce, (dice * visible).sum()


@torch.no_grad()
def mask_overlaps(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU (F, Q, K) of masks, logits (F, Q, h, w) > 0, and targets (F, K, h, w) bool; 0 where both are empty."""
    with torch.autocast(logits.device.type, enabled=False):  # counts beyond 256 are no bfloat16 numbers
        x, y = (logits > 0).flatten(2).float(), targets.flatten(2).float()
        intersection = x @ y.transpose(1, 2)
        union = x.sum(2)[:, :, None] + y.sum(2)[:, None] - intersection
    return intersection / union.clamp(min=1)


def mask_quality(overlap: Tensor) -> Tensor:
    """What objectness should say of a mask of this IoU, 0..1: 2 IoU - 1/2, so 0.5 is one that just counts."""
    return (2 * overlap - 0.5).clamp(0, 1)


class Criterion:
    """Losses of one batch. The matcher runs per output for detections; track queries keep their given instance."""

    def __init__(self, config: LossConfig, model: AUSM) -> None:
        self.config = config
        self.model = model

    def __call__(
        self,
        outputs: list[Predictions],
        targets: Targets,
        class_ids: Tensor,
        head: str,
        exhaustive: bool,
        num_masks: float | None = None,
    ) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is L. class_ids (B, K) int64, -1 unknown; `head` "" = no class loss.

        `num_masks`: the common normaliser, the mean over processes of the number of targets; None = count them here.
        """
        flat = _Flat(targets, class_ids)
        n = (float(flat.count) if num_masks is None else num_masks) or 1.0
        way = self._way(outputs[0], flat)
        total: dict[str, Tensor] = {}
        for i, output in enumerate(outputs):
            scale = 1.0 if i == len(outputs) - 1 else self.config.deep
            for name, value in self._one(output, flat, head, exhaustive, way).items():
                total[name] = total.get(name, 0) + scale * value / n
        if outputs[0].seeds is not None:
            known = flat.visible & (flat.active | flat.det)
            loss = seed_loss(outputs[0].seeds.scores, flat.masks, flat.det, known, exhaustive)
            total["seed"] = self.config.w_seed * loss / n
        return total

    def _way(self, out: Predictions, flat: "_Flat") -> Tensor | None:
        """Cost of the matcher (frames, Q, K): a seed on the object is its query, or every query would learn to look
        everywhere. The seeds are those of all outputs of the batch."""
        if out.seeds is None:
            return None
        h, w = out.seeds.scores.shape[-2:]
        return self.config.w_way * way_to_seeds(out.seeds.centre, flat.masks, flat.det, (h, w))

    def _one(
        self, out: Predictions, flat: "_Flat", head: str, exhaustive: bool, way: Tensor | None
    ) -> dict[str, Tensor]:
        c, K = self.config, flat.active.shape[1]
        f_trk, k_trk = flat.active.nonzero(as_tuple=True)
        bce_trk, dice_trk = mask_losses(
            out.masks[f_trk, k_trk], flat.masks[f_trk, k_trk], flat.visible[f_trk, k_trk], c
        )
        visible_trk = flat.visible[f_trk, k_trk]
        obj_trk = F.binary_cross_entropy_with_logits(
            out.objectness[f_trk, k_trk].float(), visible_trk.float(), reduction="sum"
        )
        f, q, k = self._match(out, flat, K, way)
        bce_det, dice_det = mask_losses(out.masks[f, K + q], flat.masks[f, k], flat.visible[f, k], c)
        obj = out.objectness[:, K:].float()
        wanted = self._wanted(out.masks[:, K:], flat, (f, q, k))
        weight = torch.full_like(obj, c.no_object if exhaustive else 0.0)  # unlabelled objects are not background
        weight[f, q] = 1
        obj_det = F.binary_cross_entropy_with_logits(obj, wanted, weight, reduction="sum")
        losses = {
            "trk_mask": c.w_mask * bce_trk,
            "trk_dice": c.w_dice * dice_trk,
            "trk_obj": c.w_objectness * obj_trk,
            "det_mask": c.w_mask * bce_det,
            "det_dice": c.w_dice * dice_det,
            "det_obj": c.w_objectness * obj_det,
        }
        if head:
            losses["class"] = c.w_class * self._class_loss(out, flat, head, (f, q, k), (f_trk, k_trk), exhaustive)
        return losses

    def _wanted(self, masks: Tensor, flat: "_Flat", pairs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Objectness (frames, Q) that detections are taught. masks (frames, Q, h, w) logits; pairs of `match`."""
        f, q, k = pairs
        wanted = torch.zeros(masks.shape[:2], device=masks.device)
        if not self.config.quality or not flat.det.any():
            wanted[f, q] = 1.0
            return wanted
        coarse = flat.coarse(masks.shape[-2:])
        if self.config.quality_all:
            overlaps = mask_overlaps(masks, coarse).masked_fill(~flat.det[:, None], 0.0)
            wanted = mask_quality(overlaps.amax(2))
        wanted[f, q] = mask_quality(mask_overlaps(masks[f, q, None], coarse[f, k, None]))[:, 0, 0]
        return wanted

    def _match(self, out: Predictions, flat: "_Flat", K: int, way: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Costs on one random set of points shared by all masks."""
        P = min(self.config.points, out.masks.shape[-1] * out.masks.shape[-2])
        points = torch.rand(1, P, 2, device=out.masks.device)
        det = out.masks[:, K:].detach().float()
        frames = len(det)
        x = F.grid_sample(det, 2 * points[:, None].expand(frames, -1, -1, -1) - 1, align_corners=False)[:, :, 0]
        f, k = flat.det.nonzero(as_tuple=True)
        y = torch.zeros(frames, flat.det.shape[1], P, device=det.device)
        if len(f):
            y[f, k] = sample_points(flat.masks[f, k].float(), points.expand(len(f), -1, -1))
        c = self.config
        return match(x, out.objectness[:, K:].detach(), y, flat.det, (c.w_objectness, c.w_mask, c.w_dice), way)

    def _class_loss(
        self,
        out: Predictions,
        flat: "_Flat",
        head: str,
        det: tuple[Tensor, Tensor, Tensor],
        trk: tuple[Tensor, Tensor],
        exhaustive: bool,
    ) -> Tensor:
        """Cross-entropy on matched queries; "no object" for absent tracks, and for unmatched ones if exhaustive.

        det: (frame, query, target) of `match`; trk: (frame, target). Both index targets of known or unknown class.
        """
        f, q, k = det
        K = flat.active.shape[1]
        logits = self.model.pixel_decoder.classify(out.embeddings, head).float()
        none = logits.shape[-1] - 1
        target = torch.full(logits.shape[:2], -1, dtype=torch.long, device=logits.device)
        weight = torch.ones(logits.shape[:2], device=logits.device)
        if exhaustive:
            target[:, K:] = none
            weight[:, K:] = self.config.no_object
        target[f, K + q] = flat.class_ids[f, k]
        weight[f, K + q] = 1
        ft, kt = trk
        target[ft, kt] = torch.where(flat.visible[ft, kt], flat.class_ids[ft, kt], none)
        known = target >= 0
        loss = F.cross_entropy(logits[known], target[known], reduction="none")
        return (loss * weight[known]).sum()


class _Flat:
    """Targets with (B, T) flattened to one axis of frames."""

    def __init__(self, targets: Targets, class_ids: Tensor) -> None:
        T = targets.active.shape[1]
        self.active = targets.active.flatten(0, 1)
        self.det = targets.det.flatten(0, 1)
        self.masks = targets.masks.flatten(0, 1)
        self.visible = targets.visible.flatten(0, 1)
        self.class_ids = class_ids[:, None].expand(-1, T, -1).flatten(0, 1)
        self.count = self.active.sum() + self.det.sum()
        self._coarse: Tensor | None = None

    def coarse(self, grid: torch.Size) -> Tensor:
        """Targets (frames, K, h, w) bool on the grid of the masks, made once for all outputs: a cell is the object's
        where half of it is."""
        if self._coarse is None or self._coarse.shape[-2:] != grid:
            self._coarse = F.adaptive_avg_pool2d(self.masks.float(), (grid[0], grid[1])) >= 0.5
        return self._coarse
