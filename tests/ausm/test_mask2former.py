"""Weights of Mask2Former and ImageNet Swin in our names: key and shape tables, traps, refusals, the pickle reader."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ausm.attention import Attention
from ausm.config import AusmConfig, swin_b, swin_t
from ausm.errors import CheckpointError
from ausm.mask2former import _MASK2FORMER, _NEW, load_mask2former, load_swin, read_weights, rename
from ausm.model import AUSM
from ausm.unpickle import read_pickle

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, n: int) -> Shapes:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def swin(prefix: str, C: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, merge_at: int) -> Shapes:
    """`merge_at`: 0 = patch merging stored at the end of stage i (Detectron2, Microsoft), 1 = at the start of i + 1."""
    table = {f"{prefix}patch_embed.proj.weight": (C, 3, 4, 4), f"{prefix}patch_embed.proj.bias": (C,)}
    table |= norm(f"{prefix}patch_embed.norm", C)
    for i, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        n = C * 2**i
        for j in range(depth):
            block = f"{prefix}layers.{i}.blocks.{j}"
            table |= norm(f"{block}.norm1", n) | norm(f"{block}.norm2", n)
            table |= linear(f"{block}.attn.qkv", 3 * n, n) | linear(f"{block}.attn.proj", n, n)
            table |= linear(f"{block}.mlp.fc1", 4 * n, n) | linear(f"{block}.mlp.fc2", n, 4 * n)
            table[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, h)
            table[f"{block}.attn.relative_position_index"] = (window**2, window**2)
        if i < 3:
            merge = f"{prefix}layers.{i + merge_at}.downsample"
            table |= norm(f"{merge}.norm", 4 * n) | {f"{merge}.reduction.weight": (2 * n, 4 * n)}
    return table


def mask2former(
    C: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, D: int = 256, layers: tuple[int, int] = (6, 9)
) -> Shapes:
    """Names and shapes of the official COCO-instance models (Detectron2), by hand from the published code.

    `layers` of the deformable encoder and of the decoder.
    """
    table = swin("backbone.", C, depths, heads, window, merge_at=0)
    for i in range(4):
        table |= norm(f"backbone.norm{i}", C * 2**i)
    p = "sem_seg_head.pixel_decoder"
    for i in range(3):
        table |= {f"{p}.input_proj.{i}.0.weight": (D, C * 2 ** (3 - i), 1, 1), f"{p}.input_proj.{i}.0.bias": (D,)}
        table |= norm(f"{p}.input_proj.{i}.1", D)
    table[f"{p}.transformer.level_embed"] = (3, D)
    for i in range(layers[0]):
        layer = f"{p}.transformer.encoder.layers.{i}"
        table |= linear(f"{layer}.self_attn.sampling_offsets", 8 * 3 * 4 * 2, D)
        table |= linear(f"{layer}.self_attn.attention_weights", 8 * 3 * 4, D)
        table |= linear(f"{layer}.self_attn.value_proj", D, D) | linear(f"{layer}.self_attn.output_proj", D, D)
        table |= linear(f"{layer}.linear1", 4 * D, D) | linear(f"{layer}.linear2", D, 4 * D)
        table |= norm(f"{layer}.norm1", D) | norm(f"{layer}.norm2", D)
    table |= {f"{p}.mask_features.weight": (D, D, 1, 1), f"{p}.mask_features.bias": (D,)}
    table |= {f"{p}.adapter_1.weight": (D, C, 1, 1)} | norm(f"{p}.adapter_1.norm", D)
    table |= {f"{p}.layer_1.weight": (D, D, 3, 3)} | norm(f"{p}.layer_1.norm", D)
    p = "sem_seg_head.predictor"
    for i in range(layers[1]):
        for kind, attention in (("cross", "multihead_attn"), ("self", "self_attn")):
            layer = f"{p}.transformer_{kind}_attention_layers.{i}"
            table |= {f"{layer}.{attention}.in_proj_weight": (3 * D, D), f"{layer}.{attention}.in_proj_bias": (3 * D,)}
            table |= linear(f"{layer}.{attention}.out_proj", D, D) | norm(f"{layer}.norm", D)
        layer = f"{p}.transformer_ffn_layers.{i}"
        table |= linear(f"{layer}.linear1", 8 * D, D) | linear(f"{layer}.linear2", D, 8 * D) | norm(f"{layer}.norm", D)
    table |= norm(f"{p}.decoder_norm", D)
    table |= {f"{p}.query_feat.weight": (100, D), f"{p}.query_embed.weight": (100, D)}
    table |= {f"{p}.level_embed.weight": (3, D)} | linear(f"{p}.class_embed", 81, D)
    for i in range(3):
        table |= linear(f"{p}.mask_embed.layers.{i}", D, D)
    return table | {"criterion.empty_weight": (81,)}


SIZES = {
    "swin_t": (swin_t, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_b": (swin_b, 128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
}


@pytest.mark.parametrize("preset", list(SIZES))
def test_every_official_tensor_has_its_place_and_shape(preset: str) -> None:
    make, *sizes = SIZES[preset]
    table = mask2former(*sizes)
    with torch.device("meta"):
        own = {name: tuple(v.shape) for name, v in AUSM(make()).state_dict().items()}
        renamed, unknown = rename({name: torch.empty(shape) for name, shape in table.items()}, _MASK2FORMER)
    assert unknown == []
    assert {name: tuple(v.shape) for name, v in renamed.items()} == {k: v for k, v in own.items() if k in renamed}
    left = own.keys() - renamed.keys()
    assert all(_NEW.fullmatch(name) for name in left)
    modules = {".".join(name.split(".")[:2]) for name in left}
    assert modules == {
        *("X_0", "B", "norm_x.weight", "norm_x.bias", "compressor.layers", "compressor.norm", "decoder.layers"),
        *("decoder.norm", "pixel_decoder.track_type", "pixel_decoder.objectness", "pixel_decoder.class_heads"),
    }
    assert sum(np.prod(table[name]) for name in table) > 0.99 * 47e6  # published: 47 M parameters with Swin-T


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.layers.0.downsample.reduction.weight", "backbone.body.layers_1.downsample.reduction.weight"),
        ("backbone.layers.2.downsample.norm.bias", "backbone.body.layers_3.downsample.norm.bias"),
        ("backbone.layers.2.blocks.5.attn.qkv.bias", "backbone.body.layers_2.blocks.5.attn.qkv.bias"),
        ("backbone.norm3.weight", "backbone.norms.3.weight"),
        (
            "sem_seg_head.pixel_decoder.transformer.encoder.layers.4.self_attn.value_proj.weight",
            "neck.layers.4.self_attn.value_proj.weight",
        ),
        ("sem_seg_head.pixel_decoder.adapter_1.norm.bias", "pixel_decoder.mask_features.lateral.1.bias"),
        ("sem_seg_head.predictor.static_query.weight", "pixel_decoder.query_feat.weight"),
        (
            "sem_seg_head.predictor.transformer_self_attention_layers.8.norm.weight",
            "pixel_decoder.layers.8.norm_self.weight",
        ),
        ("sem_seg_head.predictor.mask_embed.layers.2.bias", "pixel_decoder.mask_embed.4.bias"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    value = torch.zeros(1)
    assert rename({theirs: value}, _MASK2FORMER) == ({ours: value}, [])


D, LAYERS = 32, (1, 2)
TINY = (96, (1, 1, 1, 1), (3, 6, 12, 24), 7)  # a Swin-T of one block a stage


def tiny() -> AusmConfig:
    """swin_t with few layers and D = 32: names are regular, so few of each show all."""
    full = swin_t()
    return replace(
        full,
        D=D,
        N_id=16,
        neck=replace(full.neck, layers=LAYERS[0], ffn=4 * D),
        compressor=replace(full.compressor, layers=1, ffn=D),
        decoder=replace(full.decoder, layers=1, ffn=D),
        pixel_decoder=replace(full.pixel_decoder, layers=LAYERS[1], ffn=8 * D, mask_dim=D),
        heads=(("coco", 80), ("sim", 13)),
    )


def trimmed(config: AusmConfig) -> AUSM:
    model = AUSM(config)
    for i in range(4):
        stage = model.backbone.body[f"layers_{i}"]
        stage.blocks = stage.blocks[:1]
    return model


@pytest.fixture(scope="module")
def model() -> AUSM:
    return trimmed(tiny())


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {k: rng.random(shape, dtype=np.float32) for k, shape in mask2former(*TINY, D, LAYERS).items()}


def write(path: Path, value: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def test_a_detectron2_pickle_fills_the_model(model: AUSM, official: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = write(tmp_path / "model_final.pkl", {"model": official, "__author__": "third party"})
    before = model.compressor.layers[0].mamba.A_log.clone()
    report = load_mask2former(model, path)
    state = model.state_dict()
    assert len(report.loaded) + len(report.kept) == len(state) and "B" in report.kept
    assert "criterion.empty_weight" in report.unused and len(report.unused) == 1 + 4
    assert torch.equal(model.compressor.layers[0].mamba.A_log, before)

    def same(ours: str, theirs: np.ndarray) -> bool:
        return np.array_equal(state[ours].numpy(), theirs)

    p = "sem_seg_head.predictor.transformer_cross_attention_layers.1.multihead_attn"
    for i, part in enumerate("qkv"):
        rows = slice(D * i, D * (i + 1))
        assert same(f"pixel_decoder.layers.1.cross_attn.{part}_proj.weight", official[f"{p}.in_proj_weight"][rows])
        assert same(f"pixel_decoder.layers.1.cross_attn.{part}_proj.bias", official[f"{p}.in_proj_bias"][rows])
    assert same("backbone.body.layers_3.downsample.norm.weight", official["backbone.layers.2.downsample.norm.weight"])
    assert same("pixel_decoder.class_heads.coco.bias", official["sem_seg_head.predictor.class_embed.bias"])


def test_unmatched_tensors_are_all_named_and_nothing_changes(
    model: AUSM, official: dict[str, np.ndarray], tmp_path: Path
) -> None:
    other = dict(official)
    del other["backbone.norm2.weight"], other["sem_seg_head.predictor.query_feat.weight"]
    other["sem_seg_head.predictor.box_embed.weight"] = np.zeros((4, D), np.float32)
    other["sem_seg_head.predictor.class_embed.bias"] = np.zeros(134, np.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_mask2former(model, write(tmp_path / "other.pkl", other))
    text = str(error.value)
    assert "4 tensors" in text and "box_embed.weight (4, 32): no such tensor" in text
    assert "backbone.norms.2.weight (384,): not in the file" in text and "query_feat.weight (100, 32): not in" in text
    assert "class_heads.coco.bias (134,): swin_t has (81,)" in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("origin", ["timm", "microsoft"])
def test_imagenet_swin(model: AUSM, tmp_path: Path, origin: str) -> None:
    table = swin("", *TINY, merge_at=origin == "timm")
    table |= norm("norm", 768) | linear("head.fc" if origin == "timm" else "head", 1000, 768)
    torch.manual_seed(1)
    tensors = {k: torch.rand(shape) for k, shape in table.items() if origin == "microsoft" or "index" not in k}
    path = tmp_path / ("swin.safetensors" if origin == "timm" else "swin.pth")
    if origin == "timm":
        save_file(tensors, path)
    else:
        torch.save({"model": {**tensors, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}}, path)
    report = load_swin(model, path)
    merge = tensors[f"layers.{int(origin == 'timm')}.downsample.reduction.weight"]
    assert torch.equal(model.backbone.body.layers_1.downsample.reduction.weight, merge)
    assert not any(n.startswith("backbone.body") for n in report.kept) and "backbone.norms.0.weight" in report.kept
    del tensors["patch_embed.proj.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"backbone.body.patch_embed.proj.bias \(96,\): not in the file"):
        load_swin(model, tmp_path / "less.safetensors")


def test_in_proj_split_keeps_the_function() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(32, 4, batch_first=True), Attention(32, 4)
    prefix = "sem_seg_head.predictor.transformer_self_attention_layers.0"
    state, unknown = rename(
        {f"{prefix}.self_attn.{name}": value for name, value in theirs.state_dict().items()}, _MASK2FORMER
    )
    ours.load_state_dict({k.removeprefix("pixel_decoder.layers.0.self_attn."): v for k, v in state.items()})
    q, k = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    assert unknown == [] and torch.allclose(ours(q, k, k), theirs(q, k, k)[0], atol=1e-6)


def test_patch_merging_orders_pixels_as_detectron2_does(model: AUSM) -> None:
    """Swin's formula: concatenate (0,0), (1,0), (0,1), (1,1) of each 2 x 2 cell (row, column), norm, reduce."""
    merge = model.backbone.body.layers_1.downsample
    x = torch.randn(1, 4, 6, 96)
    with torch.no_grad():
        cells = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), -1)
        assert torch.allclose(merge(x), merge.reduction(merge.norm(cells)), atol=1e-4)


