"""The buffer of ID vectors: which rows of B are in use, which may be taken next (Alg. 1 l. 16-18, A10, A18)."""

from collections import deque
from typing import Any

import numpy as np

from ausm.errors import CapacityError


class SlotBuffer:
    """Rows ("slots") of B. Invariant: every slot is in exactly one of `used` and the free queue.

    Fresh slots come in a random order (Sampler, seeded); freed slots queue up least recently freed first, and one that
    was freed less than `cool_down` frames ago is taken only if nothing else is left, because the pixel state still
    holds its trace.
    """

    def __init__(self, N_id: int, cool_down: int, seed: int) -> None:
        self.N_id = N_id
        self.cool_down = cool_down
        order = np.random.default_rng(seed).permutation(N_id)
        self._free: deque[tuple[int, int]] = deque((int(s), -(10**9)) for s in order)  # (slot, frame freed)
        self.used: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    def cooled(self, frame: int) -> int:
        """Free slots whose cool-down is over at `frame`."""
        return sum(frame - freed >= self.cool_down for _, freed in self._free)

    def take(self, n: int) -> list[int]:
        """n slots, least recently freed first. Raises CapacityError and takes none if fewer are free."""
        if n > len(self._free):
            raise CapacityError(f"{n} ID vectors asked for, {len(self._free)} of N_id={self.N_id} free")
        taken = [self._free.popleft()[0] for _ in range(n)]
        self.used.update(taken)
        return taken

    def release(self, slot: int, frame: int) -> None:
        """Put a slot back; it comes up again after all slots freed before it."""
        self.used.remove(slot)
        self._free.append((slot, frame))

    def state_dict(self) -> dict[str, Any]:
        return {"free": list(self._free), "used": sorted(self.used)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._free = deque((int(s), int(f)) for s, f in state["free"])
        self.used = {int(s) for s in state["used"]}
