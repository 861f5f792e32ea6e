"""Checkpoints: one safetensors file whose metadata holds the model's sizes and the manifest (data, recipe, scores)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ausm.config import PRESETS, AusmConfig, config_from_dict, config_to_dict
from ausm.errors import CheckpointError
from ausm.inference import mark_constant
from ausm.model import AUSM

CHECKPOINTS = Path(__file__).parent / "checkpoints"  # released ones, package data
FORMAT = "ausm-1"
DIGEST = "tensors_sha256"  # of the metadata; files from before it lack it and are taken as they are


def resolve(name_or_path: str | Path) -> Path:
    """Path of a released checkpoint by name ("nano") or of a file. Raises CheckpointError if there is none."""
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or path.is_file():
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} does not exist")
        return path
    released = CHECKPOINTS / f"{name_or_path}.safetensors"
    if not released.is_file():
        known = sorted(p.stem for p in CHECKPOINTS.glob("*.safetensors"))
        raise CheckpointError(f"no checkpoint {str(name_or_path)!r}: neither a file nor one of the released {known}")
    return released


def save(path: str | Path, model: AUSM, manifest: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    """Write weights (matrices and kernels as fp16, the rest as fp32), sizes and manifest; replaces `path` atomically.

    `tensors`: other values for the model's state dict, such as its moving average.
    """
    state = tensors if tensors is not None else model.state_dict()
    packed = {k: _storage(k, v) for k, v in state.items()}
    meta = {
        "format": FORMAT,
        "config": json.dumps(config_to_dict(model.config)),
        "manifest": json.dumps(manifest),
        DIGEST: _digest(packed),
    }
    path = Path(path)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # one that a kill left may be nobody else's to read
    partial.touch()
    mode = partial.stat().st_mode  # as files are made here; safetensors lets nobody else read its own
    save_file(packed, partial, metadata=meta)
    partial.chmod(mode)
    partial.replace(path)


def licensed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that says what binds its weights: itself, or the nearest that it began with and that has
    a licence ("init", one in the other); {} where none has."""
    level: Any = manifest
    while isinstance(level, dict) and not level.get("licence"):
        level = level.get("init")
    return level if isinstance(level, dict) else {}


def _storage(name: str, value: Tensor) -> Tensor:
    """fp16 keeps 11 bits, enough for weights; what enters an exponential or a normalisation stays fp32."""
    value = value.detach().cpu().contiguous()
    if value.is_floating_point():
        half = value.ndim >= 2 and not name.endswith("A_log")
        return value.to(torch.float16 if half else torch.float32)
    return value


def _digest(tensors: dict[str, Tensor]) -> str:
    """Hex digest of names, types, shapes and values, whatever their order: tells damage that still reads as numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: str | Path) -> tuple[AusmConfig, dict[str, Any]]:
    """Sizes and manifest of a checkpoint, without its tensors. Raises CheckpointError."""
    path = resolve(path)
    meta = _header(path)
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {meta.get('format')!r}, this version reads {FORMAT!r}")
    try:
        config, manifest = config_from_dict(json.loads(meta["config"])), json.loads(meta["manifest"])
        if not isinstance(manifest, dict):
            raise TypeError(f"its manifest is a {type(manifest).__name__}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} has unusable metadata: {error}") from error
    return config, manifest


def _build(config: AusmConfig, path: Path) -> AUSM:
    """The model of these sizes, untrained. Raises CheckpointError where there is none: they come from a file."""
    try:
        return AUSM(config)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"checkpoint {path}: no model has its sizes ({error})") from error


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {error}") from error


def load(name_or_path: str | Path, device: str = "auto", weights: bool = True, fuse: bool = True) -> AUSM:
    """The model of a checkpoint, in eval mode. `weights=False`: a preset by name with random weights (for tests).

    `fuse`: its streams on a CPU run a faster copy (`ausm.inference`), so its weights must not be changed afterwards.
    """
    target = resolve_device(device)
    if not weights:
        if name_or_path not in PRESETS:
            raise CheckpointError(f"no preset {str(name_or_path)!r}, presets are {sorted(PRESETS)}")
        model = AUSM(PRESETS[str(name_or_path)]()).eval().to(target)
        seeds = model.pixel_decoder.seeds
        if seeds is not None and seeds.score.bias is not None:
            nn.init.zeros_(seeds.score.bias)  # untrained seeds say no everywhere: nothing would ever be found
        return mark_constant(model) if fuse else model
    path = resolve(name_or_path)
    config, _ = read_metadata(path)
    model = _build(config, path)
    load_into(model, path)
    model = model.eval().to(target)
    return mark_constant(model) if fuse else model


def load_into(model: AUSM, path: Path) -> None:
    """Strict: every key and shape must agree, and the values with the digest saved beside them. Raises CheckpointError
    naming what does not."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {error}") from error
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    ]
    if missing or extra or shapes:
        raise CheckpointError(
            f"checkpoint {path} does not fit {model.config.name}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    broken = sorted(k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all()))
    if broken:
        raise CheckpointError(
            f"checkpoint {path}: {len(broken)} of {len(state)} tensors hold NaN or infinity: {broken[:3]}"
        )
    expected, found = _header(path).get(DIGEST), _digest(state)
    if expected not in (None, found):
        raise CheckpointError(
            f"checkpoint {path} is damaged: its tensors have sha256 {found[:12]}, when saved {str(expected)[:12]}"
        )
    model.load_state_dict(state)


def resolve_device(device: str) -> torch.device:
    """device "auto": the first CUDA device if there is one, else the CPU. CheckpointError for a device not present."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return target


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def describe(name_or_path: str | Path) -> dict[str, Any]:
    """What a checkpoint is: preset, sizes, digest, and its manifest (recipe, data, licence, scores)."""
    path = resolve(name_or_path)
    config, manifest = read_metadata(path)
    model = _build(config, path)
    return manifest | {  # what is measured here, after what the file says of itself
        "name": path.stem,
        "preset": config.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "config": config_to_dict(config),
    }
