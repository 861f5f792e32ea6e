"""`python -m bench.parameters`: parameters, multiply-accumulates per frame and state bytes of every preset.

Counted from shapes alone (no weights, no arithmetic): matrix products and convolutions of one recurrent step with all
ids in use (Q = N_id + N_det). Element-wise work is left out; the largest of it, the scan, is below 6 % of its block's
products, the sampling of deformable attention below 2 %.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ausm.config import PRESETS
from ausm.model import AUSM

SIZES = ((480, 640), (1024, 1365))  # a camera as it is; the same at the paper's inference resolution
PRODUCTS = ("bmm", "attention")  # operators of attention scores and sums; the rest are projections

# GMAC of the analysis that the presets were designed by (Q = 200), swin_t at the two sizes
DESIGN = {
    "backbone": (30, 131),
    "neck": (29, 131),
    "mask features": (13, 60),
    "compressor: Mamba": (13, 61),
    "compressor: attention": (71, 1489),
    "history decoder: attention": (142, 2978),
    "projections and FFN": (53, 242),
    "pixel decoder": (17, 68),
    "total": (367, 5161),
}


@contextmanager
def _shapes_only() -> Iterator[None]:
    """Meta tensors have a shape and no numbers; autocast refuses their device, so it is taken out of the way."""
    off = patch.object(torch, "autocast", lambda *_, **__: nullcontext())
    asked = patch.object(torch, "is_autocast_enabled", lambda *_: False)
    with torch.device("meta"), torch.inference_mode(), off, asked:
        yield


def _count(call: Callable[[], Any]) -> tuple[Any, dict[str, float], dict[str, float]]:
    """Result, MACs by operator and MACs by module of a call."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    counts = counter.get_flop_counts()
    operators = {str(op): flops / 2 for op, flops in counts["Global"].items()}
    modules = {name: sum(ops.values()) / 2 for name, ops in counts.items()}
    return result, operators, modules


def _attention(operators: dict[str, float]) -> float:
    return sum(n for op, n in operators.items() if any(word in op for word in PRODUCTS))


def macs(preset: str, height: int, width: int) -> dict[str, float]:
    """Multiply-accumulates of one step by part, of an image of this size (padded as the model pads it)."""
    with _shapes_only():
        model = AUSM(PRESETS[preset]()).eval()
        c = model.config
        maps, backbone, _ = _count(lambda: model.maps(torch.empty(1, height, width, 3, dtype=torch.uint8)))
        features, neck, _ = _count(lambda: model.features(maps))
        F, compressor, modules = _count(lambda: model.compressor(features.X[None], features.size))
        G, decoder, _ = _count(lambda: model.decoder(features.X, F[0], features.size))
        A = torch.empty(1, c.N_id, c.D)
        _, pixel, pixel_modules = _count(lambda: model.pixel_decoder(A, G, features.c2, features.size))
    mamba = sum(modules[f"HistoryCompressor.layers.{i}.mamba"] for i in range(c.compressor.layers))
    mask_features = pixel_modules["PixelDecoder.mask_features"]
    parts = {
        "backbone": sum(backbone.values()),
        "neck": sum(neck.values()),
        "mask features": mask_features,
        "compressor: Mamba": mamba,
        "compressor: attention": _attention(compressor),
        "history decoder: attention": _attention(decoder),
    }
    rest = sum(compressor.values()) + sum(decoder.values()) - mamba
    parts["projections and FFN"] = rest - parts["compressor: attention"] - parts["history decoder: attention"]
    parts["pixel decoder"] = sum(pixel.values()) - mask_features
    return {**parts, "total": sum(parts.values())}


def parameters(preset: str) -> dict[str, int]:
    """Trainable numbers by module."""
    with torch.device("meta"):
        model = AUSM(PRESETS[preset]())

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    blocks: list[nn.Module] = [layer.mamba for layer in model.compressor.layers]  # type: ignore[misc]
    mamba = sum(map(count, blocks))
    parts = {name: count(getattr(model, name)) for name in ("backbone", "neck")}
    parts |= {"compressor: Mamba": mamba, "compressor: rest": count(model.compressor) - mamba}
    parts |= {"history decoder": count(model.decoder)}
    parts |= {"mask features": count(model.pixel_decoder.mask_features)}
    parts |= {"pixel decoder": count(model.pixel_decoder) - parts["mask features"]}
    total = count(model)
    return {**parts, "ids, start token, norm": total - sum(parts.values()), "total": total}


def state_bytes(preset: str, height: int, width: int) -> dict[str, int]:
    """Bytes of one stream's state with float32 and with float16 storage of the scan."""
    with torch.device("meta"):
        model = AUSM(PRESETS[preset]())
        return {
            name: model.new_state(height, width, dtype).nbytes
            for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16))
        }


def report(preset: str) -> dict[str, Any]:
    """Everything of one preset."""
    return {
        "parameters": parameters(preset),
        "macs": {f"{h}x{w}": macs(preset, h, w) for h, w in SIZES},
        "state_bytes": {f"{h}x{w}": state_bytes(preset, h, w) for h, w in SIZES},
    }


def _table(preset: str, figures: dict[str, Any]) -> list[str]:
    sizes = list(figures["macs"])
    lines = [f"{preset}", f"  {'':<28}{'parameters':>13}" + "".join(f"{'GMAC ' + s:>18}" for s in sizes)]
    names = list(dict.fromkeys([*figures["parameters"], *figures["macs"][sizes[0]]]))
    names.append(names.pop(names.index("total")))
    for name in names:
        count = figures["parameters"].get(name)
        row = f"  {name:<28}{f'{count:,}' if count is not None else '':>13}"
        for s in sizes:
            value = figures["macs"][s].get(name)
            row += f"{f'{value / 1e9:,.1f}' if value is not None else '':>18}"
        lines.append(row)
    state = [figures["state_bytes"][s] for s in sizes]
    for name in state[0]:
        lines.append(f"  state, scan in {name:<13}{'':>13}" + "".join(f"{b[name] / 1e6:>15,.0f} MB" for b in state))
    return lines


def design_ratios(figures: dict[str, Any]) -> dict[str, list[float]]:
    """Counted over designed MACs of swin_t, by part and size."""
    sizes = list(figures["macs"])
    return {
        name: [figures["macs"][s][name] / 1e9 / goal for s, goal in zip(sizes, goals, strict=True)]
        for name, goals in DESIGN.items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench.parameters`."""
    parser.add_argument("--preset", choices=sorted(PRESETS), help="only this one")


def run(args: argparse.Namespace) -> int:
    """Prints a table per preset, the comparison with the design, and all figures as one JSON object."""
    figures = {preset: report(preset) for preset in ([args.preset] if args.preset else PRESETS)}
    for preset, values in figures.items():
        print(*_table(preset, values), "", sep="\n")
    ratios = design_ratios(figures["swin_t"]) if "swin_t" in figures else {}
    if ratios:
        print("swin_t, counted / designed", *(f"  {n:<28}{a:>8.2f}{b:>8.2f}" for n, (a, b) in ratios.items()), sep="\n")
    print(json.dumps({**figures, "design_ratios": ratios}))
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    add_arguments(cli)
    sys.exit(run(cli.parse_args()))
