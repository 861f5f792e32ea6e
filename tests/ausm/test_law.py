"""THE law: the parallel form (Alg. 2) and the recurrent form (Alg. 1) are one model.

Fed with the same histories they agree on every frame and every output; nothing flows back from the future; instances
have no order; ID vectors are interchangeable labels.
"""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SMALL, build
from torch import Tensor

import ausm
from ausm.config import StreamConfig
from ausm.model import AUSM
from ausm.pixel_decoder import Predictions

TOLERANCE = 1e-5  # float32; of outputs whose size is of the order of one (relative to the largest where that is more)
EXAMPLES = {"nano": 12, "swin_t": 6}


def examples(model: AUSM) -> settings:
    return settings(max_examples=EXAMPLES[model.config.name], deadline=None, derandomize=True)


class Clip(NamedTuple):
    """A clip with a history for every instance."""

    images: Tensor  # (B, T, H, W, 3) uint8
    ids: Tensor  # (B, K)
    M: Tensor  # (B, T, K, h, w) bool: what frame t reads
    active: Tensor  # (B, T, K) bool: whose id is in A_{t-1}


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """Random sizes, births, prompts before the first frame, absences and retirements."""
    B, T, K = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(0, 4))
    H, W = draw(st.integers(20, 70)), draw(st.integers(20, 100))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    h, w = -(-H // 32) * 4, -(-W // 32) * 4
    birth = torch.randint(0, T + 1, (B, 1, K), generator=g)  # 0: prompted, so already in A_0; T: never tracked
    death = birth + torch.randint(1, 2 * T + 1, (B, 1, K), generator=g)
    t = torch.arange(T)[None, :, None]
    active = (t >= birth) & (t < death)
    blobs = torch.nn.functional.interpolate(
        torch.randn(B * T * K, 1, 3, 3, generator=g), size=(h, w), mode="bilinear"
    ).view(B, T, K, h, w)  # overlapping blobs, now and then empty or everywhere
    absent = torch.rand(B, T, K, generator=g) < 0.25
    M = (blobs > 0.3) & ~absent[..., None, None]  # rows of inactive ids hold anything: they must not be read
    ids = torch.rand(B, 12, generator=g).argsort(1)[:, :K]
    return Clip(torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=g), ids, M, active)


@pytest.fixture(scope="module", params=list(SMALL))
def model(request: pytest.FixtureRequest) -> AUSM:
    return build(SMALL[request.param]())


@torch.inference_mode()
def parallel(model: AUSM, clip: Clip) -> Predictions:
    """(B * T) frames at once."""
    return model(*clip)[-1]


@torch.inference_mode()
def recurrent(model: AUSM, clip: Clip, b: int) -> list[Predictions]:
    """Clip b frame by frame. As in Alg. 1 only ids in use are given, in the order of the clip."""
    state = model.new_state(*clip.images.shape[2:4])
    outputs = []
    for t, image in enumerate(clip.images[b]):
        used = clip.active[b, t]
        model.absorb(state, clip.ids[b, used], clip.M[b, t, used])
        outputs.append(model.predict(state, image, clip.ids[b, used]))
    return outputs


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above one."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) if a.numel() else 0.0


def assert_close(a: Predictions, b: Predictions) -> None:
    for name, x, y in zip(Predictions._fields[:3], a[:3], b[:3], strict=True):  # seeds are for the loss only
        assert difference(x, y) <= TOLERANCE, name


def of_frame(out: Predictions, frame: int, rows: Tensor) -> Predictions:
    """Some queries of one frame, as if it were alone."""
    return Predictions(*(v[frame, rows][None] for v in out[:3]))


def test_both_forms_are_one_model(model: AUSM) -> None:
    @examples(model)
    @given(clips())
    def law(clip: Clip) -> None:
        B, T, K = clip.active.shape
        whole = parallel(model, clip)
        assert whole.masks.shape[:2] == (B * T, K + model.config.N_det)
        detections = torch.arange(K, K + model.config.N_det)
        for b in range(B):
            for t, one in enumerate(recurrent(model, clip, b)):
                rows = torch.cat((clip.active[b, t].nonzero().flatten(), detections))
                assert_close(one, of_frame(whole, b * T + t, rows))

    law()


