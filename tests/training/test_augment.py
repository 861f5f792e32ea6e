"""Clips from items: masks stay on their objects through every augmentation, and a seed says it all."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from training.augment import choose_frames, make_clip, visible_masks
from training.augment_colour import change_look, colour_matrix
from training.augment_motion import STILL, absent_span, affine, camera_path, object_path
from training.augment_occlude import boxes_over_time, occluder, slab
from training.augment_paste import Bank, CutOut, Layer, cut_out, draw, fit, layer_maps, usable
from training.clips import Clip, ClipConfig, plain
from training.loader import Source
from training.readers import RawClip, channels, get_object, set_object

GREEN, RED, GREY = (0, 250, 0), (250, 0, 0), (100, 100, 100)


class Squares:
    """Pictures of one red and one green square on grey; as a video both wander to the right."""

    name, head = "squares", "coco"

    def __init__(self, frames: int = 1, size: tuple[int, int] = (120, 160), exhaustive: bool = True) -> None:
        self.frames, self.size, self.exhaustive = frames, size, exhaustive

    def __len__(self) -> int:
        return 5

    def item_name(self, item: int) -> str:
        return str(item)

    def length(self, item: int) -> int:
        return self.frames

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        images, bits = [], []
        for frame in frames:
            image = np.full((*self.size, 3), GREY, np.uint8)
            labels = np.zeros((*self.size, channels(2)), np.int32)
            for index, (colour, top, left) in enumerate(((RED, 20, 30), (GREEN, 60, 90))):
                mask = np.zeros(self.size, bool)
                mask[top + item : top + item + 40, left + 2 * frame : left + 2 * frame + 40] = True
                image[mask] = colour
                set_object(labels, index, mask)
            images.append(image)
            bits.append(labels)
        return RawClip(images, bits, np.array([3, 8], np.int64))


STEADY = ClipConfig(frames=6, size=(96, 160), colour=0, grey=0, blur=0, noise=0, jpeg=0)


def agreement(clip: Clip, colour: tuple[int, int, int], masks: np.ndarray) -> float:
    """IoU over the clip of "this colour" and a mask."""
    near = (np.abs(clip.images.astype(int) - colour) < 80).all(axis=-1)
    return float((near & masks).sum() / (near | masks).sum())


@pytest.mark.parametrize("frames", [1, 40])
@pytest.mark.parametrize("seed", range(4))
def test_masks_follow_the_picture_through_camera_and_flip(frames: int, seed: int) -> None:
    config = replace(STEADY, paste=0, occlude=0, flip=float(seed % 2), jump=1.0)
    clip = make_clip(Squares(frames), 1, np.random.default_rng(seed), config, None)
    assert clip.images.shape == (6, 96, 160, 3) and clip.images.dtype == np.uint8
    assert clip.masks.shape[1:] == (6, 96, 160) and clip.masks.dtype == bool
    assert (clip.exhaustive, clip.head, clip.source) == (True, "coco", "squares/1")
    for row, class_id in enumerate(clip.class_ids):
        assert agreement(clip, {3: RED, 8: GREEN}[int(class_id)], clip.masks[row]) > 0.9


def test_a_photo_may_be_shown_whole() -> None:
    """No closer than it is, so that small objects stay small; a video's window and a chance of 0 know nothing of it."""

    def areas(chance: float, frames: int = 1) -> list[float]:
        config = replace(STEADY, paste=0, occlude=0, away=0, jump=0, whole=chance)
        clips = [make_clip(Squares(frames), 0, np.random.default_rng(seed), config, None) for seed in range(8)]
        return [float(clip.masks.sum((2, 3)).max()) for clip in clips]

    whole, close = areas(1.0), areas(0.0)
    assert max(whole) < 1600 * 1.35 and np.median(close) > 1600 * 1.35
    assert areas(1.0, frames=40) == areas(0.0, frames=40)


