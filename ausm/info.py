"""`ausm info`: what a checkpoint is."""

import argparse
import json
from typing import Any

from ausm.weights import describe, licensed

INHERITED = ("name", "summary", "data", "licence")
BRIEF = ("name", "summary", "preset", "parameters", "bytes", "sha256", "input size", "data", "licence", "scores")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm info`."""
    parser.add_argument("checkpoint", metavar="NAME_OR_PATH", nargs="?", default="nano", help="checkpoint (nano)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="with all sizes of the model and the whole recipe")
    form.add_argument("--json", action="store_true", help="everything as one JSON object on one line, and nothing else")


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    """Nested values as an indented table."""
    width = max((len(key) for key, value in values.items() if not isinstance(value, dict)), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(i): item for i, item in enumerate(value, 1)}
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines += [f"{indent}{key}:", *(f"{indent}  {item}" for item in value)]
        else:
            lines.append(f"{indent}{key:<{width}}  {json.dumps(value) if isinstance(value, list | tuple) else value}")
    return lines


def _run_of(entry: dict[str, Any]) -> str:
    """One run of the recipe on one line: stage, size, clips and frames of a batch, iterations, seconds."""
    stage = entry["stage"]
    height, width = stage["size"]
    batch = f"{stage['batch']} clips x {stage['frames']} frames"
    return f"{stage['name']}, {height}x{width}, {batch}, {entry['iterations']} it, {entry['seconds']:g} s"


def _brief(description: dict[str, Any]) -> list[str]:
    """What people ask first; the recipe as one line a run."""
    values = description | {"input size": f"short side {description['config']['short_side']} pixels"}
    lines = _lines({key: values[key] for key in BRIEF if key in values})
    began = licensed(description)
    if began and began is not description:  # of a run: what it began with binds it, too
        lines += _lines({"began with": {key: began[key] for key in INHERITED if key in began}})
    recipe = description.get("recipe")
    try:
        runs = [f"  {i} {_run_of(entry)}" for i, entry in enumerate(recipe or (), 1)]
    except (KeyError, TypeError, ValueError):  # of a checkpoint made by other means
        return lines + _lines({"recipe": recipe})
    return lines + (["recipe (height x width; it = iterations):", *runs] if runs else [])


def run(args: argparse.Namespace) -> int:
    """Prints the description for people, or as one JSON object."""
    description = describe(args.checkpoint)
    if args.json:
        print(json.dumps(description))
    else:
        print("\n".join(_lines(description) if args.full else _brief(description)))
    return 0
