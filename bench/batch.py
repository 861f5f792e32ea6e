"""`python -m bench.batch`: what one pass over the frames of two cameras would gain over two passes, part by part.

A pair of passes and one batch take turns; a gain above 1 means that the batch is faster. Both cameras follow 6 objects.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ausm.config import PRESETS
from ausm.inference import frame_model
from bench.measure import Lap, finish, lap, load, table

WARM, OBJECTS = 5, 6


def parts(model: Any, height: int, width: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Name -> two passes, and one batch of the same work."""
    state, device, D = model.new_state(height, width), model.X_0.device, model.config.D
    h, w = state.size
    images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, device=device)
    E, history = torch.randn(2, 2, h * w, D, device=device)
    A = torch.randn(2, OBJECTS, D, device=device)
    conv, ssm = (torch.cat((t, t), 1) for t in (state.conv, state.ssm))
    features = model.encode(images)

    def decode(i: slice) -> None:
        G = model.decoder(features.X[i], history[i], (h, w))
        model.pixel_decoder(A[i].to(G.dtype), G, features.c2[i], (h, w))

    def compress(i: slice) -> None:
        rows = slice(i.start * h * w, i.stop * h * w)
        model.compressor.step(E[i], conv[:, rows], ssm[:, rows], (h, w))

    def turns(work: Callable[[slice], Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return lambda: (work(slice(0, 1)), work(slice(1, 2))), lambda: work(slice(0, 2))

    return {
        "backbone and neck": turns(lambda i: model.encode(images[i])),
        "compressor": turns(compress),
        "both decoders": turns(decode),
    }


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 427), help="inner size (default %(default)s)")
    parser.add_argument("--frames", type=int, default=30, help="rounds (default %(default)s)")
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, source = load(args.preset, None, args.device)
    model, precision = frame_model(model, "auto")
    device, half = model.X_0.device, torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, half, enabled=precision != "fp32"):
        works = parts(model, *args.size)
        laps: dict[str, list[tuple[Lap, Lap]]] = {name: [] for name in works}
        for turn in range(WARM + args.frames):
            for name, (two, batch) in works.items():
                pair = lap(device, two), lap(device, batch)
                if turn >= WARM:
                    laps[name].append(pair)
    laps["all"] = [
        tuple(Lap(sum(x[k].wall for x in row), sum(x[k].cpu for x in row)) for k in (0, 1))  # type: ignore[misc]
        for row in zip(*laps.values(), strict=True)
    ]
    rows = []
    for name, pairs in laps.items():
        wall, cpu = np.median([(a.wall / b.wall, a.cpu / b.cpu) for a, b in pairs], axis=0)
        ms = np.median([(1e3 * a.wall, 1e3 * b.wall) for a, b in pairs], axis=0)
        rows.append({"part": name, "two passes ms": float(ms[0]), "batch ms": float(ms[1]), "gain": float(wall),
                     "gain of CPU time": float(cpu)})  # fmt: skip
    print(f"{model.config.name} ({source}), {args.size[0]}x{args.size[1]}, {precision}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(table(rows))
    return finish({"rows": rows, "precision": precision, "weights": source})


if __name__ == "__main__":
    sys.exit(main())
