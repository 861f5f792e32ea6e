"""Starts node, recorder and player of the demo, watches over them, and stops them in order."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from ausm_ros.demo_player import START_SECONDS, DemoError

if TYPE_CHECKING:
    from ausm_ros.demo import Plan

NODE, CAMERA = "/perception", "camera"
PLAYER_LOG = "player.json"
LISTENERS = ("perception", "demo_recorder")  # the player waits for both
LAST_DIAGNOSTICS = 1.5  # seconds: the node publishes them once a second
STOP_SECONDS = 20.0


@contextmanager
def started(module: str, *arguments: object, stdout: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A module of ours as a process; SIGINT at the end, then harder."""
    command = [sys.executable, "-m", f"ausm_ros.{module}", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=stdout, text=True)
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[str]") -> None:
    """Asks it to end; kills it when it does not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def run(plan: "Plan", frames: int | None, out: Path) -> list[int]:
    """The whole run; player and recorder leave their files in `out`.

    Returns the resident bytes of the node, ten times a second while the clip played. Raises DemoError when a process
    fails.
    """
    parameters = [word for parameter in plan.parameters for word in ("-p", parameter)]
    play: list[object] = [
        "--input",
        plan.input,
        "--start",
        plan.start,
        "--speed",
        plan.speed,
        "--log",
        out / PLAYER_LOG,
    ]
    play += ["--camera", CAMERA, "--node", NODE, "--listeners", *LISTENERS]
    play += ["--frames", frames] if frames is not None else []
    play += ["--topic", plan.topic] if plan.topic else []
    play += ["--prompt", plan.prompt, "--prompt-frame", plan.prompt_frame] if plan.prompt else []
    record = ["--out", out, "--camera", CAMERA, "--node", NODE]
    with (
        started("perception_node", "--ros-args", "-p", f"cameras:=[{CAMERA}]", *parameters) as node,
        started("demo_recorder", *record, stdout=subprocess.PIPE) as recorder,
    ):
        ready = _first_line(recorder.stdout)
        _watch(ready.is_set, START_SECONDS, {"node": node, "recorder": recorder}, "the recorder hears the node")
        resident: list[int] = []
        usage = psutil.Process(node.pid)
        with started("demo_player", *play) as player:

            def ended() -> bool:
                resident.append(usage.memory_info().rss)
                return player.poll() is not None

            _watch(ended, float("inf"), {"node": node, "recorder": recorder}, "the clip is played")
            if player.returncode:
                raise DemoError(f"the player has ended with {player.returncode}")
        time.sleep(LAST_DIAGNOSTICS)
        stop(recorder)
        if recorder.returncode:
            raise DemoError(f"the recorder has ended with {recorder.returncode}")
    return resident


def _first_line(stream: IO[str] | None) -> threading.Event:
    """Set when the process has printed its first line; its output is read on, so that it never blocks."""
    seen = threading.Event()

    def read() -> None:
        for _ in stream or ():
            seen.set()

    threading.Thread(target=read, daemon=True).start()
    return seen


def _watch(done: Callable[[], bool], seconds: float, needed: "dict[str, subprocess.Popen[str]]", what: str) -> None:
    """Until `done`. Raises DemoError after that many seconds, or when a process that is needed has ended."""
    end = time.monotonic() + seconds
    while not done():
        for name, process in needed.items():
            if process.poll() is not None:
                raise DemoError(f"the {name} has ended with {process.returncode} before {what}")
        if time.monotonic() > end:
            raise DemoError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
