"""Losses by hand-worked values, and who is pushed where."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.errors import InputError
from ausm.pixel_decoder import Predictions
from training.losses import (
    Criterion,
    LossConfig,
    _Flat,
    mask_losses,
    mask_overlaps,
    mask_quality,
    sample_points,
    uncertain_points,
)
from training.preprocess import Targets

CONFIG = LossConfig(points=256, deep=0.5)
D = 8


def test_sample_points_is_bilinear_at_pixel_centres() -> None:
    maps = torch.arange(12.0).view(1, 3, 4)
    at = torch.tensor([[0.5 / 4, 0.5 / 3], [2 / 4, 1.5 / 3], [3.5 / 4, 2.5 / 3], [0.0, 0.0], [1.0, 1.0]])
    assert torch.allclose(sample_points(maps, at[None]), torch.tensor([[0.0, 5.5, 11.0, 0.0, 11.0]]), atol=1e-5)


def test_points_are_taken_where_the_prediction_is_least_certain() -> None:
    torch.manual_seed(0)
    logits = torch.full((2, 16, 16), 8.0)
    logits[0, :, 8:] = 0.1  # uncertain on the right
    logits[1, :8] = -0.1  # and at the top
    targets = torch.ones(2, 16, 16, dtype=torch.bool)
    points = uncertain_points(logits, targets, CONFIG)
    assert points.shape == (2, 256, 2) and (points >= 0).all() and (points <= 1).all()
    share = [float((points[0, :, 0] > 0.45).float().mean()), float((points[1, :, 1] < 0.55).float().mean())]
    assert min(share) > 0.75 + 0.25 * 0.4  # 3/4 chosen there, half of the rest by chance
    uniform = uncertain_points(logits, targets, replace(CONFIG, importance=0.0))
    assert float((uniform[0, :, 0] > 0.5).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_points_may_be_taken_where_the_prediction_is_most_wrong() -> None:
    """The mask is sure of a neighbour at the bottom right, and uncertain at the top, where it is right."""
    torch.manual_seed(0)
    logits, targets = torch.full((1, 16, 16), 8.0), torch.ones(1, 16, 16, dtype=torch.bool)
    logits[0, :8] = 0.1
    targets[0, 12:, 12:] = False
    wrong = []
    for hard in (False, True):
        points = uncertain_points(logits, targets, replace(CONFIG, hard=hard))
        wrong.append(float((points[0] > 0.75).all(-1).float().mean()))
    assert wrong[0] < 0.06 and wrong[1] > 3 * 0.9 / 16  # all candidates there, three times as many as by chance


def test_mask_losses_by_hand() -> None:
    """Constant maps: the sampled points do not matter. Three masks: full target, empty target, absent object."""
    logits = torch.tensor([2.0, -1.0, 0.5])[:, None, None].expand(3, 8, 8)
    targets = torch.tensor([True, False, False])[:, None, None].expand(3, 16, 16)
    bce, dice = mask_losses(logits, targets, torch.tensor([True, True, False]), CONFIG)
    softplus = F.softplus(torch.tensor([-2.0, -1.0, 0.5]))
    assert bce == pytest.approx(float(softplus.sum()), rel=1e-5)
    p, P = torch.tensor([2.0, -1.0]).sigmoid(), 256
    expected = [1 - (2 * P * p[0] + 1) / (P * p[0] + P + 1), 1 - 1 / (P * p[1] + 1)]
    assert dice == pytest.approx(float(sum(expected)), rel=1e-5)  # A7: no dice for the absent one
    assert [float(v) for v in mask_losses(logits[:0], targets[:0], torch.zeros(0), CONFIG)] == [0, 0]


class Case:
    """One clip of two frames, two ids, three detection queries.

    Instance 0 is detected on frame 0 and tracked on frame 1; instance 1 is tracked on both and absent on frame 1.
    """

    K, Q = 2, 5

    def __init__(self) -> None:
        self.masks = torch.zeros(1, 2, 2, 16, 16, dtype=torch.bool)
        self.masks[0, :, 0, :8, :8] = True
        self.masks[0, 0, 1, 8:, 8:] = True
        active = torch.tensor([[[False, True], [True, True]]])
        det = torch.tensor([[[True, False], [False, False]]])
        visible = self.masks.flatten(3).any(-1)
        history = torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool)
        fixed = torch.zeros_like(active)
        self.targets = Targets(torch.tensor([[0, 1]]), history, active, det, self.masks, visible, fixed)
        torch.manual_seed(0)
        self.logits = torch.randn(2, self.Q, 4, 4).requires_grad_()
        self.objectness = torch.randn(2, self.Q).requires_grad_()
        self.embeddings = torch.randn(2, self.Q, D).requires_grad_()
        self.head = nn.Linear(D, 4)  # three classes, no object
        model = SimpleNamespace(pixel_decoder=SimpleNamespace(classify=lambda e, head: self.head(e)))
        self.criterion = Criterion(CONFIG, model)  # type: ignore[arg-type]

    def losses(self, exhaustive: bool = True, head: str = "", **changes: Tensor) -> dict[str, Tensor]:
        out = Predictions(self.logits, self.objectness, self.embeddings)._replace(**changes)
        torch.manual_seed(1)
        return self.criterion([out], self.targets, torch.tensor([[2, -1]]), head, exhaustive)

    def perfect(self, query: int = 3) -> Predictions:
        """The right answer, the detection by one of the queries 2, 3, 4."""
        small = F.avg_pool2d(self.masks[0].float(), 4) > 0.5  # (T, K, 4, 4)
        logits = torch.full((2, self.Q, 4, 4), -9.0)
        logits[0, 1][small[0, 1]] = 9
        logits[1, 0][small[1, 0]] = 9
        logits[0, query][small[0, 0]] = 9
        objectness = torch.full((2, self.Q), -9.0)
        objectness[0, 1] = objectness[1, 0] = objectness[0, query] = 9
        return Predictions(logits, objectness, self.embeddings)


def test_the_right_answer_costs_almost_nothing_whichever_query_detects() -> None:
    case = Case()
    random = float(sum(case.losses().values()).detach())
    for query in (2, 3, 4):
        right = case.perfect(query)
        loss = case.losses(masks=right.masks, objectness=right.objectness)
        assert float(loss["trk_obj"] + loss["det_obj"]) < 0.01
        assert float(sum(loss.values())) < 0.25 * random


def test_track_queries_keep_their_instance() -> None:
    """Swapping the answers of the two ids is punished; swapping those of two detection queries is not."""
    case, right = Case(), Case().perfect()
    base = {k: float(v) for k, v in case.losses(masks=right.masks, objectness=right.objectness).items()}
    swapped = right.masks[:, [1, 0, 2, 3, 4]], right.objectness[:, [1, 0, 2, 3, 4]]
    ids = case.losses(masks=swapped[0], objectness=swapped[1])
    assert float(ids["trk_mask"]) > base["trk_mask"] + 5 and float(ids["trk_obj"]) > base["trk_obj"] + 5
    order = [0, 1, 4, 2, 3]
    found = case.losses(masks=right.masks[:, order], objectness=right.objectness[:, order])
    assert float(found["det_mask"]) < base["det_mask"] + 0.3 and float(found["det_obj"]) < 0.01


def gradients(case: Case, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
    loss = sum(case.losses(**kwargs).values())  # type: ignore[arg-type]
    grads = torch.autograd.grad(loss, (case.logits, case.objectness, case.embeddings), allow_unused=True)
    return tuple(torch.zeros(()) if g is None else g for g in grads)  # type: ignore[return-value]


def test_who_is_pushed_where() -> None:
    case = Case()
    masks, objectness, _ = gradients(case)
    assert not masks[0, 0].any() and not objectness[0, 0].any()  # not in A on frame 0: no target, no loss
    assert (masks[1, 1] >= 0).all() and masks[1, 1].any() and objectness[1, 1] > 0  # absent: towards nothing (A7)
    assert objectness[0, 1] < 0 and objectness[1, 0] < 0  # visible tracks: towards an object
    matched = masks[:, 2:].flatten(2).any(-1)
    assert matched[0].sum() == 1 and matched[1].sum() == 0  # one detection target in all
    assert objectness[0, 2:][matched[0]] < 0
    assert (objectness[:, 2:][~matched] > 0).all()  # exhaustive: every other query says "nothing here"
    masks, objectness, _ = gradients(case, exhaustive=False)
    assert objectness[:, 2:].count_nonzero() == 1  # unlabelled objects are not background
    assert objectness[0, 1] < 0


def test_class_loss() -> None:
    case = Case()
    for exhaustive in (True, False):
        embeddings = gradients(case, head="coco", exhaustive=exhaustive)[2]
        pushed = embeddings.any(-1)
        assert pushed[1, 0] and pushed[1, 1]  # a class; "no object" while absent
        assert not pushed[0, 0] and not pushed[0, 1]  # not in A; class unknown
        assert pushed[:, 2:].sum() == (6 if exhaustive else 1)
    assert "class" not in case.losses(head="")
    # value: the cross-entropy of the three terms of frame 1 and the matched detection
    case.head.weight.data.zero_()
    case.head.bias.data.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    log_p = case.head.bias.log_softmax(0)
    n = case.targets.active.sum() + case.targets.det.sum()
    value = case.losses(head="coco", exhaustive=False)["class"]
    assert float(value) == pytest.approx(float(2 * (-2 * log_p[2] - log_p[3]) / n), rel=1e-5)


def test_mask_quality_by_hand() -> None:
    """IoU 1, 1/2, 1/4, nothing in common, and nothing to be found at all."""
    targets = torch.zeros(5, 1, 4, 4, dtype=torch.bool)
    targets[:4, :, :2, :2] = True
    logits = torch.full((5, 4, 4), -3.0)
    logits[0, :2, :2] = 3
    logits[1, :2, :4] = 3
    logits[2, 0, 0] = 3
    logits[3, 3, 3] = 3
    logits[4, 0, 0] = 3
    overlaps = mask_overlaps(logits[:, None], targets)
    assert overlaps.flatten().tolist() == [1.0, 0.5, 0.25, 0.0, 0.0]
    assert mask_quality(overlaps).flatten().tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_overlaps_of_large_masks_are_exact_in_bfloat16() -> None:
    """8 bits of a bfloat16 count to 256."""
    targets = torch.ones(1, 1, 40, 41, dtype=torch.bool)
    logits = torch.ones(1, 2, 40, 41)
    logits[0, 1, 0, :3] = -1
    with torch.autocast("cpu", torch.bfloat16):
        overlaps = mask_overlaps(logits, targets)
    assert overlaps[0, :, 0].tolist() == pytest.approx([1.0, 1637 / 1640], rel=1e-6)


def test_objectness_may_be_taught_how_good_a_mask_is() -> None:
    """The same confident answer is pushed up where its mask is right and down where the mask is wrong."""
    case = Case()
    case.criterion = Criterion(replace(CONFIG, quality=True), case.criterion.model)
    right = case.perfect()
    wrong = right.masks.clone()
    wrong[0, 3] = -wrong[0, 3]  # everything but the object
    pushed = []
    for masks in (right.masks, wrong):
        objectness = torch.zeros(2, Case.Q).index_put((torch.tensor([0]), torch.tensor([3])), torch.tensor(2.0))
        loss = case.losses(masks=masks, objectness=objectness.requires_grad_())["det_obj"]
        pushed.append(float(torch.autograd.grad(loss, objectness)[0][0, 3]))
    assert pushed[0] < 0 < pushed[1]


def test_objectness_of_duplicates() -> None:
    """Of two queries with the right mask one is matched; the other is taught 0, or with quality_all the same."""
    case = Case()
    right = case.perfect()
    masks = right.masks.clone()
    masks[0, 2] = masks[0, 3]
    masks[0, 4] = masks[0, 1]  # on an object that is tracked already: nothing to detect
    for everyone, exhaustive, second in ((False, True, 1), (True, True, -1), (True, False, 0)):
        case.criterion = Criterion(replace(CONFIG, quality=True, quality_all=everyone), case.criterion.model)
        objectness = torch.full((2, Case.Q), 0.5).requires_grad_()
        loss = case.losses(exhaustive, masks=masks, objectness=objectness)["det_obj"]
        pushed = torch.autograd.grad(loss, objectness)[0][0, 2:].sign().tolist()
        assert sorted(pushed[:2]) == sorted([-1, second]) and pushed[2] == int(exhaustive)
    with pytest.raises(InputError, match="quality_all"):
        LossConfig(quality_all=True)


def test_targets_on_the_grid_of_the_masks() -> None:
    """A cell is the object's where half of it is."""
    case = Case()
    case.masks[0, 0, 0] = False
    case.masks[0, 0, 0, 0, :2] = True  # of cell (0, 0), 16 pixels, an eighth
    case.masks[0, 0, 0, 4:6, :4] = True  # half of cell (1, 0)
    flat = _Flat(case.targets, torch.tensor([[2, -1]]))
    coarse = flat.coarse(torch.Size((4, 4)))
    assert coarse[0, 0].nonzero().tolist() == [[1, 0]]
    assert flat.coarse(torch.Size((4, 4))) is coarse
    assert flat.coarse(torch.Size((8, 8))).shape[-2:] == (8, 8)


def test_deep_supervision_and_the_common_normaliser() -> None:
    case = Case()
    out = Predictions(case.logits, case.objectness, case.embeddings)
    arguments = (case.targets, torch.tensor([[2, -1]]), "", True)

    def total(outputs: list[Predictions], **kwargs: float) -> float:
        torch.manual_seed(1)
        return float(sum(case.criterion(outputs, *arguments, **kwargs).values()))

    one = total([out])
    right = case.perfect()
    last = total([right])
    assert total([out, right]) == pytest.approx(0.5 * one + last, rel=0.05)  # points are drawn anew
    assert total([out], num_masks=8.0) == pytest.approx(one * 4 / 8)  # 3 track targets and 1 detection
    assert total([out], num_masks=0.0) == pytest.approx(one * 4)  # never below one
    nothing = case.targets._replace(active=case.targets.active & False, det=case.targets.det & False)
    torch.manual_seed(1)
    empty = case.criterion([out], nothing, torch.tensor([[2, -1]]), "", False)
    assert float(sum(empty.values())) == 0