def test_every_layer_of_the_parallel_form_ends_in_the_same_output(model: AUSM) -> None:
    torch.manual_seed(0)
    clip = Clip(
        torch.randint(0, 256, (1, 2, 32, 64, 3), dtype=torch.uint8),
        torch.tensor([[3, 5]]),
        torch.rand(1, 2, 2, 4, 8) > 0.5,
        torch.ones(1, 2, 2, dtype=torch.bool),
    )
    with torch.inference_mode():
        outputs = model(*clip, every_layer=True)
    assert len(outputs) == model.config.pixel_decoder.layers + 1
    assert_close(outputs[-1], parallel(model, clip))
    assert difference(outputs[0].masks, outputs[-1].masks) > TOLERANCE


def test_nothing_flows_back_from_the_future(model: AUSM) -> None:
    @examples(model)
    @given(clips(), st.data())
    def law(clip: Clip, data: st.DataObject) -> None:
        B, T, K = clip.active.shape
        t = data.draw(st.integers(0, T - 1))
        images, M, active = clip.images.clone(), clip.M.clone(), clip.active.clone()
        if data.draw(st.booleans()) or K == 0:
            images[:, t:] = 255 - images[:, t:]
        else:
            M[:, t:] = ~M[:, t:]
            active[:, t:] = ~active[:, t:]
        before = parallel(model, clip)
        after = parallel(model, Clip(images, clip.ids, M, active))
        for x, y in zip(before[:3], after[:3], strict=True):
            x, y = x.unflatten(0, (B, T)), y.unflatten(0, (B, T))
            assert difference(x[:, :t], y[:, :t]) <= TOLERANCE
        x, y = before.masks.unflatten(0, (B, T)), after.masks.unflatten(0, (B, T))
        assert difference(x[:, t], y[:, t]) > TOLERANCE  # the change was one that can be seen

    law()


def test_the_past_is_remembered(model: AUSM) -> None:
    """The first frame and its masks still show on the last: without it the law would hold for a model of one frame."""
    torch.manual_seed(0)
    T = 4
    images = torch.randint(0, 256, (1, T, 32, 32, 3), dtype=torch.uint8)
    M = torch.zeros(1, T, 1, 4, 4, dtype=torch.bool)
    M[:, 0, :, :2] = True
    clip = Clip(images, torch.tensor([[2]]), M, torch.ones(1, T, 1, dtype=torch.bool))
    base = parallel(model, clip).masks[-1]
    unmarked = parallel(model, clip._replace(M=torch.zeros_like(M))).masks[-1]
    images = images.clone()
    images[:, 0] = 255 - images[:, 0]
    other_image = parallel(model, clip._replace(images=images)).masks[-1]
    assert difference(unmarked, base) > TOLERANCE and difference(other_image, base) > TOLERANCE


def test_instances_have_no_order(model: AUSM) -> None:
    @examples(model)
    @given(clips(), st.randoms(use_true_random=False))
    def law(clip: Clip, random) -> None:
        K = clip.ids.shape[1]
        order = torch.tensor(random.sample(range(K), K), dtype=torch.long)
        shuffled = parallel(model, Clip(clip.images, clip.ids[:, order], clip.M[:, :, order], clip.active[:, :, order]))
        rows = torch.cat((order, torch.arange(K, K + model.config.N_det)))
        base = parallel(model, clip)
        used = clip.active.flatten(0, 1)
        for frame in range(len(base.masks)):
            seen = torch.cat((used[frame, order], torch.ones(model.config.N_det, dtype=torch.bool)))
            assert_close(of_frame(shuffled, frame, seen.nonzero().flatten()), of_frame(base, frame, rows[seen]))

    law()


