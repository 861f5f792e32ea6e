"""The buffer of ID vectors: which rows of B are in use, which may be taken next (Alg. 1 l. 16-18, A10, A18)."""

from collections import deque
from typing import Any

import numpy as np

from ausm.errors import CapacityError, InputError


class SlotBuffer:
    """Rows ("slots") of B. Invariant: every slot is in exactly one of `used` and the free queue.

    Fresh slots come in a random order (Sampler, seeded); freed slots queue up behind them, least recently freed first:
    the pixel state still holds the trace of a freed slot, so each rests for as long as any other is free.
    """

    def __init__(self, N_id: int, seed: int) -> None:
        if seed < 0:
            raise InputError(f"seed {seed}: need a whole number >= 0")
        self.N_id = N_id
        self._free: deque[int] = deque(np.random.default_rng(seed).permutation(N_id).tolist())
        self.used: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, n: int) -> list[int]:
        """n slots, least recently freed first. Raises CapacityError and takes none if fewer are free."""
        if n > len(self._free):
            raise CapacityError(f"{n} ID vectors asked for, {len(self._free)} of N_id={self.N_id} free")
        taken = [self._free.popleft() for _ in range(n)]
        self.used.update(taken)
        return taken

    def release(self, slot: int) -> None:
        """Put a slot back; it comes up again after all slots freed before it."""
        self.used.remove(slot)
        self._free.append(slot)

    def state_dict(self) -> dict[str, Any]:
        return {"free": list(self._free), "used": sorted(self.used)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # older snapshots hold pairs: the slot and the frame it was freed at
        self._free = deque(s if isinstance(s, int) else s[0] for s in state["free"])
        self.used = {int(s) for s in state["used"]}
