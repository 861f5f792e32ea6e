"""Read weights out of a pickle without running what it asks for: arrays, numbers and plain containers only.

Detectron2 hands out its models as pickles of NumPy arrays. Pickle's own loader calls any function that the file names;
this one knows eight names, and what stands behind them is its own.
"""

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ausm.errors import CheckpointError

_NUMBERS = re.compile(r"[<>|=]?[biuf][1248]|bool")


class _Type:
    """Stands in for numpy.dtype: a number type, nothing with objects or fields in it."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise CheckpointError(f"pickle holds an array of type {code!r}, only numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray while its parts arrive (`_reconstruct`, then its state)."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.array = _build(data, kind, shape, "F" if fortran else "C")


def _build(data: Any, kind: Any, shape: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray | str):
        raise CheckpointError(f"pickle holds an array of {type(data).__name__}, only numbers are read")
    raw = data.encode("latin1") if isinstance(data, str) else data
    flat = np.frombuffer(raw, kind.dtype).astype(kind.dtype.newbyteorder("="))
    if any(n < 0 for n in shape) or int(np.prod(shape, dtype=object)) != flat.size:
        raise CheckpointError(f"pickle holds an array of shape {shape} with {flat.size} numbers")
    array: np.ndarray = flat.reshape(tuple(shape), order=order)
    return array


def _scalar(kind: Any, data: Any) -> Any:
    return _build(data, kind, ()).item()


def _encode(text: str, codec: str) -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise CheckpointError(f"pickle asks for the text codec {codec!r}, expected latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """b"" is written as a call of bytes() in protocol 2; a call with a number would allocate that much."""
    return b""


_KNOWN: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "_reconstruct": _Array,  # of numpy.core.multiarray, since NumPy 2 numpy._core.multiarray
    "scalar": _scalar,
    "_frombuffer": _build,  # of numpy._core.numeric, pickle protocol 5
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}
_NUMPY = re.compile(r"numpy\._?core\.(multiarray|numeric)")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = name if _NUMPY.fullmatch(module) else f"{module}.{name}"
        if key not in _KNOWN:
            raise CheckpointError(f"pickle asks for {module}.{name}: only arrays, numbers and containers are read")
        return _KNOWN[key]


def read_pickle(path: Path) -> Any:
    """What the pickle holds. Raises CheckpointError if it is broken or asks for anything but arrays and containers."""
    try:
        return _finish(_Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a broken pickle fails in many ways: EOFError, UnpicklingError, IndexError...
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is no readable pickle: {error!r}") from error


def _finish(value: Any) -> Any:
    """Replace the stand-ins inside containers by what they stand for."""
    if isinstance(value, _Array):
        if value.array is None:
            raise CheckpointError("pickle holds an array without its numbers")
        return value.array
    if isinstance(value, dict):
        return {k: _finish(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finish(v) for v in value)
    return value
