"""Memory of the process: how much is resident, and giving back what is free."""

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

M_ARENA_MAX = -8  # of glibc's malloc.h


def resident_bytes() -> int:
    """Memory of this process now; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def share_one_heap() -> None:
    """All threads allocate from one heap, to be called before there are threads.

    glibc gives each thread a heap of its own and never returns the free end of one, so that resident memory wanders
    with the thread that happens to load a model. The threads of the node hardly ever allocate at the same time.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if tune is not None and "MALLOC_ARENA_MAX" not in os.environ:
        tune(M_ARENA_MAX, 1)


def give_back() -> None:
    """Collects what nothing refers to, and returns free memory to the system, which glibc does not do by itself."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
