"""ID vectors and public ids: random lives against a plain model of what the rules say."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ausm.errors import CapacityError, InputError, UnknownIdError
from ausm.ids import SlotBuffer
from ausm.records import Roster
from ausm.tracks import Source, TrackState

LIVES = settings(max_examples=60, deadline=None, derandomize=True)


@LIVES
@given(st.integers(1, 20), st.integers(0, 9), st.lists(st.integers(-6, 6), max_size=60))
def test_slots_come_back_least_recently_freed(N_id: int, seed: int, moves: list[int]) -> None:
    """moves: n > 0 takes n slots, n < 0 frees -n, one frame each."""
    buffer = SlotBuffer(N_id, seed)
    freed: list[int] = []  # free slots that were in use before, longest free first
    fresh = set(range(N_id))
    held: list[int] = []
    for n in moves:
        if n > buffer.free:
            with pytest.raises(CapacityError, match=f"{n} ID vectors asked for, {buffer.free} of N_id={N_id} free"):
                buffer.take(n)
        elif n > 0:
            taken = buffer.take(n)
            again = max(n - len(fresh), 0)  # those never used come first
            assert set(taken[: n - again]) <= fresh and taken[n - again :] == freed[:again]
            fresh, freed, held = fresh - set(taken), freed[again:], held + taken
        for slot in held[: max(-n, 0)]:
            buffer.release(slot)
            freed.append(slot)
        held = held[max(-n, 0) :]
        assert buffer.used == set(held) and buffer.free == N_id - len(held)
        assert buffer.used.isdisjoint(buffer._free)


def test_snapshots_that_tell_when_a_slot_was_freed_still_load() -> None:
    buffer = SlotBuffer(4, seed=0)
    buffer.load_state_dict({"free": [(2, -1000000000), (0, 7)], "used": [1, 3]})
    assert buffer.state_dict() == {"free": [2, 0], "used": [1, 3]} and buffer.take(2) == [2, 0]


def test_a_seed_below_zero_is_told() -> None:
    with pytest.raises(InputError, match="seed -1: need a whole number >= 0"):
        SlotBuffer(4, -1)


def test_fresh_slots_come_in_the_order_of_the_seed() -> None:
    orders = [SlotBuffer(50, seed).take(50) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(50))


@LIVES
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80), st.integers(1, 8))
def test_public_ids_only_grow_and_a_slot_has_one_owner(moves: list[tuple[bool, int]], capacity: int) -> None:
    roster = Roster(10, capacity, seed=1)
    issued: list[int] = []
    for frame, (born, k) in enumerate(moves):
        if born and len(roster) < capacity:
            issued.append(roster.birth(Source(k % 2), "", frame).track_id)
        elif born:
            with pytest.raises(CapacityError, match=f"{capacity} live objects, capacity {capacity}"):
                roster.birth(Source.DISCOVERED, "", frame)
        elif len(roster):
            gone = roster.records[k % len(roster)]
            roster.retire(gone)
            with pytest.raises(UnknownIdError, match=f"no live object has id {gone.track_id}"):
                roster.by_id(gone.track_id)
        assert all(a < b for a, b in pairwise(issued))
        assert {r.slot for r in roster.records} == roster.slots.used and len(roster.slots.used) == len(roster)
        copy = Roster(10, capacity, seed=1)
        copy.load_state_dict(roster.state_dict())
        assert copy.state_dict() == roster.state_dict() and copy.next_id == len(issued) + 1


def test_who_gives_way() -> None:
    roster = Roster(10, 4, seed=0)
    prompt, old, weak, strong = (roster.birth(Source(k == 0), "", 0) for k in range(4))
    for record, frame, score in ((prompt, 0, 0.1), (old, 3, 0.9), (weak, 5, 0.2), (strong, 5, 0.8)):
        record.see(frame, score, None, 1)
    ids = [r.track_id for r in (old, weak, strong)]
    assert [r.track_id for r in roster.to_retire(9, 5, visible_too=True)] == ids  # never the prompted one
    assert [r.track_id for r in roster.to_retire(2, 5, visible_too=True)] == ids[:2]
    assert [r.track_id for r in roster.to_retire(2, 5, visible_too=False)] == ids[:1]
    roster.retire(old)
    assert roster.to_retire(1, 5, visible_too=True) == []
    roster.check_room(3)
    with pytest.raises(CapacityError, match="4 objects prompted, 1 prompted ones live, capacity 4"):
        roster.check_room(4)


def test_states_of_a_record() -> None:
    record = Roster(4, 4, seed=0).birth(Source.DISCOVERED, "", 7)
    record.tentative = True
    record.see(7, 0.5, None, birth_hits=2)
    assert record.state(7) == TrackState.TENTATIVE and record.state(8) == TrackState.LOST
    record.see(9, 0.6, None, birth_hits=2)
    assert record.state(9) == TrackState.TRACKED and (record.hits, record.score) == (2, 0.6)
