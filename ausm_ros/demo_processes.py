"""Starts node, recorder and player of the demo, watches over them, and stops them in order."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ausm_ros.demo_player import DemoError

if TYPE_CHECKING:
    from ausm_ros.demo import Plan

NODE, CAMERA = "/perception", "camera"
PLAYER_LOG = "player.json"
LISTENERS = ("perception", "demo_recorder")  # the player waits for both
LAST_DIAGNOSTICS = 1.5  # seconds: the node publishes them once a second
STOP_SECONDS = 20.0


@contextmanager
def started(module: str, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A module of ours as a process; SIGINT at the end, then harder."""
    command = [sys.executable, "-m", f"ausm_ros.{module}", *map(str, arguments)]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks it to end; kills it when it does not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def run(plan: "Plan", frames: int | None, out: Path) -> list[tuple[int, int]]:
    """The whole run; player and recorder leave their files in `out`.

    Returns the time [ns] and the resident bytes of the node, ten times a second. Raises DemoError when a process fails.
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
        started("demo_recorder", *record) as recorder,
        started("demo_player", *play) as player,
    ):
        resident = []
        usage = psutil.Process(node.pid)
        while player.poll() is None:
            for name, process in (("node", node), ("recorder", recorder)):
                if process.poll() is not None:
                    raise DemoError(f"the {name} has ended with {process.returncode} before the clip was played")
            with suppress(psutil.NoSuchProcess):  # the next turn tells
                resident.append((time.time_ns(), usage.memory_info().rss))
            time.sleep(0.1)
        if player.returncode:
            raise DemoError(f"the player has ended with {player.returncode}")
        time.sleep(LAST_DIAGNOSTICS)
        stop(recorder)
        if recorder.returncode:
            raise DemoError(f"the recorder has ended with {recorder.returncode}")
    return resident
