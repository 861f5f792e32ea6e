"""Batches of training clips: a deterministic schedule, worker processes, and a limit on bad files.

Batch k is a pure function of (sources, config, seed, k): to resume exactly, start at k.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import make_clip
from training.augment_paste import Bank
from training.clips import Clip, ClipConfig, ClipDataError
from training.readers import Reader

log = logging.getLogger(__name__)
CHOICE = 2**32 - 1  # marks the draws that choose a batch's source; no row of a batch has this number
OWN = ("paste", "frames", "size", "whole", "linger")  # fields of ClipConfig that a source may have of its own


class Batch(NamedTuple):
    """B clips of one source. N = the largest number of instances among them; rows beyond are padding."""

    images: Tensor  # (B, T, H, W, 3) uint8 RGB
    masks: Tensor  # (B, N, T, H, W) bool
    valid: Tensor  # (B, N) bool, False = padding
    class_ids: Tensor  # (B, N) int64, -1 unknown or padding
    exhaustive: bool
    head: str
    sources: list[str]  # B names
    skipped: tuple[str, ...] = ()  # errors of the items that had to be replaced, with the file's name


@dataclass(frozen=True)
class Source:
    """A reader with its share of the batches. None = as the clip configuration says."""

    reader: Reader
    weight: float
    paste: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None  # (H, W) of the crop
    whole: float | None = None
    linger: float | None = None
    alone: bool = False  # nothing but what the reader labels has a label, whatever is put on its clips

    def configure(self, config: ClipConfig) -> ClipConfig:
        """The clip configuration with this source's own values."""
        own = {name: value for name, value in self.own().items() if value is not None}
        return replace(config, **own | ({"unlabelled": 1.0} if self.alone else {}))

    def own(self) -> dict[str, Any]:
        """This source's own values by the name of the clip configuration's field; None = as that says."""
        return {name: getattr(self, name) for name in OWN}


def collate(clips: Sequence[Clip], skipped: tuple[str, ...] = ()) -> Batch:
    """Stacks clips of one size and one kind of labels; raises ClipDataError if they differ."""
    kinds = {(clip.images.shape, clip.exhaustive, clip.head) for clip in clips}
    if len(kinds) != 1:
        raise ClipDataError(f"clips of one batch differ: {sorted(map(str, kinds))}")
    most = max(len(clip.masks) for clip in clips)
    frames, height, width = clips[0].images.shape[:3]
    masks = torch.zeros(len(clips), most, frames, height, width, dtype=torch.bool)
    valid = torch.zeros(len(clips), most, dtype=torch.bool)
    class_ids = torch.full((len(clips), most), -1, dtype=torch.int64)
    for row, clip in enumerate(clips):
        count = len(clip.masks)
        masks[row, :count] = torch.from_numpy(clip.masks)
        valid[row, :count] = True
        class_ids[row, :count] = torch.from_numpy(clip.class_ids)
    images = torch.from_numpy(np.stack([clip.images for clip in clips]))
    first = clips[0]
    return Batch(
        images, masks, valid, class_ids, first.exhaustive, first.head, [clip.source for clip in clips], skipped
    )


class ClipBatches(Dataset[Batch]):
    """Batch k of the schedule, computed on demand.

    `batch`: clips of the global batch. It is cut into world * parts equal blocks; index k * parts + p of rank r is
    block r * parts + p of batch k, so ranks and accumulation steps together see the same clips as one process.
    `bank`: where pasted objects come from (default: every source of real images).
    Raises ClipDataError for impossible numbers.
    """

    attempts = 10  # items tried for one clip before giving up

    def __init__(
        self,
        sources: Sequence[Source],
        config: ClipConfig,
        seed: int,
        batch: int,
        *,
        bank: Bank | None = None,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if not sources or min(source.weight for source in sources) < 0 or not sum(s.weight for s in sources) > 0:
            raise ClipDataError(f"{len(sources)} sources with weights {[source.weight for source in sources]}")
        if min(batch, world, parts) < 1 or batch % (world * parts) or not 0 <= rank < world:
            raise ClipDataError(f"batch {batch} over world {world} x parts {parts}, rank {rank}")
        if seed < 0:
            raise ClipDataError(f"seed {seed}: need a whole number >= 0")
        self.sources, self.config, self.seed = tuple(sources), config, seed
        used = [source.reader for source in sources if source.weight > 0]  # 0 leaves a source out, its cut-outs as well
        real = [reader for reader in used if reader.head != "sim"]  # photographed edges and light
        self.bank = bank if bank is not None else Bank(real or used)
        self.block, self.first, self.parts = batch // (world * parts), rank * parts, parts
        weights = np.array([source.weight for source in sources], float)
        self._share = weights / weights.sum()

    def source_of(self, k: int) -> int:
        """Index of the one source of batch k."""
        # with a third number: NumPy fills seeds up with zeros, and [seed, k] would be the stream of the first clip
        return int(np.random.default_rng([self.seed, k, CHOICE]).choice(len(self.sources), p=self._share))

    def __getitem__(self, index: int) -> Batch:
        k, part = divmod(index, self.parts)
        source = self.sources[self.source_of(k)]
        start = (self.first + part) * self.block
        skipped: list[str] = []
        self.bank.skipped.clear()
        clips = [self._clip(source, k, start + row, skipped) for row in range(self.block)]
        return collate(clips, tuple(skipped + self.bank.skipped))

    def _clip(self, source: Source, k: int, row: int, skipped: list[str]) -> Clip:
        for attempt in range(self.attempts):
            rng = np.random.default_rng([self.seed, k, row, attempt])
            item = int(rng.integers(len(source.reader)))
            try:
                return make_clip(source.reader, item, rng, source.configure(self.config), self.bank)
            except ClipDataError as error:
                skipped.append(str(error))
        raise ClipDataError(
            f"{source.reader.name}: {self.attempts} items in a row unreadable, the last ones: {skipped[-3:]}"
        )


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class BatchLoader:
    """Iterates the batches first, first+1, ... of a schedule with worker processes.

    Bad items are named in the log and collected in `skipped`; more than `max_skipped` different ones raise
    ClipDataError. One that is met again and again counts once.
    workers = 0 computes in this process. Batches come in order whatever the number of workers.
    """

    def __init__(
        self, batches: ClipBatches, first: int, last: int, *, workers: int = 1, prefetch: int = 4, max_skipped: int = 50
    ) -> None:
        self.max_skipped = max_skipped
        self.skipped: dict[str, None] = {}  # in the order in which they were met
        if workers == 0:
            cv2.setNumThreads(0)
        self._loader: DataLoader[Batch] = DataLoader(
            batches,
            batch_size=None,
            sampler=range(first * batches.parts, last * batches.parts),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            worker_init_fn=_quiet_worker,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._computed():
            for message in batch.skipped:
                if message not in self.skipped:
                    self.skipped[message] = None
                    log.warning("bad item %d: %s", len(self.skipped), message)
            if len(self.skipped) > self.max_skipped:
                raise ClipDataError(
                    f"{len(self.skipped)} bad items, limit {self.max_skipped}; the last: {batch.skipped[-1]}"
                )
            yield batch

    def _computed(self) -> Iterator[Batch]:
        """The batches as they come. Raises ClipDataError, a worker's without the lines of its traceback."""
        try:
            yield from self._loader
        except ClipDataError as error:
            raise ClipDataError(str(error).rsplit(f"{ClipDataError.__name__}: ", 1)[-1].strip()) from error
