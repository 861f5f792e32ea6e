"""The part of `bench.fuzz` over DDS: a node in its own process, damaged messages on the wire, floods of requests."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ausm.errors import AusmError
from bench.node import picture
from bench.node_rig import NodeRig

SIZE = (64, 96)
RATE = 8.0  # images per second while the rate is measured
SPAN = 6.0  # seconds of each measurement
IN_FLIGHT = 16  # requests without an answer at a time
KEPT = 0.9  # least share of the calm rate that a flood must leave
ANSWER = 60.0  # seconds


def parameters() -> list[str]:
    return [
        "checkpoint:=random:nano", "device:=cpu", "threads:=1", "input_short_side:=64", "discovery:=false",
        f"warmup_size:=[{SIZE[0]}, {SIZE[1]}]",
    ]  # fmt: skip


class Caller:
    """Sends requests as they come, `IN_FLIGHT` at a time, and checks every answer."""

    def __init__(self, node: Any) -> None:
        from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
        from rclpy.qos import QoSProfile
        from std_srvs.srv import SetBool

        kinds = {
            "add_objects": AddObjects, "remove_objects": RemoveObjects, "list_objects": ListObjects, "reset": Reset,
            "enable": SetBool, "discovery": SetBool,
        }  # fmt: skip
        self._clients = {
            name: node.create_client(kind, f"/perception/{name}", qos_profile=QoSProfile(depth=100))
            for name, kind in kinds.items()
        }
        for client in self._clients.values():
            if not client.wait_for_service(timeout_sec=ANSWER):
                raise AusmError(f"no service {client.srv_name}")
        self._waiting: list[tuple[str, Any, Any, float]] = []
        self.answered = 0
        self.seen: Counter[Any] = Counter()

    def send(self, name: str, request: Any) -> None:
        """Returns when it is on its way, after waiting for a place; AssertionError for a wrong answer to another."""
        while len(self._waiting) >= IN_FLIGHT:
            self.collect()
            time.sleep(0.0005)
        self._waiting.append((name, request, self._clients[name].call_async(request), time.monotonic()))

    def collect(self) -> None:
        from bench.fuzz_rig import check_answer

        still = []
        for name, request, future, since in self._waiting:
            if future.done():
                check_answer(name, request, future.result(), self.seen)
                self.answered += 1
            elif time.monotonic() - since > ANSWER:
                raise AssertionError(f"{name}: no answer in {ANSWER:.0f} s")
            else:
                still.append((name, request, future, since))
        self._waiting = still

    def finish(self) -> None:
        while self._waiting:
            self.collect()
            time.sleep(0.001)


def damaged_on_the_wire(message: Any, dice: Any) -> bytes:
    """The serialised message with bytes changed, which no publisher of ROS would send."""
    from rclpy.serialization import serialize_message

    data = bytearray(serialize_message(message))
    for _ in range(dice.r.randrange(1, 6)):
        data[dice.r.randrange(min(len(data), dice.r.choice([60, len(data)])))] = dice.r.choice([0, 255, 127, 1])
    return bytes(data)[: dice.r.choice([len(data), dice.r.randrange(4, len(data))])]


def processed_per_second(rig: NodeRig, image: np.ndarray) -> float:
    """InstanceArrays per second of `SPAN`, while images are shown at `RATE`."""
    before, start = len(rig.arrivals), time.monotonic()
    for k in range(round(SPAN * RATE)):
        time.sleep(max(0.0, start + k / RATE - time.monotonic()))
        rig.show(image)
    time.sleep(0.5)
    return (len(rig.arrivals) - before) / SPAN


def flood(seed: int) -> None:
    """The flooding process: random requests of a kind that changes nothing for long, until it is told to stop.

    Then it prints how many were answered, and the first wrong answer if there was one.
    """
    import rclpy

    from bench.fuzz_dice import Dice

    rclpy.init()
    node = rclpy.create_node("flood")
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    dice, stop = Dice(seed, SIZE), threading.Event()
    requests = [dice.request()[:2] for _ in range(300)]
    requests = [r for r in requests if r[0] in ("add_objects", "list_objects", "remove_objects")]

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    caller, wrong = Caller(node), ""
    print("ready", flush=True)
    try:
        while not stop.is_set():
            for name, request in requests:
                if not stop.is_set():
                    caller.send(name, request)
        answered = caller.answered
        caller.finish()
    except AssertionError as error:
        answered, wrong = caller.answered, f"{error}"[:500]
    print(json.dumps({"answered": answered, "wrong": wrong}), flush=True)
    os._exit(0)  # the executor's thread has no end


def flooded(rig: NodeRig, image: np.ndarray, seed: int) -> tuple[float, float]:
    """Images and requests per second when both come as fast as they go, from two processes."""
    command = [sys.executable, "-m", "bench.fuzz_dds", str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise AssertionError("the flooding process did not start")
    start = time.monotonic()
    rate = processed_per_second(rig, image)
    span = time.monotonic() - start
    process.stdin.close()
    result = json.loads(process.stdout.readline())
    process.wait(ANSWER)
    if result["wrong"]:
        raise AssertionError(result["wrong"])
    return rate, result["answered"] / span


def over_dds(number: int, seed: int, log: Path) -> dict[str, Any]:
    """`number` random requests, as many images, a tenth of them damaged on the wire; then the flood."""
    from bench.fuzz_dice import Dice

    dice, image, start = Dice(seed, SIZE), picture(SIZE), time.monotonic()
    with NodeRig(parameters(), log) as rig:
        rig.wait_for_node(image)
        caller = Caller(rig.node)
        for k in range(number):
            message = dice.camera_image()
            rig.publisher.publish(damaged_on_the_wire(message, dice) if k % 10 == 0 else message)
            name, request, _ = dice.request()
            caller.send(name, request)
        caller.finish()
        rig.wait_until(lambda: rig.process.poll() is None, "the node to be alive", 1)
        from ausm_ros.srv import Reset
        from std_srvs.srv import SetBool

        rig.call(SetBool, "enable", SetBool.Request(data=True))
        rig.call(SetBool, "discovery", SetBool.Request(data=False))
        rig.call(Reset, "reset", Reset.Request())
        before = len(rig.arrivals)
        rig.wait_until(lambda: rig.show(image) and len(rig.arrivals) > before, "an ordinary image to be processed", 60)
        calm = processed_per_second(rig, image)
        rate, served = flooded(rig, image, seed)
    text = log.read_text()
    if "Traceback" in text or "failed at" in text:
        raise AssertionError(f"an exception in the node's log: {log}")
    if rate < KEPT * calm:
        words = f"{rate:.1f} images per second in a flood of {served:.0f} requests per second, {calm:.1f} without"
        raise AssertionError(words)
    return {
        "messages": 2 * number,
        "seconds": time.monotonic() - start,
        "calm_hz": calm,
        "flooded_hz": rate,
        "requests_per_s": served,
        "codes": {code.name: n for code, n in sorted(caller.seen.items())},
    }


if __name__ == "__main__":
    flood(int(sys.argv[1]))
