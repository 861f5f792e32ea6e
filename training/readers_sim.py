"""Simulated clips on disk (`training.sim_store`): exact masks, every object labelled, classes known."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from training.clips import ClipDataError
from training.readers import MAX_OBJECTS, RawClip, bits_of_labels, check_frames


class ClipStore(Protocol):
    """What is read of a store of simulated clips; `training.sim_store.SimClips` is one."""

    def __len__(self) -> int: ...

    def name(self, item: int) -> str: ...

    def length(self, item: int) -> int: ...

    def meta(self, item: int) -> dict[str, Any]: ...

    def load(
        self, item: int, start: int, length: int, stride: int
    ) -> tuple[np.ndarray, np.ndarray, dict[int, int]]: ...


class SimReader:
    """A store of simulated clips as a reader. `exclude`: item names kept for judging, as
    `item_name` tells them: clip_00000012.npz is "12", in a sub-folder "night/12".

    alone: of every scene only the object that it hides is labelled, as when an operator prompts one thing among many.
    The clips must be of a scenario that hides one.
    """

    head = "sim"

    def __init__(
        self, store: ClipStore, *, name: str = "sim", exclude: Collection[str] = (), alone: bool = False
    ) -> None:
        self.name, self._store, self._alone = name, store, alone
        self.exhaustive = not alone
        self._items = [item for item in range(len(store)) if store.name(item) not in exclude]
        if not self._items:
            raise ClipDataError(f"{name}: no simulated clip is left to train on")

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, item: int) -> str:
        return self._store.name(self._items[item])

    def length(self, item: int) -> int:
        with self._named(item):
            return self._store.length(self._items[item])

    def absence(self, item: int) -> tuple[int, int] | None:
        """Frames [start, stop) in which the object that the clip hides is out of sight; None of other scenarios.

        Raises ClipDataError.
        """
        with self._named(item):
            hidden = self._store.meta(self._items[item]).get("hidden")
            return None if hidden is None else (int(hidden[0]), int(hidden[1]))

    def _target(self, item: int) -> int:
        """The label of the object that the clip hides. Raises ClipDataError."""
        about = self._store.meta(self._items[item])
        if "target" not in about:
            raise ClipDataError(f"{self.name}/{self.item_name(item)}: hides no object, so none can be labelled alone")
        return int(about["target"])

    @contextmanager
    def _named(self, item: int) -> Iterator[None]:
        """Whatever is wrong with a clip is told with its name."""
        try:
            yield
        except ClipDataError:
            raise
        except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile) as error:
            raise ClipDataError(f"{self.name}/{self.item_name(item)}: {error!r}") from error

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Frames in the given order. Raises ClipDataError."""
        check_frames(self, item, frames)
        first, last = min(frames), max(frames)
        steps = np.abs(np.diff(frames))
        stride = int(np.gcd.reduce(steps)) if steps.any() else 1
        with self._named(item):
            images, labels, class_of = self._store.load(self._items[item], first, (last - first) // stride + 1, stride)
            values = [self._target(item)] if self._alone else sorted(class_of)[:MAX_OBJECTS]
            classes = np.array([class_of[value] for value in values], np.int64)
        order = [(frame - first) // stride for frame in frames]
        bits = [bits_of_labels(labels[index], values) for index in order]
        return RawClip([images[index] for index in order], bits, classes)


def sim(root: Path, *, name: str = "sim", exclude: Collection[str] = (), alone: bool = False) -> SimReader:
    """The clips that `ausm simulate` wrote under `root`. Raises ClipDataError."""
    from training.sim_store import SimClips

    if not Path(root).is_dir():
        raise ClipDataError(f"{root}: no such folder")
    return SimReader(SimClips(root), name=name, exclude=exclude, alone=alone)