def test_large_sources_are_shrunk_without_moving_the_masks() -> None:
    config = replace(plain(3, (60, 80)), away=0)
    clip = make_clip(Squares(1, (480, 640)), 0, np.random.default_rng(1), config, None)
    assert agreement(clip, RED, clip.masks[0]) > 0.8 or agreement(clip, GREEN, clip.masks[0]) > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_everything_on_keeps_visible_parts_disjoint_and_sane(seed: int) -> None:
    reader = Squares(30 if seed % 2 else 1)
    config = ClipConfig(
        frames=8, size=(96, 160), paste=1, twins=0.5, own_twin=0.5, occlude=1, away=0.5, jpeg=1, noise=1
    )
    clip = make_clip(reader, 0, np.random.default_rng(seed), config, Bank([Squares()]))
    assert len(clip.masks) >= 2
    assert clip.masks.sum(axis=0).max() == 1  # the squares never overlap, and what is pasted hides what is below
    counts = clip.masks.sum(axis=(2, 3))
    assert (counts.max(axis=1) >= config.min_pixels).all()
    assert ((counts == 0) | (counts >= config.min_pixels)).all()
    assert len(clip.class_ids) == len(clip.masks) and set(clip.class_ids.tolist()) <= {3, 8}


def test_a_hidden_object_often_has_a_twin_in_view() -> None:
    config = replace(STEADY, paste=0, occlude=1, hide_twin=1, away=0, unlabelled=0)
    reader, twins = Squares(1, (240, 320)), []
    for seed in range(12):
        clip = make_clip(reader, 0, np.random.default_rng(seed), config, Bank([Squares()]))
        ids = clip.class_ids.tolist()
        for class_id, colour in ((3, RED), (8, GREEN)):
            if ids.count(class_id) == 2:  # the object and its copy look the same, and both are labelled
                both = clip.masks[clip.class_ids == class_id]
                assert agreement(clip, colour, both.any(axis=0)) > 0.6  # a slab may carry the colour too
                twins.append(both.any(axis=(2, 3)))
    assert len(twins) >= 8
    assert np.mean([(~seen[0] & seen[1]).any() or (~seen[1] & seen[0]).any() for seen in twins]) > 0.5


def test_what_is_put_on_clips_of_one_labelled_object_has_no_label() -> None:
    """Twin and cover of a source with `alone` are the same pictures without a mask."""
    reader = Squares(1, (240, 320), exhaustive=False)
    config = replace(STEADY, paste=0, occlude=1, hide_twin=1, away=0, unlabelled=0)

    def clips(alone: bool) -> list[Clip]:
        own = Source(reader, 1.0, alone=alone).configure(config)
        return [make_clip(reader, 0, np.random.default_rng(seed), own, Bank([Squares()])) for seed in range(8)]

    others, bare = clips(False), clips(True)
    assert all(len(b.masks) == 2 < len(a.masks) for a, b in zip(others, bare, strict=True))
    assert all(np.array_equal(a.masks[:2], b.masks) for a, b in zip(others, bare, strict=True))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(others, bare, strict=True))


def test_a_clip_is_a_function_of_its_seed() -> None:
    def build(seed: int) -> Clip:
        return make_clip(
            Squares(20), 2, np.random.default_rng(seed), ClipConfig(frames=5, size=(64, 96)), Bank([Squares()])
        )

    one, same, other = build(3), build(3), build(4)
    assert np.array_equal(one.images, same.images) and np.array_equal(one.masks, same.masks)
    assert not np.array_equal(one.images, other.images)


def test_class_agnostic_sources_give_no_class_ids() -> None:
    reader = Squares()
    reader.head = ""
    clip = make_clip(reader, 0, np.random.default_rng(0), STEADY, Bank([Squares()]))
    assert set(clip.class_ids.tolist()) == {-1}


def test_the_largest_instances_are_kept() -> None:
    bits = [np.zeros((40, 80, channels(35)), np.int32) for _ in range(2)]
    for index in range(35):
        mask = np.zeros((40, 80), bool)
        mask[: index + 1, 2 * index : 2 * index + 2] = True
        set_object(bits[0], index, mask)
    masks, kept = visible_masks(bits, 35, cap=3, min_pixels=4)
    assert kept.tolist() == [32, 33, 34]
    assert masks.sum(axis=(2, 3)).tolist() == [[66, 0], [68, 0], [70, 0]]


def test_exhaustive_sources_keep_more_instances() -> None:
    config = replace(STEADY, max_instances=1, paste=0, occlude=0)
    counts = [
        len(make_clip(Squares(exhaustive=e), 0, np.random.default_rng(3), config, None).masks) for e in (False, True)
    ]
    assert counts == [1, 2]  # a dropped object of an exhaustive clip would count as background


