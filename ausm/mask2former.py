"""Weights of others in our names: Mask2Former COCO-instance models with Swin, and ImageNet Swin (stage 1 starts there).

Strict both ways: every tensor of theirs is used or known to have no use here, every tensor of ours is filled or known
to be new in AUSM; otherwise CheckpointError lists all that do not match. Traps: Detectron2's Swin merges patches at the
end of a stage, timm's at the start of the next; Detectron2's Swin has a norm per output.
"""

import argparse
import pickle
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ausm import weights
from ausm.config import PRESETS
from ausm.errors import CheckpointError
from ausm.model import AUSM
from ausm.unpickle import read_pickle

# Name patterns, theirs -> ours. Groups are copied; `{n+1}` shifts the patch merging, `{n*2}` counts activations.
_SWIN = [
    (r"patch_embed\.(.+)", r"backbone.body.patch_embed.\1"),
    (r"layers\.(\d)\.blocks\.(.+)", r"backbone.body.layers_\1.blocks.\2"),
]
_HEAD, _PREDICTOR = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
_MASK2FORMER = [
    *((rf"backbone\.{theirs}", ours) for theirs, ours in _SWIN),
    (r"backbone\.layers\.(\d)\.downsample\.(.+)", r"backbone.body.layers_{\1+1}.downsample.\2"),
    (r"backbone\.norm(\d)\.(.+)", r"backbone.norms.\1.\2"),
    (_HEAD + r"input_proj\.(.+)", r"neck.input_proj.\1"),
    (_HEAD + r"transformer\.level_embed", r"neck.level_embed"),
    (_HEAD + r"transformer\.encoder\.layers\.(.+)", r"neck.layers.\1"),
    (_HEAD + r"adapter_1\.weight", r"pixel_decoder.mask_features.lateral.0.weight"),
    (_HEAD + r"adapter_1\.norm\.(.+)", r"pixel_decoder.mask_features.lateral.1.\1"),
    (_HEAD + r"layer_1\.weight", r"pixel_decoder.mask_features.output.0.weight"),
    (_HEAD + r"layer_1\.norm\.(.+)", r"pixel_decoder.mask_features.output.1.\1"),
    (_HEAD + r"mask_features\.(.+)", r"pixel_decoder.mask_features.mask_features.\1"),
    (_PREDICTOR + r"(?:query_feat|static_query)\.weight", r"pixel_decoder.query_feat.weight"),  # old and new name
    (_PREDICTOR + r"(query_embed|level_embed)\.weight", r"pixel_decoder.\1.weight"),
    (
        _PREDICTOR + r"transformer_(cross|self)_attention_layers\.(\d)\.(?:multihead_attn|self_attn)\.(.+)",
        r"pixel_decoder.layers.\2.\1_attn.\3",
    ),
    (
        _PREDICTOR + r"transformer_(cross|self)_attention_layers\.(\d)\.norm\.(.+)",
        r"pixel_decoder.layers.\2.norm_\1.\3",
    ),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d)\.norm\.(.+)", r"pixel_decoder.layers.\1.norm_ffn.\2"),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d)\.(.+)", r"pixel_decoder.layers.\1.ffn.\2"),
    (_PREDICTOR + r"decoder_norm\.(.+)", r"pixel_decoder.norm.\1"),
    (_PREDICTOR + r"class_embed\.(.+)", r"pixel_decoder.class_heads.coco.\1"),
    (_PREDICTOR + r"mask_embed\.layers\.(\d)\.(.+)", r"pixel_decoder.mask_embed.{\1*2}.\2"),
]
_TIMM = [*_SWIN, (r"layers\.(\d)\.downsample\.(.+)", r"backbone.body.layers_\1.downsample.\2")]
_MICROSOFT = [*_SWIN, (r"layers\.(\d)\.downsample\.(.+)", r"backbone.body.layers_{\1+1}.downsample.\2")]

# Theirs without a use here: tables that are computed, the loss, ImageNet's classifier.
_UNUSED = re.compile(r".*relative_position_index|.*attn_mask|criterion\.empty_weight|pixel_(mean|std)|(norm|head)\..+")
# Ours that Mask2Former does not have: the temporal half, ids, objectness, heads of other datasets.
_NEW = re.compile(
    r"X_0|B|norm_x\..+|compressor\..+|decoder\..+"
    r"|pixel_decoder\.(track_type|objectness\..+|id_skip\..+|class_heads\.(?!coco\.).+)"
)
_NOT_BACKBONE = re.compile(r"(?!backbone\.).+|backbone\.norms\..+")


