"""The command `ausm`: finds the module of a sub-command and runs it.

Every such module has `add_arguments(parser)` and `run(args) -> exit code`. Only the one asked for is imported: loading
PyTorch to print a help text would take seconds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from ausm.errors import AusmError


class Command(NamedTuple):
    """Where a sub-command lives."""

    module: str
    help: str
    benchmark: str = ""  # for modules that serve several


COMMANDS = {
    "track": Command("ausm.track", "follow objects through a video, a folder of images or a rosbag2"),
    "info": Command("ausm.info", "what a checkpoint is: sizes, digest, recipe, data, licence, scores"),
    "eval davis": Command("ausm.evaluate.davis_command", "semi-supervised J and F on DAVIS 2016 or 2017"),
    "eval coco": Command("ausm.evaluate.coco_command", "average precision of instances on single images"),
    "eval mose": Command("ausm.evaluate.prompted_command", "submission for MOSE, local J and F", "mose"),
    "eval youtube-vos": Command("ausm.evaluate.prompted_command", "the same for YouTube-VOS", "youtube-vos"),
    "eval youtube-vis": Command("ausm.evaluate.discovered_command", "submission for YouTube-VIS, AP", "youtube-vis"),
    "eval ovis": Command("ausm.evaluate.discovered_command", "the same for OVIS", "ovis"),
    "eval sim": Command("training.evaluate_sim", "simulated clips or bags, nothing given: AP of tracks, IDF1"),
    "eval occlusion": Command("training.evaluate_occlusion", "are hidden objects found again, and is it the memory"),
    "bench stream": Command("bench.stream", "latency and memory of a long stream"),
    "bench train": Command("bench.train", "seconds per iteration of the parallel and the frame-by-frame form"),
    "bench node": Command("bench.node", "latency of the ROS 2 node, image to message"),
    "train": Command("training.train", "one training stage"),
    "train-nano": Command("training.nano", "the three stages of nano one after the other; goes on where it stopped"),
    "simulate": Command("training.simulate", "a rosbag2 of a simulated robot camera with exact masks"),
}
OWN_PACKAGES = ("ausm", "ausm_ros", "bench", "training")


def _is_installed(command: Command) -> bool:
    try:
        return find_spec(command.module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def _usage(group: str = "") -> str:
    """The commands with a line of help each; group: only those that begin with this word."""
    commands = {name: command for name, command in COMMANDS.items() if _is_installed(command)}
    commands = {name: command for name, command in commands.items() if not group or name.split()[0] == group}
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]
    word = f"{group} NAME" if group else "COMMAND"
    return "\n".join([f"usage: ausm {word} [options]     (ausm {word} --help for its options)", "", *lines])


def _is_group(word: str) -> bool:
    """Whether commands begin with this word that is none itself, as `eval`."""
    return word not in COMMANDS and any(name.split()[0] == word for name in COMMANDS)


def _find(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The longest command that the arguments start with, and the rest. Raises AusmError when there is none."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in COMMANDS:
            return name, argv[words:]
    group = _is_group(argv[0])
    given = " ".join(argv[:2]) if group and not argv[1].startswith("-") else argv[0]
    choices = [name for name in COMMANDS if not group or name.split()[0] == argv[0]]
    raise AusmError(f"no command '{given}', there are: {', '.join(choices)}")


def _load(name: str, command: Command) -> argparse.ArgumentParser:
    try:
        module = import_module(command.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OWN_PACKAGES:
            raise AusmError(f"'ausm {name}' is not part of this installation: no module {error.name}") from error
        raise AusmError(f"'ausm {name}' needs the Python package {missing}, which is not installed") from error
    parser = argparse.ArgumentParser(prog=f"ausm {name}", description=command.help)
    module.add_arguments(parser)
    parser.set_defaults(run_command=module.run, benchmark=command.benchmark)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. 0: done; 2: refused, with one line on stderr; 130: interrupted; 141: nobody reads on."""
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:  # it is where a service was started without
                sys.stdout.flush()  # here, not at exit, where nobody could catch it
    except BrokenPipeError:  # as of `ausm info nano | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left goes nowhere
        return 141


def _run(argv: list[str]) -> int:
    group = argv.pop(0) if argv and _is_group(argv[0]) and argv[1:2] in ([], ["-h"], ["--help"], ["help"]) else ""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(group))
        return 0 if argv else 2
    try:
        name, rest = _find(argv)
        args = _load(name, COMMANDS[name]).parse_args(rest)
        return int(args.run_command(args) or 0)
    except BrokenPipeError:
        raise  # no fault: see main
    except (AusmError, OSError) as error:  # the latter names the file: it cannot be written, the disk is full
        print(f"ausm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ausm: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