def test_slivers_count_as_absent() -> None:
    bits = [np.zeros((32, 32, 1), np.int32) for _ in range(2)]
    set_object(bits[0], 0, np.pad(np.ones((8, 8), bool), 12))
    set_object(bits[1], 0, np.pad(np.ones((2, 3), bool), ((0, 30), (0, 29))))
    masks, _ = visible_masks(bits, 1, cap=4, min_pixels=10)
    assert masks.sum(axis=(2, 3)).tolist() == [[64, 0]]


# --- frames and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 8, 60])
def test_frames_are_inside_the_video_and_evenly_spaced(length: int) -> None:
    config = ClipConfig(frames=8, max_stride=4)
    strides = set()
    for seed in range(60):
        frames = choose_frames(np.random.default_rng(seed), length, config)
        assert len(frames) == 8 and min(frames) >= 0 and max(frames) < length
        strides |= set(np.diff(frames).tolist())
    assert strides == {1: {0}, 60: {-4, -3, -2, -1, 1, 2, 3, 4}}.get(length, {-1, 1})


@pytest.mark.parametrize(("length", "start", "stop"), [(24, 8, 17), (20, 6, 11), (60, 20, 48), (12, 3, 5)])
def test_an_absence_may_last_longer(length: int, start: int, stop: int) -> None:
    """Frames stay neighbours, the object is gone in one piece for up to 30 frames, and seen on both sides of it."""
    config, lengths = ClipConfig(frames=40, linger=1.0), set()
    for seed in range(60):
        frames = np.array(choose_frames(np.random.default_rng(seed), length, config, (start, stop)))
        assert len(frames) == 40 and frames.min() >= 0 and frames.max() < length
        assert set(np.abs(np.diff(frames)).tolist()) == {1}
        gone = (frames >= start) & (frames < stop)
        edges = np.flatnonzero(np.diff(gone.astype(int)))
        runs = np.diff(edges)[~gone[edges[:-1]]]  # of absence, those that end inside the clip
        lengths |= set(runs.tolist())
        assert len(runs)
    assert max(lengths) <= max(30, stop - start) and max(lengths) - min(lengths) >= (10 if stop - start < 20 else 0)


def test_clips_too_short_for_an_absence_leave_it_as_it_is() -> None:
    for frames in (6, 14):  # 9 frames of absence and 3 on each side are 15
        lingers, plain = (ClipConfig(frames=frames, linger=chance) for chance in (1.0, 0.0))
        drawn = [choose_frames(np.random.default_rng(3), 24, config, (8, 17)) for config in (lingers, plain)]
        assert drawn[0] == drawn[1]
    for seed in range(40):
        frames_of = choose_frames(np.random.default_rng(seed), 24, ClipConfig(frames=15, linger=1.0), (8, 17))
        gone = [8 <= frame < 17 for frame in frames_of]
        assert gone == [False] * 3 + [True] * 9 + [False] * 3


def test_a_clip_longer_than_its_video_is_the_same_with_an_absence() -> None:
    config = ClipConfig(frames=40)
    same = [choose_frames(np.random.default_rng(7), 24, config, absence) for absence in (None, (8, 17))]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("frames", "start", "stop", "strides"),
    [(36, 15, 45, {1}), (18, 20, 28, {1, 2, 3}), (18, 16, 44, {2, 3}), (30, 22, 40, {1, 2}), (36, 2, 20, {1})],
)
def test_a_long_enough_clip_shows_the_absence_and_what_is_around_it(
    frames: int, start: int, stop: int, strides: set[int]
) -> None:
    drawn = set()
    for seed in range(200):
        chosen = choose_frames(np.random.default_rng(seed), 60, ClipConfig(frames=frames), (start, stop))
        assert len(chosen) == frames and min(chosen) >= 0 and max(chosen) < 60
        assert min(chosen) <= max(start - 3, 0) and max(chosen) >= stop + 2
        drawn |= set(np.abs(np.diff(chosen)).tolist())
    assert drawn == strides


def test_a_clip_of_one_frame_may_be_any() -> None:
    drawn = [choose_frames(np.random.default_rng(seed), 6, ClipConfig(frames=1))[0] for seed in range(600)]
    assert (np.bincount(drawn, minlength=6) > 60).all()


def test_a_clip_too_short_for_the_absence_may_show_any_part() -> None:
    firsts = {min(choose_frames(np.random.default_rng(s), 60, ClipConfig(frames=8), (10, 50))) for s in range(300)}
    assert min(firsts) == 0 and max(firsts) == 60 - 8


