"""Compile the C++ of `ausm/csrc` on first use and load it: no build step at install time, no compiler needed to run.

The library has a plain C interface (no torch headers: seconds to compile, indifferent to torch's version) and is kept
in `$XDG_CACHE_HOME/ausm` (~/.cache/ausm) under a name that holds the hash of sources, compiler, flags and CPU. Without
a working compiler `library()` is None, one line is logged, and callers use their PyTorch path. `AUSM_NATIVE=0` switches
it off.
"""

import ctypes
import functools
import glob
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

LOG = logging.getLogger("ausm")
SOURCES = Path(__file__).parent / "csrc"
# Trapping math off lets comparisons vectorise. No -ffast-math: it would break rounding tricks and swallow NaN.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w"]

POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class Held:
    """A pointer argument that keeps the tensor it points into alive until the call is over; None = null."""

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor, self._as_parameter_ = tensor, POINTER(None if tensor is None else tensor.data_ptr())


def threads() -> ctypes.c_int:
    """How many threads a kernel is to use."""
    return INT(torch.get_num_threads())


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The loaded library, compiled now if the cache has none; None where it is switched off or cannot be built."""
    if os.environ.get("AUSM_NATIVE", "1") == "0":
        return None
    try:
        return _load(build())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        LOG.warning("no native kernels, the slower PyTorch path is used: %s", str(error).strip().splitlines()[0])
        return None


def build() -> Path:
    """The shared library's path in the cache; compiles when absent. RuntimeError without a compiler or if it fails."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "c++"))), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler (g++ or clang++) on the PATH")
    runtime = _torch_openmp()
    target = cache_dir() / f"native-{_key(compiler, runtime)}.so"
    if not target.exists():
        _compile(compiler, runtime, target)
    return target


def cache_dir() -> Path:
    """Where compiled libraries are kept; a private temporary folder where the home is not writable."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "ausm"
    try:
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="ausm-native-"))


def _compile(compiler: str, runtime: str | None, target: Path) -> None:
    """Compile beside the target and rename: processes that compile at once each install a whole library."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        parts = []
        for source in sorted(SOURCES.glob("*.cpp")):
            parts.append(f"{folder}/{source.stem}.o")
            _call([compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", parts[-1]])
        # With torch's own OpenMP runtime the symbols are left open and bind to it at load: one thread pool, not two.
        link = [] if runtime else ["-fopenmp"]
        _call([compiler, "-shared", *parts, *link, "-o", f"{folder}/library.so"])
        os.replace(f"{folder}/library.so", target)


def _call(command: list[str]) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed with status {result.returncode}: {result.stderr.strip()[:500]}")


def _load(path: Path) -> ctypes.CDLL:
    runtime = _torch_openmp()
    if runtime:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


@functools.lru_cache(maxsize=1)
def _torch_openmp() -> str | None:
    """The libgomp inside torch's wheel. A second runtime beside it would spin for the same cores."""
    root = Path(torch.__file__).parent
    found = sorted(glob.glob(f"{root}/lib/libgomp*.so*") + glob.glob(f"{root}.libs/libgomp*.so*"))
    return found[0] if found else None


def _key(compiler: str, runtime: str | None) -> str:
    version = subprocess.run([compiler, "--version"], check=False, capture_output=True, text=True).stdout
    digest = hashlib.sha256()
    for text in (version, " ".join(FLAGS), str(runtime), platform.machine(), _cpu_flags()):
        digest.update(text.encode() + b"\0")
    for source in sorted(path for path in SOURCES.iterdir() if path.is_file()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


def _cpu_flags() -> str:
    """The instruction sets that -march=native sees: a cache shared by two machines must not mix them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
