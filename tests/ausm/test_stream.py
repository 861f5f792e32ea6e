"""`Stream` on a real model of random weights: prompts, snapshots, determinism, refusals, sizes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_models import build, small_nano

import ausm
from ausm.assemble import Geometry, resize_prompts
from ausm.checks import check_masks
from ausm.config import StreamConfig
from ausm.errors import AusmError, EmptyMaskError, ImageError, SizeError, UnknownIdError
from ausm.model import AUSM
from ausm.tracks import Source, StepOutput, TrackState

H, W = 60, 90  # not multiples of 32
CONFIG = StreamConfig(short_side=H, score_threshold=0.05, dedupe_iou=1.0, min_area=1, max_missed=3)


@pytest.fixture(scope="module")
def model() -> AUSM:
    return build(small_nano())


def images(n: int, seed: int = 0) -> list[np.ndarray]:
    base = np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
    return [np.roll(base, (i, 4 * i), (0, 1)) for i in range(n)]


def squares(*corners: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(corners), H, W), bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + 20, x : x + 24] = True
    return masks


def new_stream(model: AUSM, **changes: object) -> ausm.Stream:
    return ausm.Stream(model, config=dataclasses.replace(CONFIG, **changes))


def assert_same(a: StepOutput, b: StepOutput) -> None:
    assert a[:3] == b[:3] and len(a.tracks) == len(b.tracks)
    for x, y in zip(a.tracks, b.tracks, strict=True):
        assert x._replace(mask=0) == y._replace(mask=0) and np.array_equal(x.mask, y.mask)


def test_outputs_are_as_promised(model: AUSM) -> None:
    stream = new_stream(model)
    sizes = set()
    for i, image in enumerate(images(6)):
        out = stream.step(image)
        assert out is stream.current and (out.frame_index, out.height, out.width) == (i, H, W)
        assert [t.score for t in out.tracks if t.state != TrackState.REMOVED] == sorted(
            (t.score for t in out.tracks if t.state != TrackState.REMOVED), reverse=True
        )
        covered = np.zeros((H, W), int)
        for track in out.tracks:
            assert track.mask.shape == (H, W) and track.mask.dtype == bool and track.track_id >= 1
            assert 0 <= track.score <= 1 and track.age == i - track.first_frame + 1
            assert track.mask.any() == (track.state in (TrackState.TRACKED, TrackState.TENTATIVE))
            covered += track.mask
        assert covered.max() <= 1  # one object a pixel
        sizes.add(stream.state_bytes)
    assert len(sizes) == 1 and stream.in_use == len(stream._roster) > 0


def test_prompt_before_the_first_frame(model: AUSM) -> None:
    stream = new_stream(model, discover=False)
    masks = squares((4, 8), (30, 50))
    assert stream.prompt(masks[:1], names=["cup"]) == [1] and stream.prompt(masks[1:]) == [2]
    assert stream.current is None and stream.in_use == 2
    out = stream.step(images(1)[0])
    assert {t.track_id: t.name for t in out.tracks} == {1: "cup", 2: ""}
    for track in out.tracks:  # A2: the prompt is the mask of its frame
        assert np.array_equal(track.mask, masks[track.track_id - 1])
        assert (track.score, track.source, track.state, track.first_frame) == (1, Source.PROMPT, TrackState.TRACKED, 0)
    marks = resize_prompts(masks, Geometry.of(H, W, H), stream._state.size)
    assert torch.equal(stream._M, marks) and marks.any((1, 2)).all()


def test_the_first_prompt_is_marked_on_the_start_token(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    absorb = model.absorb
    monkeypatch.setattr(model, "absorb", lambda s, ids, M: (seen.append((s.X.clone(), M.clone())), absorb(s, ids, M)))
    stream = new_stream(model, discover=False)
    stream.prompt(squares((4, 8)))
    stream.step(images(1)[0])
    X, M = seen[0]
    assert torch.equal(X, model.X_0.expand_as(X)) and torch.equal(M, stream._M)


def test_prompt_in_the_middle_overwrites_the_last_masks(model: AUSM) -> None:
    stream = new_stream(model)
    for image in images(3):
        stream.step(image)
    before = stream.current
    masks = squares((0, 0), (30, 60))
    ids = stream.prompt(masks, names=["left", "right"])
    assert ids == [stream.ids_issued - 1, stream.ids_issued] and stream.current is not before
    tracks = {t.track_id: t for t in stream.current.tracks}
    for i, mask in zip(ids, masks, strict=True):
        assert np.array_equal(tracks[i].mask, mask) and tracks[i].first_frame == 2
    others = [t for i, t in tracks.items() if i not in ids and t.state != TrackState.REMOVED]
    assert others and not any((t.mask & masks.any(0)).any() for t in others)  # they lose the pixels
    rows = [r.track_id for r in stream._roster.records]
    for i, marks in zip(ids, resize_prompts(masks, stream._geometry, stream._state.size), strict=True):
        assert torch.equal(stream._M[rows.index(i)], marks)
        assert not (stream._M[[rows.index(o.track_id) for o in others]] & marks).any()
    assert set(ids) <= {t.track_id for t in stream.step(images(4)[3]).tracks}


def test_a_prompt_changes_what_comes_next(model: AUSM) -> None:
    a, b = new_stream(model, discover=False), new_stream(model, discover=False)
    for stream, corner in ((a, (4, 8)), (b, (30, 60))):
        stream.step(images(1)[0])
        stream.prompt(squares(corner))
    assert not np.array_equal(a.step(images(2)[1]).tracks[0].mask, b.step(images(2)[1]).tracks[0].mask)


@pytest.mark.parametrize("when", ["prompt", "reprompt", "remove", "nothing"])
def test_absorbing_early_changes_nothing(model: AUSM, when: str) -> None:
    early, lazy = new_stream(model), new_stream(model)
    for i, image in enumerate(images(6)):
        assert_same(early.step(image), lazy.step(image))
        early.absorb()
        if i == 1:
            snapshot = early.state_dict()
        for stream in (early, lazy):
            if i == 2 and when == "prompt":
                stream.prompt(squares((4, 8)))
            elif i == 2 and when == "reprompt":
                stream.prompt(squares((4, 8)), track_ids=[stream.current.tracks[0].track_id])
            elif i == 2 and when == "remove":
                stream.remove([stream.current.tracks[0].track_id])
        early.absorb()
    early.load_state_dict(snapshot)  # taken between an absorb and the next step
    lazy.load_state_dict(snapshot)
    lazy.prompt(squares((0, 0)))
    early.prompt(squares((0, 0)))
    assert_same(early.step(images(3)[2]), lazy.step(images(3)[2]))


def test_absorbing_early_keeps_one_copy(model: AUSM) -> None:
    stream = new_stream(model)
    stream.step(images(1)[0])
    stream.absorb()
    copy = stream._saved
    for image in images(3):
        stream.step(image)
        stream.absorb()
    assert stream._saved is copy


def test_same_seed_same_frames_bit_equal(model: AUSM) -> None:
    a, b, other = (ausm.Stream(model, seed=seed, config=CONFIG) for seed in (3, 3, 4))
    differs = False
    for image in images(5):
        x, y, z = a.step(image), b.step(image), other.step(image)
        assert_same(x, y)
        differs |= any(not np.array_equal(s.mask, t.mask) for s, t in zip(x.tracks, z.tracks, strict=False))
    assert torch.equal(a._state.ssm, b._state.ssm) and differs
    first = new_stream(model)
    outputs = [first.step(image) for image in images(3)]
    first.reset()
    for image, out in zip(images(3), outputs, strict=True):
        assert_same(first.step(image), out)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.booleans(), st.booleans())
@example(0, True, False)
@example(2, True, True)
def test_snapshot_restores_bit_exactly(frames: int, prompted: bool, early: bool) -> None:
    model = test_snapshot_restores_bit_exactly.model
    a, b = new_stream(model), new_stream(model)
    if prompted:
        a.prompt(squares((4, 8)))
    for image in images(frames):
        a.step(image)
    if early:
        a.absorb()
    snapshot = a.state_dict()
    later = images(frames + 3)[frames:]
    expected = [a.step(image) for image in later]  # running on must not reach into the snapshot
    b.step(images(1, seed=9)[0])
    for _ in range(2):  # nor may running on from it
        b.load_state_dict(snapshot)
        assert b.frame_index == frames - 1
        for image, out in zip(later, expected, strict=True):
            assert_same(b.step(image), out)
    assert torch.equal(a._state.ssm, b._state.ssm) and a.ids_issued == b.ids_issued


test_snapshot_restores_bit_exactly.model = build(small_nano())  # type: ignore[attr-defined]


@pytest.mark.parametrize("started", [False, True])
def test_refusals_change_nothing(model: AUSM, started: bool) -> None:
    stream, twin = new_stream(model), new_stream(model)
    for s in (stream, twin):
        if started:
            s.step(images(1)[0])
        s.prompt(squares((4, 8)))
    wrong_size = np.zeros((1, H + 1, W), bool)
    wrong_size[0, :9] = True
    soft, with_nan = np.full((1, H, W), 0.1), squares((0, 0)).astype(np.float32)
    with_nan[0, 0, 0] = np.nan
    refused = [
        (SizeError, f"mask {H + 1}x{W}, .* {H}x{W}", lambda: stream.prompt(wrong_size)),
        (SizeError, r"masks are \(n, H, W\) .*, got \(60, 90\)", lambda: stream.prompt(wrong_size[0, :H])),
        (SizeError, "got list", lambda: stream.prompt([[True]])),
        (SizeError, "2 masks, 1 names, 0 track ids", lambda: stream.prompt(squares((0, 0), (9, 9)), names=["a"])),
        (SizeError, "1 masks, 1 names, 2 track ids", lambda: stream.prompt(squares((0, 0)), track_ids=[1, 2])),
        (EmptyMaskError, r"masks \[1\] of 2", lambda: stream.prompt(squares((0, 0), (9, 9)) & [[[True]], [[False]]])),
        (AusmError, "masks of float64: 5400 of 5400 values .* 0.1 to 0.1", lambda: stream.prompt(soft)),
        (AusmError, "masks of float32: 1 of 5400 values .* nan to nan", lambda: stream.prompt(with_nan)),
        (AusmError, "masks are bool, .*, got <U5", lambda: stream.prompt(squares((0, 0)).astype(str))),
        (UnknownIdError, "no live object has id 999", lambda: stream.prompt(squares((0, 0)), track_ids=[999])),
        (AusmError, "one object twice", lambda: stream.prompt(squares((0, 0), (9, 9)), track_ids=[1, 1])),
        (UnknownIdError, "no live object has id 999", lambda: stream.remove([1, 999])),
        (SizeError, f"image {H}x{W - 1}, .* {H}x{W}", lambda: stream.step(np.zeros((H, W - 1, 3), np.uint8))),
        (ImageError, "float64", lambda: stream.step(np.zeros((H, W, 3)))),
        (ImageError, r"got \(60, 90\) uint8", lambda: stream.step(np.zeros((H, W), np.uint8))),
        (ImageError, "got NoneType", lambda: stream.step(None)),
        (AusmError, "cannot change", lambda: stream.configure(short_side=64)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    assert stream.in_use == twin.in_use and stream.ids_issued == twin.ids_issued
    for image in images(3):
        assert_same(stream.step(image), twin.step(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64])
def test_masks_of_zeros_and_ones_of_any_type_are_masks(dtype: type) -> None:
    assert np.array_equal(check_masks(squares((4, 8)).astype(dtype)), squares((4, 8)))
    if dtype == np.uint8:
        assert np.array_equal(check_masks(squares((4, 8)).astype(dtype) * 255), squares((4, 8)))


def test_smallest_and_odd_images(model: AUSM) -> None:
    with pytest.raises(ImageError, match="image 7x90: the smallest is 8x8"):
        new_stream(model).step(np.zeros((7, 90, 3), np.uint8))
    for height, width in ((8, 8), (9, 131), (97, 33)):
        stream = new_stream(model, short_side=32)
        mask = np.zeros((1, height, width), bool)
        mask[0, -1, -1] = True  # one pixel in the corner is still an object
        stream.prompt(mask)
        for _ in range(2):
            out = stream.step(np.full((height, width, 3), 200, np.uint8))
        assert out.tracks[0].mask.shape == (height, width)


def test_wiping_the_state_keeps_ids_and_forgets(model: AUSM) -> None:
    a, b = new_stream(model), new_stream(model)
    for image in images(3):
        a.step(image)
        b.step(image)
    b.wipe_state()
    assert not b._state.ssm.any() and not b._state.conv.any()
    assert_same(a.current, b.current)
    a.step(images(4)[3])
    b.step(images(4)[3])
    assert not torch.equal(a._state.F, b._state.F)


def test_the_state_may_be_stored_in_half_the_bytes(model: AUSM) -> None:
    full, half = new_stream(model), new_stream(model, state_storage="fp16")
    for image in images(8):
        a, b = full.step(image), half.step(image)
        assert [t.track_id for t in a.tracks] == [t.track_id for t in b.tracks]
        differ = sum(int((x.mask ^ y.mask).sum()) for x, y in zip(a.tracks, b.tracks, strict=True))
        assert differ <= 0.01 * sum(int(t.mask.sum()) for t in a.tracks)
    assert full.state_bytes - half.state_bytes == full._state.ssm.nbytes / 2
    with pytest.raises(AusmError, match="state_storage=fp8"):
        new_stream(model, state_storage="fp8")
    with pytest.raises(AusmError, match="cannot change"):
        half.configure(state_storage="fp32")


def test_bf16_runs_and_unknown_precision_is_refused(model: AUSM) -> None:
    out = ausm.Stream(model, config=CONFIG, precision="bf16").step(images(1)[0])
    assert out.height == H
    with pytest.raises(AusmError, match="precision 'int8'"):
        ausm.Stream(model, precision="int8")
    with pytest.raises(AusmError, match="no class head 'ovis'"):
        new_stream(model, head="ovis")