def test_affine_puts_the_centre_in_the_middle() -> None:
    maps = affine(np.array([[10.0, 20.0]]), np.array([[2.0, 4.0]]), np.array([0.0]), (31, 41))
    assert np.allclose(maps[0] @ [20, 15, 1], [10, 20])
    assert np.allclose(maps[0] @ [22, 19, 1], [11, 21])  # 2 px right = 1 source px, 4 px down = 1 source px


def test_camera_looks_away_and_returns() -> None:
    hidden = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        focus = np.array([20.0, 40.0, 60.0, 80.0])
        maps = camera_path(rng, 8, (96, 160), (240, 400), focus, STILL, close=1.0, away=(3, 6))
        corners = np.array([[20, 40, 1], [60, 40, 1], [20, 80, 1], [60, 80, 1]], float).T
        inside = []
        for matrix in maps:
            x, y = np.linalg.solve(matrix[:, :2], corners[:2] - matrix[:, 2:])
            inside.append(x.max() > 0 and x.min() < 160 and y.max() > 0 and y.min() < 96)
        assert inside[0] and inside[-1]
        hidden += not any(inside[4:5])
    assert hidden >= 12  # where the source has room on some side


@pytest.mark.parametrize("frames", [3, 4, 5, 8, 16])
def test_absences_start_after_the_first_frame_and_mostly_end(frames: int) -> None:
    spans = [absent_span(np.random.default_rng(seed), frames) for seed in range(200)]
    assert all(1 <= first < last <= frames for first, last in spans)
    assert 0.02 < np.mean([last == frames for _, last in spans]) < 0.3


def test_pasted_objects_leave_the_picture_when_told() -> None:
    for seed in range(20):
        centre, scale, angle = object_path(np.random.default_rng(seed), 8, (100, 160), (30, 40), gone=(3, 5))
        assert centre.shape == scale.shape == (8, 2) and angle.shape == (8,)
        assert ((centre[3:5, 0] < -20) | (centre[3:5, 0] > 180)).all()
        assert (centre[[0, 7], 0] > -20).all() and (centre[[0, 7], 0] < 180).all()


# --- cut-outs and occluders -----------------------------------------------------------------------------------------


def test_cut_outs_have_soft_edges_inside_the_mask() -> None:
    raw = Squares().load(0, [0])
    cut = cut_out(raw.images[0], get_object(raw.bits[0], 0), 3, "coco")
    assert cut.alpha.shape == (44, 44) and cut.image.shape == (44, 44, 3)
    assert cut.alpha[20, 20] == 1 and cut.alpha[0].max() == 0
    assert 0.85 * 1600 < cut.alpha.sum() <= 1600
    assert (cut.image[cut.alpha > 0.5] == RED).all()
    assert fit(cut, 0.5).alpha.shape == (22, 22)


def test_cut_outs_are_whole_objects_only() -> None:
    raw = Squares().load(0, [0])
    assert usable(raw) == [0, 1]
    cropped = RawClip([raw.images[0][30:]], [raw.bits[0][30:]], raw.class_ids)
    assert usable(cropped) == [1]  # the picture cuts the red one
    tiny = RawClip(
        [raw.images[0]], [np.where(np.indices((120, 160))[0][..., None] < 22, raw.bits[0], 0)], raw.class_ids
    )
    assert usable(tiny) == []


def red_layer(bits_index: int, behind: bool = False) -> Layer:
    cut = CutOut(np.full((20, 20, 3), RED, np.uint8), np.ones((20, 20), np.float32), 0, "")
    maps = layer_maps(cut, np.array([[29.5, 24.5]]), np.ones((1, 2)), np.zeros(1))
    return Layer(cut, maps, bits_index, behind)


def test_drawing_hides_what_is_below_and_labels_itself() -> None:
    image = np.full((50, 60, 3), GREY, np.uint8)
    bits = np.zeros((50, 60, 2), np.int32)
    set_object(bits, 0, np.indices((50, 60))[1] < 30)
    draw(image, bits, red_layer(33), 0)
    assert (image[15:35, 20:40] == RED).all() and (image[:10] == GREY).all()
    assert get_object(bits, 33).sum() == 400 and get_object(bits, 33)[25, 30]
    assert not (get_object(bits, 0) & get_object(bits, 33)).any()


