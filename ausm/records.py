"""What a stream remembers of its live objects: fixed-size records in a roster that owns ids and slots."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ausm.errors import CapacityError, UnknownIdError
from ausm.ids import SlotBuffer
from ausm.tracks import Source, Track, TrackState


@dataclass
class Record:
    """One live object. `slot` is its row of B; `track_id` is public and never reused before a reset."""

    track_id: int
    slot: int
    source: Source
    name: str
    first_frame: int
    last_frame: int
    hits: int = 0  # frames it was seen on
    score: float = 0.0
    tentative: bool = False
    class_sum: list[float] = field(default_factory=list)  # class probabilities summed over the frames it was seen on

    @property
    def pinned(self) -> bool:
        """Prompted objects are never retired to make room."""
        return self.source == Source.PROMPT

    def see(self, frame: int, score: float, class_p: np.ndarray | None, birth_hits: int) -> None:
        """Count a frame on which the object is visible."""
        self.last_frame = frame
        self.hits += 1
        self.score = score
        if self.hits >= birth_hits:
            self.tentative = False
        if class_p is not None:
            before = np.asarray(self.class_sum) if self.class_sum else np.zeros_like(class_p)
            self.class_sum = (before + class_p).tolist()

    def state(self, frame: int) -> TrackState:
        if self.last_frame < frame:
            return TrackState.LOST
        return TrackState.TENTATIVE if self.tentative else TrackState.TRACKED

    def track(self, frame: int, mask: np.ndarray, state: TrackState, class_names: tuple[str, ...]) -> Track:
        """The public view at `frame`."""
        class_id, class_score = -1, 0.0
        if self.class_sum:
            class_id = int(np.argmax(self.class_sum))
            class_score = self.class_sum[class_id] / sum(self.class_sum)  # each frame adds probabilities of sum 1
        return Track(
            track_id=self.track_id,
            mask=mask,
            score=self.score,
            class_id=class_id,
            class_name=class_names[class_id] if 0 <= class_id < len(class_names) else "",
            class_score=class_score,
            state=state,
            source=self.source,
            name=self.name,
            first_frame=self.first_frame,
            last_frame=self.last_frame,
            age=frame - self.first_frame + 1,
            # an object that a prompt covers on the very frame it was seen on is not in view either
            frames_since_seen=max(frame - self.last_frame, int(state == TrackState.LOST)),
        )


class Roster:
    """The live objects of one stream. Invariant: one record per used slot; public ids only grow."""

    def __init__(self, N_id: int, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.slots = SlotBuffer(N_id, seed)
        self.records: list[Record] = []
        self.next_id = 1

    def __len__(self) -> int:
        return len(self.records)

    def by_id(self, track_id: int) -> Record:
        """Raises UnknownIdError with the ids that are live."""
        for record in self.records:
            if record.track_id == track_id:
                return record
        live = [r.track_id for r in self.records]
        raise UnknownIdError(f"no live object has id {track_id}; live ids: {live[:20]} ({len(live)} in all)")

    def check_room(self, n: int) -> None:
        """Raises CapacityError if n more prompted objects cannot fit even when every discovered one gives way."""
        pinned = sum(r.pinned for r in self.records)
        if n + pinned > self.capacity:
            raise CapacityError(f"{n} objects prompted, {pinned} prompted ones live, capacity {self.capacity}")

    def to_retire(self, n: int, frame: int, visible_too: bool) -> list[Record]:
        """Discovered objects that must go for n new ones: longest unseen first, then, for prompts, the lowest scores.

        May be fewer than needed when only unseen ones may go.
        """
        excess = len(self.records) + n - self.capacity
        candidates = [r for r in self.records if not r.pinned and (visible_too or r.last_frame < frame)]
        candidates.sort(key=lambda r: (r.last_frame, r.score))
        return candidates[: max(excess, 0)]

    def birth(self, source: Source, name: str, frame: int) -> Record:
        """A new object on a fresh slot (Alg. 1 l. 16-18)."""
        if len(self.records) >= self.capacity:
            raise CapacityError(f"{len(self.records)} live objects, capacity {self.capacity}")
        record = Record(self.next_id, self.slots.take(1)[0], source, name, frame, frame)
        self.next_id += 1
        self.records.append(record)
        return record

    def retire(self, record: Record) -> None:
        self.records.remove(record)
        self.slots.release(record.slot)

    def forget_classes(self) -> None:
        """Start to sum class probabilities anew, for another head."""
        for record in self.records:
            record.class_sum = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "records": [asdict(r) for r in self.records],
            "slots": self.slots.state_dict(),
            "next_id": self.next_id,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records = [Record(**{**r, "class_sum": list(r["class_sum"])}) for r in state["records"]]
        self.slots.load_state_dict(state["slots"])
        self.next_id = state["next_id"]
