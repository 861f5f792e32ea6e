"""Memory of the process: how much is resident, and giving back what is free."""

import ctypes
import gc
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process now; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Collects what nothing refers to, and returns free memory to the system.

    glibc keeps what threads freed in heaps of their own, one for each; without a word from us they stay resident.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
