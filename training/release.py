"""Turn a run's averaged weights into a released checkpoint: manifest with data, licence and scores added.

python -m training.release --weights out/s3/ema.safetensors --card card.json --out ausm/checkpoints/nano.safetensors

Several --weights, of runs that went on from each other, are averaged, by --shares if these are given: what the end of
one run happens to be good or bad at evens out (docs/checkpoints/runs.md).
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ausm import weights
from ausm.errors import CheckpointError
from ausm.model import AUSM

log = logging.getLogger(__name__)
REQUIRED = ("summary", "data", "licence", "scores")  # of the card, besides what training itself recorded


def average(sources: Sequence[Path], shares: Sequence[float] | None = None) -> tuple[AUSM, dict[str, Any]]:
    """The mean of the weights, and the manifest of the last of them. shares: one a source, None = all alike; scaled to
    a sum of 1. Raises CheckpointError for different models and for shares that fit none."""
    shares = [1.0] * len(sources) if shares is None else list(shares)
    if len(shares) != len(sources) or min(shares) < 0 or not sum(shares) > 0:
        raise CheckpointError(f"{len(sources)} checkpoints, shares {shares}: one each, none negative, some positive")
    models = [weights.load(source, "cpu", fuse=False) for source in sources]
    sizes = {model.config for model in models}
    if len(sizes) > 1:
        raise CheckpointError(f"{len(sources)} checkpoints of {len(sizes)} sizes of model cannot be averaged")
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, value in models[-1].state_dict().items():
            if value.is_floating_point():
                parts = [share * state[name].double() for share, state in zip(shares, states, strict=True)]
                value.copy_(torch.stack(parts).sum(0) / sum(shares))
    return models[-1], weights.read_metadata(sources[-1])[1]


def release(
    sources: Sequence[Path],
    card: dict[str, Any],
    out: Path,
    shift: float = 0.0,
    shares: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Write the mean of `sources` to `out` with the card merged into the last one's manifest; returns the manifest.

    `shift` is added to the objectness logits of all queries: at which of them a discovery should be shown, the stream's
    threshold of 1/2, is measured after training (docs/training.md).
    Raises CheckpointError if the card lacks a required entry or the weights do not load strictly.
    """
    missing = [name for name in REQUIRED if not card.get(name)]
    if missing:
        raise CheckpointError(f"the card lacks {missing}, or they are empty; it needs {list(REQUIRED)}")
    model, manifest = average(sources, shares)
    for source in sources:
        before = weights.licensed(weights.read_metadata(source)[1]).get("licence")
        if before and before != card["licence"]:
            log.warning(
                "the card's licence is %r, that of %s or of what it began with %r", card["licence"], source, before
            )
    manifest = {**manifest, **card}
    if len(sources) > 1:
        manifest["averaged"] = [weights.sha256(weights.resolve(source)) for source in sources]
        manifest["shares"] = list(shares) if shares is not None else [1.0] * len(sources)
    if shift:
        head = model.pixel_decoder.objectness
        last = head[-1] if isinstance(head, nn.Sequential) else head
        assert isinstance(last, nn.Linear)
        last.bias.data += shift
        manifest["objectness_shift"] = shift
    out.parent.mkdir(parents=True, exist_ok=True)
    weights.save(out, model, manifest)
    return manifest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", type=Path, nargs="+", required=True, help="names or paths of averaged weights of the last stage"
    )
    parser.add_argument("--shares", type=float, nargs="+", help="of the --weights in their mean (default: alike)")
    parser.add_argument("--card", type=Path, required=True, help=f"JSON with {', '.join(REQUIRED)}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shift-objectness", type=float, default=0.0, help="logits added to what says: an object")
    args = parser.parse_args()
    try:
        release(args.weights, json.loads(args.card.read_text()), args.out, args.shift_objectness, args.shares)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"release: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 {weights.sha256(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