def test_drawing_behind_leaves_labelled_objects_whole() -> None:
    image = np.full((50, 60, 3), GREY, np.uint8)
    bits = np.zeros((50, 60, 1), np.int32)
    left = np.indices((50, 60))[1] < 30
    set_object(bits, 0, left)
    draw(image, bits, red_layer(1, behind=True), 0)
    assert np.array_equal(get_object(bits, 0), left) and (image[left] == GREY).all()
    assert 160 <= get_object(bits, 1).sum() <= 200 and (image[15:35, 33:40] == RED).all()


def test_drawing_outside_the_picture_changes_nothing() -> None:
    image, bits = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10, 1), np.int32)
    draw(image, bits, red_layer(0), 0)
    assert not image.any() and not bits.any()


def test_occluders_hide_the_object_completely_and_let_it_go() -> None:
    hidden_frames = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        raw = Squares(10, (200, 300)).load(0, list(range(8)))
        images, bits = [i.copy() for i in raw.images], [b.copy() for b in raw.bits]
        layer = occluder(rng, Bank([Squares()]), boxes_over_time(bits, 1), (200, 300), 2)
        assert layer is not None
        for frame in range(8):
            draw(images[frame], bits[frame], layer, frame)
        left = np.array([get_object(labels, 1).sum() for labels in bits])
        assert left[0] > 0
        hidden_frames.append(int((left < 16).sum()))
    assert np.mean(np.array(hidden_frames) >= 1) > 0.85
    assert np.mean(hidden_frames) >= 2


def test_objects_too_large_to_hide_or_not_there_get_no_occluder() -> None:
    rng, bank = np.random.default_rng(0), Bank([Squares()])
    assert occluder(rng, bank, np.array([[0.0, 0, 100, 90]] * 5), (96, 160), 1) is None
    absent = np.array([[np.nan] * 4] + [[10.0, 10, 20, 20]] * 4)
    assert occluder(rng, bank, absent, (96, 160), 1) is None


def test_slabs_cover_their_box() -> None:
    for seed in range(8):
        cut = slab(np.random.default_rng(seed), Bank([Squares()]), 60, 40)
        assert cut.image.shape == (60, 40, 3) and cut.alpha.shape == (60, 40)
        assert cut.alpha[8:-8, 6:-6].min() > 0.5 and cut.alpha.max() <= 1


# --- colours --------------------------------------------------------------------------------------------------------


def test_colours_change_with_the_clip_and_only_little_inside_it() -> None:
    base = np.random.default_rng(0).integers(60, 190, (32, 32, 3)).astype(np.uint8)
    config = ClipConfig(frames=4, size=(32, 32), colour=1, grey=0, blur=0, noise=0, jpeg=0)
    between, inside = [], []
    for seed in range(20):
        changed = np.stack(change_look([base] * 4, np.random.default_rng(seed), config)).astype(float)
        assert changed.shape == (4, 32, 32, 3)
        between.append(np.abs(changed - base).mean())
        inside.append(np.abs(changed - changed.mean(axis=0)).mean())
    assert np.mean(between) > 3 * np.mean(inside) > 0


def test_grey_clips_have_no_colour_and_plain_ones_no_change() -> None:
    base = np.random.default_rng(0).integers(60, 190, (32, 48, 3)).astype(np.uint8)
    mixed = base.reshape(-1, 3) @ colour_matrix(np.random.default_rng(1), 0.0, grey=True)[:, :3].T
    assert np.ptp(mixed, axis=1).max() < 1e-6
    assert np.array_equal(change_look([base], np.random.default_rng(1), plain(1, (32, 48)))[0], base)


@pytest.mark.parametrize("step", ["blur", "noise", "jpeg"])
def test_each_fault_of_a_camera_changes_pixels_but_not_their_mean(step: str) -> None:
    base = np.random.default_rng(0).integers(60, 190, (48, 64, 3)).astype(np.uint8)
    config = replace(plain(2, (48, 64)), **{step: 1.0})
    for image in change_look([base, base], np.random.default_rng(2), config):
        assert image.dtype == np.uint8 and image.shape == base.shape
        assert np.abs(image.astype(float) - base).mean() > 0.5
        assert np.abs(image.mean(axis=(0, 1)) - base.mean(axis=(0, 1))).max() < 3
