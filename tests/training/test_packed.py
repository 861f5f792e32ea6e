"""Annotations in one buffer: what goes in comes out, and reading leaves no page of it changed."""

import sys

import pytest

from training.packed import Packed

RECORDS = [[(3, [[1.5, 2.5, 3.5]]), (-1, {"size": [4, 5], "counts": "abc"})], [], "text", None]


def test_records_come_back_as_they_were() -> None:
    packed = Packed(iter(RECORDS))
    assert len(packed) == 4 and [packed[i] for i in range(4)] == RECORDS
    for outside in (-1, 4):
        with pytest.raises(IndexError, match=f"record {outside} of 4"):
            packed[outside]
    assert len(Packed([])) == 0


def test_reading_makes_new_objects() -> None:
    """Whose reference counts lie elsewhere: what is shared among forked processes is not written to."""
    packed = Packed([["a", "b"]])
    first = packed[0]
    first.append("c")
    assert packed[0] == ["a", "b"] and sys.getrefcount(packed[0]) <= 2