# --- the pickle reader -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_and_containers(tmp_path: Path, protocol: int) -> None:
    value = OrderedDict(
        a=np.arange(6, dtype=np.int64).reshape(2, 3),
        b=[np.asfortranarray(np.random.default_rng(0).random((3, 4)).astype(">f4")), (1.5, None, True, "text", b"b")],
        c={"scalar": np.float32(2.5), "empty": np.zeros((0, 3)), "bool": np.array([True]), "half": np.float16(1)},
    )
    found = read_pickle(write(tmp_path / "x.pkl", value, protocol))
    assert list(found) == ["a", "b", "c"] and found["b"][1] == value["b"][1]
    pairs = [(found["c"][k], value["c"][k]) for k in value["c"]]
    for x, y in [(found["a"], value["a"]), (found["b"][0], value["b"][0]), *pairs]:
        assert np.array_equal(x, y) and np.shape(x) == np.shape(y)


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call = call, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda p: Evil(os.system, f"touch {p}"), r"asks for (posix|nt)\.system"),
        (lambda p: Evil(eval, f"open({str(p)!r}, 'w')"), r"asks for (builtins|__builtin__)\.eval"),
        (lambda p: Evil(subprocess.check_output, ["touch", str(p)]), r"asks for (subprocess|commands)\.check_output"),
        (lambda p: np.array([Evil(os.system, f"touch {p}")], dtype=object), "type 'O8'"),
        (lambda p: np.zeros(2, dtype=[("a", "f4")]), "type 'V4'"),
        (lambda p: {"model": Path("x")}, "asks for pathlib"),
        (lambda p: torch.zeros(2), "asks for torch"),
        (lambda p: np.array(["text"]), "type 'U4'"),
    ],
)
def test_pickles_that_ask_for_more_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    touched = tmp_path / "touched"
    for protocol in (2, 5):
        with pytest.raises(CheckpointError, match=message):
            read_pickle(write(tmp_path / "x.pkl", value(touched), protocol))
    assert not touched.exists()


