"""Options that commands share."""

import argparse

from ausm.config import StreamConfig


def add_model_arguments(parser: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Which model a command runs, where and at what size; `seed`: whether it draws ID vectors."""
    parser.add_argument("--checkpoint", metavar="NAME_OR_PATH", default="nano", help="model (nano)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    parser.add_argument("--short-side", metavar="PIXELS", type=int, help="size the model works at (the model's own)")
    if seed:
        parser.add_argument("--seed", type=whole, default=0, help="of the choice of ID vectors (0)")


def whole(text: str) -> int:
    """A whole number that is not negative, as seeds are."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def add_part_gap(parser: argparse.ArgumentParser) -> None:
    """How far apart the parts of one discovered object may be (`ausm.parts`)."""
    parser.add_argument(
        "--part-gap",
        metavar="PIXELS",
        type=int,
        default=StreamConfig.part_gap,
        help="parts of a discovery further apart, at the size the model works at, are not one object; "
        "0: they are, as in the paper (%(default)s)",
    )
