"""`ausm bench train`: seconds per iteration of the parallel form and of the frame-by-frame loop it replaces.

Both are the same model on the same clip with the same loss: forward, backward through all frames, optimizer step.
The loop is an honest one. What does not depend on the past is computed for all frames at once, as a good iterative
trainer would cache it: backbone, neck, targets, normaliser. What does (marker, compressor, decoders, losses) runs once
per frame on a state that carries gradients; its update is plain PyTorch, as no library has a fused step with gradients.
`--scan plain` takes the fused scan away from the parallel form too, so that only the form differs.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ausm import ssm, weights
from ausm.compressor import CompressorLayer, HistoryCompressor
from ausm.config import PRESETS
from ausm.errors import InputError
from ausm.marker import mark
from ausm.model import AUSM
from ausm.ssm import Mamba
from training.clip_loss import ClipLoss
from training.loader import Batch
from training.preprocess import Targets
from training.resume import parameter_groups
from training.stages import RECIPES, Stage


class Memory(NamedTuple):
    """One layer's state between two frames, with gradients: the last inputs of the convolution, the scan's state."""

    taps: list[Tensor]  # d_conv - 1 of (B, N, E), oldest first
    h: Tensor | None  # (B, N, E, S); None = zero


def _mamba_step(m: Mamba, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """`Mamba.step` with gradients. x (B, N, D)."""
    u, z = m.in_proj(x).split(m.d_inner, -1)
    weight, bias, A, D = m._dynamics()
    window = [*memory.taps, u]
    y = bias
    for tap, frame in enumerate(reversed(window)):
        y = torch.addcmul(y, frame, weight[:, -1 - tap])
    u = F.silu(y).to(x.dtype)
    delta, B, C = m._select(u)
    with torch.autocast(x.device.type, enabled=False):
        u32, delta, B, C, z32 = (v.float() for v in (u, delta, B, C, z))
        dt = F.softplus(delta)
        h = (dt * u32)[..., None] * B[..., None, :]
        if memory.h is not None:
            h = torch.addcmul(h, torch.exp(dt[..., None] * A), memory.h)
        out = torch.addcmul((h @ C[..., None]).squeeze(-1), D, u32) * F.silu(z32)
    return m.out_proj(out.to(x.dtype)), Memory(window[-(m.d_conv - 1) :], h)


def _compress(compressor: HistoryCompressor, E: Tensor, memories: list[Memory], size: tuple[int, int]) -> Tensor:
    """One frame E (B, N, D) -> F_t (B, N, D); `memories` of all layers are replaced."""
    x: Tensor = E
    y: Tensor | None = None
    for i, layer in enumerate(compressor.layers):
        assert isinstance(layer, CompressorLayer)
        x, normed, _ = layer.norm_t.pre(x, y)
        y, memories[i] = _mamba_step(layer.mamba, normed, memories[i])
        x, y = layer.spatial(x, y, size)
    return compressor.norm.pre(x, y)[1]


def iterative_terms(clip_loss: ClipLoss, batch: Batch, targets: Targets, num_masks: float) -> dict[str, Tensor]:
    """What `clip_loss(batch, targets)` returns, by a loop over the frames."""
    model = clip_loss.model
    images = batch.images.to(model.X_0.device)
    B, T = images.shape[:2]
    with torch.no_grad() if clip_loss.frozen else nullcontext():
        maps = model.maps(images.flatten(0, 1))
    features = model.features(maps)
    X, c2 = features.unflatten(B), features.c2.unflatten(0, (B, T))
    class_ids = batch.class_ids.to(images.device)
    head = batch.head if batch.head in model.pixel_decoder.class_heads else ""
    A = model.B[targets.ids].to(X.dtype)
    memories = [Memory([], None) for _ in model.compressor.layers]
    before = model.X_0.to(X.dtype).expand(B, X.shape[2], -1)
    total: dict[str, Tensor] = {}
    for t in range(T):
        active = targets.active[:, t]
        M = targets.history[:, t] & active[..., None, None]
        F_t = _compress(model.compressor, before + mark(A, M.flatten(2)), memories, features.size)
        G = model.decoder(X[:, t], F_t, features.size)
        outputs = model.pixel_decoder(A, G, c2[:, t], features.size, active, every_layer=True)
        frame = targets._replace(
            active=targets.active[:, t : t + 1],
            det=targets.det[:, t : t + 1],
            masks=targets.masks[:, t : t + 1],
            visible=targets.visible[:, t : t + 1],
        )
        for name, value in clip_loss.criterion(outputs, frame, class_ids, head, batch.exhaustive, num_masks).items():
            total[name] = total.get(name, 0) + value
        before = X[:, t]
    return total


def synthetic(stage: Stage, objects: int, seed: int) -> Batch:
    """Noise with moving rectangles: cost does not depend on what is seen."""
    g = torch.Generator().manual_seed(seed)
    B, T, (H, W) = stage.batch, stage.frames, stage.size
    images = torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=g)
    masks = torch.zeros(B, objects, T, H, W, dtype=torch.bool)
    for b in range(B):
        for k in range(objects):
            y, x = (int(torch.randint(0, n // 2, (), generator=g)) for n in (H, W))
            for t in range(T):
                masks[b, k, t, y : y + H // 3, x + 2 * t : x + 2 * t + W // 4] = True
    valid, ids = torch.ones(B, objects, dtype=torch.bool), torch.zeros(B, objects, dtype=torch.int64)
    return Batch(images, masks, valid, ids, True, "coco", ["synthetic"] * B)


class Iteration:
    """One training iteration of either form, on a batch that stays the same."""

    def __init__(self, model: AUSM, stage: Stage, objects: int, bf16: bool) -> None:
        self.clip_loss = ClipLoss(model, stage).train()
        self.batch = synthetic(stage, objects, seed=0)
        self.targets = self.clip_loss.targets(self.batch, torch.Generator().manual_seed(0))
        self.num_masks = float(self.targets.active.sum() + self.targets.det.sum())
        groups = parameter_groups(model, stage.lr, stage.backbone_lr_scale, stage.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.device, self.bf16 = model.X_0.device, bf16

    def run(self, parallel: bool) -> float:
        """Seconds of forward, backward and optimizer step."""
        self._wait()
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if parallel:
                terms = self.clip_loss(self.batch, self.targets, False, self.num_masks)
            else:
                terms = iterative_terms(self.clip_loss, self.batch, self.targets, self.num_masks)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def scan_of(kind: str) -> Iterator[None]:
    """kind "auto": the fastest scan of this device; "plain": PyTorch's own operations, as the loop has them."""
    if kind == "auto":
        yield
        return
    scan = patch.object(ssm, "selective_scan", ssm.selective_scan_torch)
    with scan, patch.object(ssm, "causal_conv_silu", ssm.causal_conv_silu_torch):
        yield


