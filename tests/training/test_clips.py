"""Batches: a pure function of (seed, number), whatever the processes; bad files are named, counted, and limited."""

import logging
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch

from training.clips import CHANCES, Clip, ClipConfig, ClipDataError, plain
from training.data_config import check_classes
from training.loader import Batch, BatchLoader, ClipBatches, Source, collate
from training.readers import RawClip, set_object

CONFIG = ClipConfig(frames=3, size=(32, 48), min_pixels=4)


class Blocks:
    """Each item is noise with one block; items listed in `broken` cannot be read."""

    def __init__(self, name: str, head: str = "", exhaustive: bool = False, broken: Sequence[int] = ()) -> None:
        self.name, self.head, self.exhaustive, self.broken = name, head, exhaustive, broken

    def __len__(self) -> int:
        return 8

    def item_name(self, item: int) -> str:
        return str(item)

    def length(self, item: int) -> int:
        return 1

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        if item in self.broken:
            raise ClipDataError(f"{self.name}/{item}.jpg: not a readable image")
        image = np.random.default_rng(item).integers(0, 255, (80, 120, 3)).astype(np.uint8)
        bits = np.zeros((80, 120, 1), np.int32)
        set_object(bits, 0, np.pad(np.ones((32, 40), bool), ((24, 24), (40, 40))))
        return RawClip([image] * len(frames), [bits] * len(frames), np.array([1], np.int64))


def batches(**options: int) -> ClipBatches:
    sources = [Source(Blocks("a"), 3.0), Source(Blocks("b", "coco", True), 1.0)]
    return ClipBatches(sources, CONFIG, seed=5, batch=4, **options)


def same(one: Batch, other: Batch) -> bool:
    tensors = all(torch.equal(one[field], other[field]) for field in range(4))
    return tensors and one[4:] == other[4:]


def clip(count: int, **changes: object) -> Clip:
    masks = np.ones((count, 2, 20, 30), bool)
    return Clip(np.zeros((2, 20, 30, 3), np.uint8), masks, np.arange(count), True, "coco", "x")._replace(**changes)


def test_collate_pads_instances_and_says_which_are_real() -> None:
    batch = collate([clip(1), clip(3), clip(0)])
    assert batch.images.shape == (3, 2, 20, 30, 3) and batch.images.dtype == torch.uint8
    assert batch.masks.shape == (3, 3, 2, 20, 30) and batch.masks.dtype == torch.bool
    assert batch.valid.tolist() == [[True, False, False], [True, True, True], [False] * 3]
    assert batch.class_ids.tolist() == [[0, -1, -1], [0, 1, 2], [-1] * 3]
    assert batch.masks.flatten(2).all(dim=2).tolist() == batch.valid.tolist()
    assert (batch.exhaustive, batch.head, batch.sources, batch.skipped) == (True, "coco", ["x"] * 3, ())
    assert collate([clip(0)]).masks.shape == (1, 0, 2, 20, 30)


@pytest.mark.parametrize(
    "other", [{"head": "sim"}, {"exhaustive": False}, {"images": np.zeros((2, 20, 32, 3), np.uint8)}]
)
def test_collate_refuses_a_mixture(other: dict[str, object]) -> None:
    with pytest.raises(ClipDataError, match="differ"):
        collate([clip(1), clip(1, **other)])


def test_every_batch_has_one_source_and_sources_come_by_weight() -> None:
    schedule = batches()
    drawn = [schedule.source_of(k) for k in range(400)]
    assert 0.68 < drawn.count(0) / 400 < 0.82
    for k in range(6):
        batch = schedule[k]
        name = "ab"[drawn[k]]
        assert all(source.startswith(f"{name}/") for source in batch.sources) and len(batch.sources) == 4
        assert (batch.exhaustive, batch.head) == ((False, "") if name == "a" else (True, "coco"))


def test_the_choice_of_a_source_says_nothing_of_its_clips() -> None:
    """NumPy fills seeds up with zeros, so that (seed, batch) and (seed, batch, 0, 0) would be one stream."""
    schedule = batches()
    drawn = np.array([schedule.source_of(k) for k in range(2000)])
    clips = [np.random.default_rng([5, k, 0, 0]) for k in range(2000)]
    second = np.array([rng.integers(4, size=2)[1] for rng in clips])  # the first one is the item
    for source in (0, 1):
        assert np.bincount(second[drawn == source], minlength=4).min() > 0.2 * np.sum(drawn == source)


def test_a_source_without_weight_lends_no_cut_outs() -> None:
    schedule = ClipBatches([Source(Blocks("a"), 1.0), Source(Blocks("b"), 0.0)], CONFIG, seed=5, batch=4)
    assert [reader.name for reader in schedule.bank.readers] == ["a"]


def test_a_batch_depends_on_seed_and_number_only() -> None:
    first, again = batches(), batches()
    assert same(first[7], again[7])  # without having drawn 0..6
    assert not torch.equal(first[7].images, first[8].images)
    other_seed = ClipBatches(first.sources, CONFIG, seed=6, batch=4)
    assert not torch.equal(first[7].images, other_seed[7].images)


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 2), (2, 2), (1, 4)])
def test_ranks_and_accumulation_together_see_the_same_clips(world: int, parts: int) -> None:
    whole = batches()[3]
    pieces = [
        batches(rank=rank, world=world, parts=parts)[3 * parts + part] for rank in range(world) for part in range(parts)
    ]
    assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
    assert [source for piece in pieces for source in piece.sources] == whole.sources


