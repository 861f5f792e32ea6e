"""A backbone that is trained on a CPU: forward and backward pass with and without `training.depthwise`.

    python -m bench.backbone [--preset nano] [--size 448x608] [--frames 2] [--threads 1] [--repeats 10]

bfloat16 autocast, batch statistics kept, random weights. The two take turns, and the least time of each is told.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ausm.backbone import Backbone
from ausm.config import PRESETS
from ausm.errors import AusmError
from bench.measure import finish, parse_size, table
from bench.ssm import paired
from training.depthwise import quicken


def trained(backbone: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward and backward pass over images (F, 3, H, W)."""

    def run() -> None:
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            maps = backbone(images)
        torch.stack([level.float().square().mean() for level in maps]).sum().backward()

    return run


def main(argv: list[str] | None = None) -> int:
    """Prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--size", default="448x608")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = PRESETS[args.preset]().backbone
    plain, quick = Backbone(config).eval(), Backbone(config).eval()
    changed = quicken(quick)
    images = torch.randn(args.frames, 3, *parse_size(args.size)).contiguous(memory_format=torch.channels_last)
    before, after = paired([trained(plain, images), trained(quick, images)], args.repeats, "cpu")
    figures = {"convolutions": changed, "plain_ms": before, "quick_ms": after, "ratio": before / after}
    print(table([{"preset": args.preset, "images": f"{args.frames} x {args.size}", **figures}]))
    return finish({name: round(value, 3) for name, value in figures.items()})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AusmError as error:
        print(f"backbone: error: {error}", file=sys.stderr)
        sys.exit(2)