def test_clips_of_a_batch_do_not_meet(model: AUSM) -> None:
    @examples(model)
    @given(clips().filter(lambda c: len(c.ids) > 1))
    def law(clip: Clip) -> None:
        T = clip.active.shape[1]
        whole, alone = parallel(model, clip), parallel(model, Clip(*(v[:1] for v in clip)))
        rows = torch.cat((torch.arange(clip.ids.shape[1]), torch.arange(-model.config.N_det, 0)))
        for t in range(T):
            assert_close(of_frame(alone, t, rows), of_frame(whole, t, rows))

    law()


def permuted(model: AUSM, order: Tensor) -> AUSM:
    """The same model with the rows of B in another order: row j holds the former row order[j]."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.B.copy_(model.B[order])
    return other


def test_permuting_id_vectors_permutes_only_ids(model: AUSM) -> None:
    order = torch.randperm(model.config.N_id, generator=torch.Generator().manual_seed(1))
    other, where = permuted(model, order), order.argsort()

    @examples(model)
    @given(clips())
    def law(clip: Clip) -> None:
        renamed = parallel(other, clip._replace(ids=where[clip.ids]))
        for x, y in zip(parallel(model, clip)[:3], renamed[:3], strict=True):
            assert torch.equal(x, y)

    law()


SMALL_STREAM = StreamConfig(short_side=64, score_threshold=0.05, min_area=1, dedupe_iou=1.0, max_missed=2)


def frames(n: int, seed: int = 0, size: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return [np.roll(base, (2 * i, 5 * i), (0, 1)) for i in range(n)]


def test_stream_with_other_id_vectors_gives_the_same_tracks(model: AUSM) -> None:
    order = torch.randperm(model.config.N_id, generator=torch.Generator().manual_seed(2))
    a, b = (ausm.Stream(m, config=SMALL_STREAM) for m in (model, permuted(model, order)))
    where = order.argsort().tolist()
    b._roster.slots._free = type(b._roster.slots._free)(where[s] for s in a._roster.slots._free)
    born = 0
    for image in frames(5):
        x, y = a.step(image), b.step(image)
        assert [t._replace(mask=0) for t in x.tracks] == [t._replace(mask=0) for t in y.tracks]
        assert all(np.array_equal(s.mask, t.mask) for s, t in zip(x.tracks, y.tracks, strict=True))
        born = max(born, len(x.tracks))
    assert born > 1


def test_a_stream_is_the_parallel_form_on_its_own_history(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Births, a prompt before the first frame, one in the middle, a removal: what the stream did, one pass repeats."""
    stream = ausm.Stream(model, config=SMALL_STREAM)
    history: list[tuple[list[int], Tensor]] = []
    outputs: list[Predictions] = []
    predict, absorb = model.predict, model.absorb

    def absorbing(state, ids, M) -> None:
        history.append((ids.tolist(), M.clone()))
        absorb(state, ids, M)

    def predicting(*args) -> Predictions:
        outputs.append(predict(*args))
        return outputs[-1]

    monkeypatch.setattr(model, "absorb", absorbing)
    monkeypatch.setattr(model, "predict", predicting)
    images = frames(6)
    mask = np.zeros((2, 64, 96), bool)
    mask[0, 8:40, 16:48] = mask[1, 30:60, 50:90] = True
    stream.prompt(mask[:1])
    for t, image in enumerate(images):
        stream.step(image)
        if t == 2:
            stream.prompt(mask[1:])
            stream.remove([1])
    monkeypatch.undo()

    assert len(history) == len(images) and history[0][0] != history[3][0]
    slots = sorted({slot for ids, _ in history for slot in ids})
    active = torch.tensor([[slot in ids for slot in slots] for ids, _ in history])
    M = torch.zeros(len(images), len(slots), *history[0][1].shape[1:], dtype=torch.bool)
    for t, (ids, masks) in enumerate(history):
        M[t, [slots.index(s) for s in ids]] = masks
    clip = Clip(torch.from_numpy(np.stack(images))[None], torch.tensor([slots]), M[None], active[None])
    whole = parallel(model, clip)
    for t, (ids, _) in enumerate(history):
        K = len(slots)
        rows = torch.tensor([slots.index(s) for s in ids] + list(range(K, K + model.config.N_det)))
        assert_close(outputs[t], of_frame(whole, t, rows))