def test_resuming_with_worker_processes_gives_the_same_batches() -> None:
    whole = list(BatchLoader(batches(), 0, 5, workers=0))
    resumed = list(BatchLoader(batches(), 2, 5, workers=2))
    assert len(whole) == 5 and len(resumed) == 3
    assert all(same(one, other) for one, other in zip(whole[2:], resumed, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_named_counted_and_replaced(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    schedule = ClipBatches([Source(Blocks("a", broken=(2, 5)), 1.0)], CONFIG, seed=1, batch=4)
    with caplog.at_level(logging.WARNING):
        loader = BatchLoader(schedule, 0, 6, workers=workers)
        found = list(loader)
    assert len(found) == 6 and all(len(batch.sources) == 4 for batch in found)
    assert set(loader.skipped) == {f"a/{item}.jpg: not a readable image" for item in (2, 5)}
    assert sum(len(batch.skipped) for batch in found) > 2
    assert sum("a/2.jpg" in message for message in caplog.messages) == 1  # met often, said once
    assert not {"a/2", "a/5"} & {source for batch in found for source in batch.sources}


def test_too_many_bad_files_stop_the_run() -> None:
    schedule = ClipBatches([Source(Blocks("a", broken=(0, 1, 2, 5)), 1.0)], CONFIG, seed=1, batch=4)
    with pytest.raises(ClipDataError, match=r"bad items, limit 3; the last: a/[0125]\.jpg"):
        list(BatchLoader(schedule, 0, 20, workers=0, max_skipped=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_with_nothing_readable_stops_at_once(workers: int) -> None:
    good = Source(Blocks("fine"), 0.0)
    schedule = ClipBatches([Source(Blocks("gone", broken=range(8)), 1.0), good], CONFIG, seed=1, batch=2)
    with pytest.raises(ClipDataError, match=r"^gone: 10 items in a row unreadable.*gone/\d\.jpg") as refused:
        list(BatchLoader(schedule, 0, 1, workers=workers))
    assert "Traceback" not in str(refused.value) and "\n" not in str(refused.value)


def test_pasting_can_be_set_per_source() -> None:
    config = ClipConfig(frames=3, size=(32, 48), paste=1.0, max_paste=3, unlabelled=0.0, occlude=0.0, min_pixels=1)
    often = ClipBatches([Source(Blocks("a"), 1.0)], config, seed=0, batch=8)[0]
    never = ClipBatches([Source(Blocks("a"), 1.0, paste=0.0)], config, seed=0, batch=8)[0]
    assert often.valid.sum() > 8 >= never.valid.sum()


def test_a_source_may_have_its_own_clip_length_and_crop() -> None:
    own = Source(Blocks("photos"), 1.0, frames=3, size=(64, 32))
    schedule = ClipBatches([own, Source(Blocks("b"), 1.0)], ClipConfig(frames=5, size=(32, 48)), seed=0, batch=2)
    found = {batch.sources[0].split("/")[0]: batch for batch in (schedule[k] for k in range(8))}
    assert found["photos"].images.shape == (2, 3, 64, 32, 3) and found["b"].images.shape == (2, 5, 32, 48, 3)
    assert (found["photos"].masks.shape[2], found["b"].masks.shape[2]) == (3, 5)


@pytest.mark.parametrize(
    ("weights", "batch", "options"),
    [([], 4, {}), ([0.0], 4, {}), ([-1.0, 2.0], 4, {}), ([1.0], 4, {"world": 3}), ([1.0], 4, {"world": 2, "rank": 2})],
)
def test_impossible_schedules_are_refused(weights: list[float], batch: int, options: dict[str, int]) -> None:
    with pytest.raises(ClipDataError):
        ClipBatches([Source(Blocks("a"), weight) for weight in weights], CONFIG, seed=0, batch=batch, **options)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": (8, 64)}, {"max_instances": 0}, {"max_stride": 0}])
def test_impossible_clips_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ClipDataError, match="need >= 1"):
        ClipConfig(**wrong)


@pytest.mark.parametrize("name", [f.name for f in fields(ClipConfig) if f.type == "float" or f.type is float])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_probabilities_outside_0_to_1_are_refused(name: str, value: float) -> None:
    with pytest.raises(ClipDataError, match=rf"outside 0..1: \{{'{name}': {value}\}}"):
        ClipConfig(**{name: value})


def test_plain_clips_have_no_random_change() -> None:
    config = plain(4, (64, 96))
    assert (config.frames, config.size) == (4, (64, 96))
    assert all(getattr(config, name) == 0 for name in CHANCES)


def test_classes_must_fit_the_heads_they_feed(caplog: pytest.LogCaptureFixture) -> None:
    reader = Blocks("a", "coco")
    reader.category_names = ("cat", "dog")  # type: ignore[attr-defined]
    sources = [Source(reader, 1.0)]
    check_classes(sources, {"coco": 2})
    assert not caplog.messages
    with pytest.raises(ClipDataError, match="2 classes, head 'coco' has 80"):
        check_classes(sources, {"coco": 80})
    check_classes(sources, {"sim": 13})
    assert "no class head 'coco' in this model, classes are not learned" in caplog.text
