"""`python -m bench.profile`: where the time of one step goes, by module: CPU time of all threads, median over frames.

Times exclude what is listed in rows of its own. "outside" are the rows that are not the network's arithmetic.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import ausm
from ausm.config import PRESETS
from ausm.model import AUSM
from bench.measure import finish, load, parse_size, progress, table
from bench.scene import Scene

WARM = 5
OUTSIDE = "outside: "


class Stopwatch:
    """Exclusive CPU time of wrapped functions by label: what a wrapped call spends in another one is not its own."""

    def __init__(self) -> None:
        self.frame: defaultdict[str, float] = defaultdict(float)  # seconds since the last `take`
        self._inner = [0.0]  # time of wrapped calls inside each open one

    def wrap(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time() - start
                self.frame[label] += spent - self._inner.pop()
                self._inner[-1] += spent

        return timed

    def take(self) -> dict[str, float]:
        taken = dict(self.frame)
        self.frame.clear()
        return taken


def places(model: AUSM) -> Iterator[tuple[str, Any, str]]:
    """(label, object, name of its method) of everything that has a row."""
    yield "marker", sys.modules["ausm.model"], "mark"
    yield "compressor: norms, sums, positions", model.compressor, "step"
    for layer in model.compressor.layers:
        yield "compressor: Mamba", layer.mamba, "step"
        yield "compressor: attention", layer.attn, "forward"
        yield "compressor: FFN", layer.ffn, "forward"
    yield "image normalised and padded", model, "maps"
    yield "backbone", model.backbone, "forward"
    yield "neck", model, "features"
    yield "history decoder: norms, sums, positions", model.decoder, "forward"
    for layer in model.decoder.layers:
        for attention in filter(None, (layer.self_attn, layer.cross_attn)):
            yield "history decoder: attention", attention, "forward"
        yield "history decoder: FFN", layer.ffn, "forward"
    yield "pixel decoder: keys, masks, heads", model.pixel_decoder, "forward"
    yield "pixel decoder: mask features", model.pixel_decoder.mask_features, "forward"
    for layer in model.pixel_decoder.layers:
        yield "pixel decoder: layers", layer, "forward"
    for name in ("absorb", "predict"):
        yield "state copied", model, name


@contextmanager
def watched(stream: ausm.Stream, watch: Stopwatch) -> Iterator[None]:
    """The stream and its model with a stopwatch on every part."""
    module = sys.modules["ausm.stream"]
    outside: list[tuple[str, Any, str]] = [
        ("image resized", module, "resize_image"),
        ("masks at full size", module, "full_size_masks"),
        ("records, scores, gates", stream, "_update"),
        ("tracks published", stream, "_publish"),
        ("rest", stream, "step"),
    ]
    named = ((OUTSIDE + what, owner, name) for what, owner, name in outside)
    with ExitStack() as stack:
        for label, owner, name in (*places(stream.model), *named):
            stack.enter_context(patch.object(owner, name, watch.wrap(label, getattr(owner, name))))
        yield


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS))
    parser.add_argument("--checkpoint")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, source = load(args.preset, args.checkpoint, "cpu")
    stream = ausm.Stream(model, discover=False, precision=args.precision)
    scene = Scene(*parse_size(args.size), args.objects)
    stream.prompt(scene.masks(0))
    watch, taken = Stopwatch(), []
    with watched(stream, watch):
        for frame in range(WARM + args.frames):
            stream.step(scene.image(frame))
            taken.append(watch.take())
            progress(frame + 1, WARM + args.frames)
    spent = {label: 1e3 * float(np.median([t.get(label, 0.0) for t in taken[WARM:]])) for label in taken[-1]}
    total = sum(spent.values())
    rows = [
        {"part": label, "CPU ms": ms, "share %": 100 * ms / total}
        for label, ms in sorted(spent.items(), key=lambda item: -item[1])
    ]
    what = f"{args.objects} objects, {stream.precision}, {args.threads} threads"
    print(f"{model.config.name} ({source}), {args.size}, {what}")
    print(table([*rows, {"part": "total", "CPU ms": total, "share %": 100.0}]))
    outside = {label: 100 * ms / total for label, ms in spent.items() if label.startswith(OUTSIDE)}
    figures = {"rows": rows, "outside_percent": sum(outside.values()), "largest_outside_percent": max(outside.values())}
    return finish({**figures, "precision": stream.precision, "weights": source})


if __name__ == "__main__":
    sys.exit(main())
