"""One number for all masks of a recording: equal hashes mean equal masks, bit by bit."""

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from ausm_ros.messages import to_ns
from ausm_ros.msg import InstanceArray


class MaskHash:
    """sha256 over (stamp, track id, box, run lengths) of every drawn mask, in order of stamp and id."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, message: InstanceArray) -> None:
        """The next message; timings, scores and names do not count."""
        stamp = to_ns(message.header.stamp)
        for i in message.instances:
            if not len(i.mask.runs):
                continue
            roi = i.mask.roi
            box = roi.x_offset, roi.y_offset, roi.width, roi.height
            self._hash.update(struct.pack("<qI4II", stamp, i.track_id, *box, len(i.mask.runs)))
            self._hash.update(np.asarray(i.mask.runs, "<u4").tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def hash_of(messages: Iterable[InstanceArray]) -> str:
    """The hash of a whole recording."""
    result = MaskHash()
    for message in messages:
        result.add(message)
    return result.hexdigest()
