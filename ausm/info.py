"""`ausm info`: what a checkpoint is."""

import argparse
import json
from typing import Any

from ausm.weights import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm info`."""
    parser.add_argument("checkpoint", metavar="NAME_OR_PATH", nargs="?", default="nano", help="checkpoint (nano)")


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    """Nested values as an indented table."""
    width = max((len(key) for key, value in values.items() if not isinstance(value, dict)), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(i): item for i, item in enumerate(value, 1)}
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {json.dumps(value) if isinstance(value, list | tuple) else value}")
    return lines


def run(args: argparse.Namespace) -> int:
    """Prints the description for people, and as the last line as one JSON object."""
    description = describe(args.checkpoint)
    print("\n".join(_lines(description)))
    print(json.dumps(description))
    return 0
