"""Plans of inference scaling: lengths and orders of the paper, and that a stream can run them."""

import numpy as np
import pytest
import torch
from small_models import build, small_nano

import ausm
from ausm.config import StreamConfig
from ausm.scaling import image_repeat, spatial_traversal, video_fbf


def numbered(T: int) -> list[np.ndarray]:
    return [np.full((8, 12, 3), t, np.uint8) for t in range(1, T + 1)]


def numbers(frames: list[np.ndarray]) -> list[int]:
    return [int(f[0, 0, 0]) for f in frames]


def test_image_repeat() -> None:
    plan = image_repeat(numbered(1)[0], 3)
    assert numbers(plan.frames) == [1, 1, 1] and plan.keep == [2]
    assert image_repeat(numbered(1)[0], 1).keep == [0]
    with pytest.raises(ValueError, match="0 times"):
        image_repeat(numbered(1)[0], 0)


def test_video_fbf_goes_forward_backward_forward() -> None:
    plan = video_fbf(numbered(4))
    assert numbers(plan.frames) == [1, 2, 3, 4, 3, 2, 1, 2, 3, 4]  # 3 T - 2
    assert numbers([plan.frames[i] for i in plan.keep]) == [1, 2, 3, 4] and plan.keep[-1] == 9
    for T in range(1, 6):
        plan = video_fbf(numbered(T))
        assert len(plan.frames) == 3 * T - 2
        assert numbers([plan.frames[i] for i in plan.keep]) == list(range(1, T + 1))
    assert video_fbf(range(3)) == ([0, 1, 2, 1, 0, 1, 2], [4, 5, 6])  # as `ausm eval` does, which reads them one by one
    with pytest.raises(ValueError, match="0 frames"):
        video_fbf([])


def test_spatial_traversal_shows_the_corners_in_order() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    for value, (y, x) in zip((10, 20, 30, 40), ((0, 0), (0, 196), (96, 196), (96, 0)), strict=True):
        image[y : y + 4, x : x + 4] = value  # UL, UR, BR, BL
    before = image.copy()
    plan = spatial_traversal(image)
    assert len(plan.frames) == 6 and plan.keep == [5]
    assert all(f.shape == image.shape and f.dtype == np.uint8 for f in plan.frames)
    assert np.array_equal(plan.frames[0], image) and np.array_equal(plan.frames[5], image)
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 0)]
    for view, value, own in zip(plan.frames[1:5], (10, 20, 30, 40), corners, strict=True):
        assert view[own][0] == value  # its own corner stays at the corner
        assert [view[c][0] for c in corners if c != own] == [0, 0, 0]  # the others lie outside of its 90 %
    assert np.array_equal(image, before)


def test_a_window_is_resized_to_the_image() -> None:
    ramp = np.repeat(np.linspace(0, 250, 200)[None, :, None], 40, 0).repeat(3, 2).astype(np.uint8)
    left, right = spatial_traversal(ramp).frames[1:3]
    columns = np.arange(200)
    assert np.abs(left[20, :, 0] - 0.9 * 250 / 199 * columns).max() < 3
    assert np.abs(right[20, :, 0] - (25 + 0.9 * 250 / 199 * columns)).max() < 3


def test_a_stream_runs_the_plans_and_ids_persist() -> None:
    model = build(small_nano())
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    for plan in (video_fbf(frames), spatial_traversal(frames[0]), image_repeat(frames[0])):
        stream = ausm.Stream(model, discover=False, config=StreamConfig(short_side=40))
        mask = np.zeros((1, 40, 60), bool)
        mask[0, 10:30, 10:40] = True
        stream.prompt(mask)
        outputs = [stream.step(frame) for frame in plan.frames]
        assert [[t.track_id for t in outputs[i].tracks] for i in plan.keep] == [[1]] * len(plan.keep)