def measure(model: AUSM, stage: Stage, objects: int, bf16: bool, repeats: int) -> dict[str, float]:
    """Best of `repeats` iterations of each form, alternating, after one of each to warm up."""
    iteration = Iteration(model, stage, objects, bf16)
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(repeats + 1):
        for parallel in (True, False):
            seconds = iteration.run(parallel)
            if i:
                times[parallel].append(seconds)
    best = {form: min(values) for form, values in times.items()}
    return {"parallel_s": best[True], "iterative_s": best[False], "ratio": best[False] / best[True]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm bench train`."""
    parser.add_argument("--lengths", default="1,2,4,8,16", help="clip lengths T (1,2,4,8,16)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--size", default="192x320", metavar="HxW", help="training crop, multiples of 32 (192x320)")
    parser.add_argument("--batch", type=int, default=1, help="clips per iteration (1)")
    parser.add_argument("--objects", type=int, default=4, help="instances per clip (4)")
    parser.add_argument("--repeats", type=int, default=3, help="iterations of each form per length, best counts (3)")
    parser.add_argument("--scan", choices=("auto", "plain"), default="auto", help="scan of the parallel form")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")


def run(args: argparse.Namespace) -> int:
    """Prints a row per length, and as the last line one JSON object."""
    try:
        lengths = [int(T) for T in args.lengths.split(",")]
        height, width = (int(n) for n in args.size.split("x"))
    except ValueError as error:
        raise InputError(f"--lengths {args.lengths!r} --size {args.size!r}: {error}") from error
    if min(lengths) < 1 or height % 32 or width % 32 or min(height, width, args.batch, args.objects, args.repeats) < 1:
        raise InputError(f"--lengths {args.lengths} --size {args.size}: lengths from 1, sides in multiples of 32")
    torch.set_num_threads(args.threads)
    device = weights.resolve_device(args.device)
    bf16 = args.precision == "bf16" or (args.precision is None and device.type == "cuda")
    base = replace(RECIPES[args.preset](1), size=(height, width), batch=args.batch, noise=None, self_fed=0.0)
    torch.manual_seed(0)
    model = AUSM(PRESETS[args.preset]()).to(device)
    rows = {}
    print(f"{'T':>4}{'parallel s':>14}{'iterative s':>14}{'ratio':>9}")
    with scan_of(args.scan):
        for T in lengths:
            rows[str(T)] = row = measure(model, replace(base, frames=T), args.objects, bf16, args.repeats)
            print(f"{T:>4}{row['parallel_s']:>14.4f}{row['iterative_s']:>14.4f}{row['ratio']:>9.2f}", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {args.threads} threads"
    settings = {"preset": args.preset, "size": args.size, "batch": args.batch, "objects": args.objects}
    settings |= {"device": where, "precision": "bf16" if bf16 else "fp32", "scan": args.scan}
    print(json.dumps({**settings, "lengths": rows}))
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    add_arguments(cli)
    sys.exit(run(cli.parse_args()))
