"""Records of a large annotation file as one buffer, which forked data workers share.

A list of Python objects is shared only until it is read: every look changes a reference count, and with it the page is
copied, until each worker has all annotations of its own.
"""

import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np


class Packed:
    """A read-only list; every item is made anew when it is asked for."""

    def __init__(self, records: Iterable[Any]) -> None:
        blobs = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0] + [len(blob) for blob in blobs])
        self._data = memoryview(b"".join(blobs))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return pickle.loads(self._data[self._ends[index] : self._ends[index + 1]])  # made here, not read
