"""Give the objectness of a checkpoint a hidden layer, its answers unchanged, to train on from there.

python -m training.widen --weights W --hidden 64 --out WIDE

What an object is told from is not linear in the queries: fitted anew on frozen ones, a hidden layer ranks better than a
linear one (docs/checkpoints/findings.md).
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from torch import nn

from ausm import weights
from ausm.errors import CheckpointError
from ausm.model import AUSM


def widen(model: AUSM, hidden: int) -> AUSM:
    """A copy whose objectness has `hidden` ReLU units: two of them are the linear layer as it was, x as
    relu(x) - relu(-x), the others start at random and count for nothing until they are trained.

    Raises CheckpointError for fewer than two units and for a model that has a hidden layer.
    """
    old, config = model.pixel_decoder.objectness, model.config.pixel_decoder
    if hidden < 2:
        raise CheckpointError(f"{hidden} hidden units: the two sides of the linear layer need 2 or more")
    if not isinstance(old, nn.Linear):
        raise CheckpointError(f"objectness has {config.objectness_hidden} hidden units already")
    config = dataclasses.replace(config, objectness_hidden=hidden)
    wide = AUSM(dataclasses.replace(model.config, pixel_decoder=config)).eval()
    head = wide.pixel_decoder.objectness
    assert isinstance(head, nn.Sequential)
    first, last = head[0], head[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    with torch.no_grad():
        for rows, sign in ((0, 1.0), (1, -1.0)):  # x = relu(x) - relu(-x)
            first.weight[rows], first.bias[rows] = sign * old.weight[0], sign * old.bias[0]
        last.weight.zero_()
        last.bias.zero_()
        last.weight[0, :2] = torch.tensor([1.0, -1.0])
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("pixel_decoder.objectness.")}
    new = {k: v for k, v in wide.state_dict().items() if k.startswith("pixel_decoder.objectness.")}
    wide.load_state_dict(state | new)
    return wide


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint with a linear objectness")
    parser.add_argument("--hidden", type=int, default=64, help="units (64)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the units that count for nothing yet")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    try:
        model = widen(weights.load(args.weights, "cpu", fuse=False), args.hidden)
        weights.save(args.out, model, weights.read_metadata(args.weights)[1])
    except (CheckpointError, OSError) as error:
        print(f"widen: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: objectness with {args.hidden} hidden units, the same answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