def test_broken_pickles_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": {"a": np.arange(100.0)}}, 2)
    path = tmp_path / "x.pkl"
    for n in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"x\.pkl"):
            read_pickle(path)
    lie = whole.replace(b"Kd\x85", b"Kc\x85")  # shape (99,) over 100 numbers
    assert lie != whole
    path.write_bytes(lie)
    with pytest.raises(CheckpointError, match=r"shape \(99,\) with 100 numbers"):
        read_pickle(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pkl does not exist"):
        read_weights(tmp_path / "none.pkl")
    with pytest.raises(CheckpointError, match="holds a list, not tensors by name"):
        read_weights(write(tmp_path / "list.pkl", [np.zeros(2)]))
    with pytest.raises(CheckpointError, match=r"holds no tensors, its entries are \['epoch'\]"):
        read_weights(write(tmp_path / "no.pkl", {"epoch": 3}))
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(CheckpointError, match=rf"{name} \(16 bytes\) cannot be read"):
            read_weights(tmp_path / name)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ausm import mask2former as module

    monkeypatch.setitem(module.PRESETS, "swin_t", tiny)
    monkeypatch.setattr(module, "AUSM", trimmed)
    table: dict[str, Tensor] = {k: torch.zeros(s) for k, s in swin("", *TINY, merge_at=1).items()}
    save_file({k: v for k, v in table.items() if "index" not in k}, tmp_path / "swin.safetensors")
    arguments = [str(tmp_path / "swin.safetensors"), str(tmp_path / "init.safetensors")]
    assert module.main([*arguments, "--backbone-only"]) == 0
    assert "loaded: " in capsys.readouterr().out
    manifest = module.weights.read_metadata(tmp_path / "init.safetensors")[1]
    assert manifest["initialised_from"]["file"] == "swin.safetensors"
    assert module.main(arguments) == 2 and "tensors:" in capsys.readouterr().err  # not a Mask2Former
    assert sys.modules["ausm.mask2former"] is module
