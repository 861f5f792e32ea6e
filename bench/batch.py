"""`python -m bench.batch`: frames of several cameras in one pass of the model, against one after the other.

Both ways take turns with streams of their own. A gain above 1 means that the batch is faster; the first of the images
comes out sooner one after the other, the last one sooner in a batch.
"""

import argparse
import sys

import numpy as np
import torch

import ausm
from ausm.config import PRESETS
from ausm.model import AUSM
from ausm.together import step_together
from bench.measure import Lap, finish, lap, load, table

WARM, SIZE = 5, 80  # frames, pixels of a prompted square


def streams(model: AUSM, number: int, objects: int, images: list[np.ndarray]) -> list[ausm.Stream]:
    """Streams that have seen their first image and follow so many squares."""
    made = [ausm.Stream(model, discover=False, precision="auto") for _ in range(number)]
    for stream, image in zip(made, images, strict=True):
        masks = np.zeros((objects, *image.shape[:2]), bool)
        columns = max(image.shape[1] // SIZE, 1)
        for k, mask in enumerate(masks):
            y, x = SIZE * (k // columns), SIZE * (k % columns)
            mask[y : y + SIZE, x : x + SIZE] = True
        stream.prompt(masks)
        stream.step(image)
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="image size (default %(default)s)")
    parser.add_argument("--cameras", type=int, default=2, help="default %(default)s")
    parser.add_argument("--objects", type=int, default=6, help="of each camera (default %(default)s)")
    parser.add_argument("--frames", type=int, default=30, help="rounds (default %(default)s)")
    parser.add_argument("--preset", default="nano", choices=sorted(PRESETS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, source = load(args.preset, None, args.device)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*args.size, 3), dtype=np.uint8) for _ in range(args.cameras)]
    alone, joint = (streams(model, args.cameras, args.objects, images) for _ in range(2))
    laps: list[tuple[Lap, Lap]] = []
    for turn in range(WARM + args.frames):
        for stream in (*alone, *joint):
            stream.absorb()  # as the node does, between images
        pair = (
            lap(model.X_0.device, lambda: [s.step(image) for s, image in zip(alone, images, strict=True)]),
            lap(model.X_0.device, lambda: step_together(joint, images)),
        )
        if turn >= WARM:
            laps.append(pair)
    one, batch = (1e3 * np.median([[p[k].wall, p[k].cpu] for p in laps], axis=0) for k in range(2))
    gain = np.median([(a.wall / b.wall, a.cpu / b.cpu) for a, b in laps], axis=0)
    rows = [
        {"": "wall", "one after the other ms": one[0], "batch ms": batch[0], "gain": gain[0]},
        {"": "CPU", "one after the other ms": one[1], "batch ms": batch[1], "gain": gain[1]},
    ]
    print(f"{model.config.name} ({source}), {args.cameras} cameras of {args.size[0]}x{args.size[1]}, {args.objects} "
          f"objects each, {alone[0].precision}, {torch.get_num_threads()} threads")  # fmt: skip
    print(table(rows))
    return finish({"rows": rows, "precision": alone[0].precision, "weights": source, "cameras": args.cameras})


if __name__ == "__main__":
    sys.exit(main())