class Report(NamedTuple):
    """What became of every tensor."""

    loaded: tuple[str, ...]  # ours, filled
    kept: tuple[str, ...]  # ours, new in AUSM: initial values
    unused: tuple[str, ...]  # theirs, of no use here


def load_mask2former(model: AUSM, path: str | Path) -> Report:
    """Fill backbone, neck and Pixel Decoder from an official checkpoint. Raises CheckpointError, model unchanged."""
    return _fill(model, read_weights(Path(path)), _MASK2FORMER, _NEW, str(path))


def load_swin(model: AUSM, path: str | Path) -> Report:
    """Fill the backbone from ImageNet weights in timm's or in the original's names; our output norms stay at one."""
    theirs = read_weights(Path(path))
    merges_early = "layers.3.downsample.reduction.weight" in theirs
    return _fill(model, theirs, _TIMM if merges_early else _MICROSOFT, _NOT_BACKBONE, str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .pkl (Detectron2), .pth/.pt/.bin or .safetensors file; nothing in it is executed."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        holder = read_pickle(path) if path.suffix == ".pkl" else torch.load(path, "cpu", weights_only=True)
    except CheckpointError:
        raise
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(holder, dict) and isinstance(holder.get(key), dict):
            holder = holder[key]
    if not isinstance(holder, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(holder).__name__}, not tensors by name")
    found = {k: torch.as_tensor(v) for k, v in holder.items() if isinstance(v, Tensor | np.ndarray)}
    if not found:
        raise CheckpointError(f"checkpoint {path} holds no tensors, its entries are {sorted(map(str, holder))[:5]}")
    return found


def rename(theirs: dict[str, Tensor], rules: list[tuple[str, str]]) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors under our names, and the names that no rule knows."""
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, value in theirs.items():
        new = _new_name(name, rules)
        if _UNUSED.fullmatch(name):
            continue
        if new is None:
            unknown.append(name)
        elif match := re.fullmatch(r"(.+)\.in_proj_(weight|bias)", new):  # one matrix for q, k and v
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                ours[f"{match[1]}.{part}_proj.{match[2]}"] = rows
        else:
            ours[new] = value
    return ours, unknown


def _new_name(name: str, rules: list[tuple[str, str]]) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            new = match.expand(replacement)
            new = re.sub(r"\{(\d)\+1\}", lambda m: str(int(m[1]) + 1), new)
            return re.sub(r"\{(\d)\*2\}", lambda m: str(int(m[1]) * 2), new)
    return None


def _fill(model: AUSM, theirs: dict[str, Tensor], rules: Any, new: re.Pattern[str], source: str) -> Report:
    values, problems = rename(theirs, rules)
    problems = [f"{name} {tuple(theirs[name].shape)}: no such tensor in AUSM" for name in problems]
    own = model.state_dict()
    for name in sorted(values.keys() - own.keys()):
        problems.append(f"{name} {tuple(values[name].shape)}: not in {model.config.name}")
    kept = sorted(own.keys() - values.keys())
    problems += [f"{name} {tuple(own[name].shape)}: not in the file" for name in kept if not new.fullmatch(name)]
    for name in sorted(values.keys() & own.keys()):
        if values[name].shape != own[name].shape:
            problems.append(f"{name} {tuple(values[name].shape)}: {model.config.name} has {tuple(own[name].shape)}")
    if problems:
        raise CheckpointError(f"{source} does not fit, {len(problems)} tensors:\n  " + "\n  ".join(problems))
    model.load_state_dict(values, strict=False)
    unused = sorted(name for name in theirs if _UNUSED.fullmatch(name))
    return Report(tuple(sorted(values)), tuple(kept), tuple(unused))


def main(argv: list[str] | None = None) -> int:
    """`python -m ausm.mask2former FILE.pkl init.safetensors --preset swin_t`: a checkpoint for `ausm train --init`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="official checkpoint of Mask2Former or of an ImageNet Swin")
    parser.add_argument("target", type=Path, help=".safetensors file to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="swin_t")
    parser.add_argument("--backbone-only", action="store_true", help="the source is an ImageNet Swin")
    parser.add_argument("--seed", type=int, default=0, help="of the tensors that are new in AUSM")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    model = AUSM(PRESETS[args.preset]())
    try:
        report = (load_swin if args.backbone_only else load_mask2former)(model, args.source)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for label, names in report._asdict().items():
        print(f"{label}: {len(names)}", *(f"  {name}" for name in names if label != "loaded"), sep="\n")
    origin = {"file": args.source.name, "sha256": weights.sha256(args.source)}
    weights.save(args.target, model, {"initialised_from": origin})
    return 0


if __name__ == "__main__":
    sys.exit(main())
