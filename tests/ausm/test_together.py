"""Several streams in one pass: as one after the other, to rounding."""

import numpy as np
import pytest
import torch
from small_models import build, small_nano

import ausm
from ausm import inference
from ausm.config import StreamConfig
from ausm.cuda_graph import GraphedStep
from ausm.errors import AusmError, SizeError
from ausm.model import AUSM
from ausm.padding import PaddedStep
from ausm.together import gains_together, step_together

H, W = 60, 90
CONFIG = StreamConfig(short_side=H, score_threshold=0.05, dedupe_iou=1.0, min_area=1)


@pytest.fixture(scope="module")
def model() -> AUSM:
    return build(small_nano())


class Counted:
    """Sizes of the batches that the backbone is given."""

    def __init__(self, model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        encode = model.encode

        def counted(images: torch.Tensor) -> object:
            self.sizes.append(len(images))
            return encode(images)

        monkeypatch.setattr(model, "encode", counted)


def frames(n: int, seed: int, size: tuple[int, int] = (H, W)) -> list[np.ndarray]:
    base = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return [np.roll(base, (i, 4 * i), (0, 1)) for i in range(n)]


def square(y: int, x: int) -> np.ndarray:
    mask = np.zeros((1, H, W), bool)
    mask[0, y : y + 20, x : x + 24] = True
    return mask


def test_as_one_after_the_other(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different numbers of objects, a prompt on the way, a stream of another size, an early absorb."""
    counted = Counted(model, monkeypatch)
    sizes = [(H, W), (H, W), (H, 120)]
    alone = [ausm.Stream(model, config=CONFIG, seed=k) for k in range(3)]
    joint = [ausm.Stream(model, config=CONFIG, seed=k) for k in range(3)]
    clips = [frames(5, k, size) for k, size in enumerate(sizes)]
    for streams in (alone, joint):
        streams[0].prompt(square(4, 8))
    seen = 0
    for i in range(5):
        if i == 2:
            for streams in (alone, joint):
                streams[1].absorb()
                streams[1].prompt(square(30, 50), names=["cup"])
        expected = [stream.step(clip[i]) for stream, clip in zip(alone, clips, strict=True)]
        counted.sizes.clear()
        outputs = step_together(joint, [clip[i] for clip in clips])
        assert sorted(counted.sizes) == [1, 2]
        for stream, out, wanted, other in zip(joint, outputs, expected, alone, strict=True):
            assert out is stream.current and out[:3] == wanted[:3]
            assert [t.track_id for t in out.tracks] == [t.track_id for t in wanted.tracks]
            for a, b in zip(out.tracks, wanted.tracks, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-4) and (a.name, a.state) == (b.name, b.state)
                assert np.count_nonzero(a.mask != b.mask) <= 2
                seen += bool(b.mask.any())
            torch.testing.assert_close(stream._state.ssm, other._state.ssm, rtol=1e-3, atol=1e-4)
    assert seen > 15 and joint[1].current.tracks != joint[0].current.tracks


@pytest.mark.skipif(not inference._has_operators("bf16"), reason="this CPU does not compute in bfloat16")
def test_packed_models_agree_within_rounding(model: AUSM) -> None:
    packed = inference.pack(model, "bf16")
    step, random = PaddedStep(packed), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=random)
    ids = [torch.tensor([3]), torch.tensor([1, 0, 5])]
    states = [model.new_state(64, 96) for _ in ids]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for state, own in zip(states, ids, strict=True):
            step.absorb(state, own, torch.rand(len(own), *state.size, generator=random) > 0.7)
        before = [state.clone() for state in states]
        outs = step.predict_together(states, images, ids)
        for b, (out, state, own) in enumerate(zip(outs, before, ids, strict=True)):
            expected = step.predict(state, images[b], own)
            for x, y in ((out.masks, expected.masks), (out.objectness, expected.objectness), (states[b].X, state.X)):
                assert x.shape == y.shape and float((x - y).norm() / y.norm()) < 0.02
            assert not states[b].absorbed


def test_streams_that_share_nothing_step_for_themselves(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with graphs of its own state, one of another model: as each alone, and a batch of none."""
    counted = Counted(model, monkeypatch)
    images = [frames(1, k)[0] for k in range(3)]
    models = (model, model, build(small_nano(), seed=1))
    alone, streams = ([ausm.Stream(m, config=CONFIG) for m in models] for _ in range(2))
    for stream in (*alone, *streams):
        stream.step(images[0])
        stream.prompt(square(10, 20))
    expected = [stream.step(image) for stream, image in zip(alone, images, strict=True)]
    streams[1]._halves = GraphedStep(model)
    assert gains_together(streams) and not gains_together(streams[:2]) and not gains_together(streams[:1])
    counted.sizes.clear()
    for out, wanted in zip(step_together(streams, images), expected, strict=True):
        assert len(out.tracks) == len(wanted.tracks) > 0
        assert all(np.count_nonzero(a.mask != b.mask) <= 2 for a, b in zip(out.tracks, wanted.tracks, strict=True))
    assert counted.sizes == [1, 1]  # the third has a backbone of its own


def test_an_image_of_the_wrong_size_changes_no_stream(model: AUSM) -> None:
    streams = [ausm.Stream(model, config=CONFIG) for _ in range(2)]
    step_together(streams, [frames(1, 0)[0]] * 2)
    before = [stream.current for stream in streams]
    with pytest.raises(SizeError, match="60x120"):
        step_together(streams, [frames(1, 0)[0], frames(1, 0, (H, 120))[0]])
    assert [stream.current for stream in streams] == before
    with pytest.raises(AusmError, match="2 images for 2 streams"):
        step_together([streams[0]] * 2, [frames(1, 0)[0]] * 2)
    assert step_together([], []) == []
