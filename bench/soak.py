"""`python -m bench.soak --minutes 20`: a node under everything at once; memory and latency must not grow.

Every minute brings the same mix in random order: births, re-prompts, removals, resets, another image size, malformed
images and requests, duplicates, zero stamps and jumps back in time. Compared are the second and the last minute:
resident memory within 2 %, state bytes equal, 95th percentile of the latency within 10 %; no exception in the node's
log. Before the first minute the node once holds every number of objects it may in both sizes: the kernels that oneDNN
compiles for each shape are memory that comes once and stays. Prints one row a minute and, as its last line, one JSON
object. The exit status is 0 only if all hold.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.node import picture, seconds
from bench.node_rig import NodeRig

SIZES = ((240, 320), (200, 360))  # the first is the usual one
CAPACITY = 30  # places for objects
RATE = 5.0  # images per second, unless another is given
EVENTS = (
    ["prompt"] * 12 + ["again"] * 4 + ["remove"] * 6 + ["reset"] * 2 + ["bad_prompt"] * 8 + ["bad_image"] * 8
    + ["duplicate"] * 4 + ["zero"] * 2 + ["back"] + ["resize"] + ["list"] * 4 + ["parameter"] * 2
)  # fmt: skip


class Minute(NamedTuple):
    """What was measured in one minute."""

    rss: float  # bytes, median
    state: float  # bytes, at its end
    p50: float  # ms, stamp to receipt
    p95: float
    messages: int
    dropped: int
    live: int  # objects in use at its end
    epochs: int


class Soak:
    """Drives one node through its events."""

    def __init__(self, rig: NodeRig, seed: int, rate: float = RATE) -> None:
        self.rig, self.random, self.rate = rig, random.Random(seed), rate
        self.images = [picture(size) for size in SIZES]
        self.size = 0
        self.codes: Counter[str] = Counter()
        self.process = psutil.Process(rig.process.pid)

    def _prompt(self, **fields: Any) -> Any:
        from ausm_ros.msg import Prompt
        from sensor_msgs.msg import RegionOfInterest

        height, width = SIZES[self.size]
        x, y = self.random.randrange(width - 60), self.random.randrange(height - 60)
        return Prompt(type=3, box=RegionOfInterest(x_offset=x, y_offset=y, width=50, height=50), **fields)

    def _add(self, *prompts: Any) -> None:
        from ausm_ros.srv import AddObjects

        from ausm_ros.prompts import Code

        answer = self.rig.call(AddObjects, "add_objects", AddObjects.Request(prompts=prompts))
        self.codes.update(Code(r.code).name for r in answer.results)

    def _live(self) -> list[int]:
        from ausm_ros.srv import ListObjects

        answer = self.rig.call(ListObjects, "list_objects", ListObjects.Request())
        return [i.track_id for i in answer.objects]

    def event(self, name: str) -> None:
        """One of `EVENTS`."""
        from ausm_ros.msg import Prompt
        from ausm_ros.srv import RemoveObjects, Reset
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        rig, image = self.rig, self.images[self.size]
        if name == "prompt":
            self._add(*[self._prompt(name=self.random.choice(["", "cup"])) for _ in range(self.random.randrange(1, 4))])
        elif name == "again":
            self._add(self._prompt(track_id=self.random.choice(self._live() or [7])))
        elif name == "remove":
            ids = self.random.sample(live := self._live(), min(len(live), 4))
            rig.call(RemoveObjects, "remove_objects", RemoveObjects.Request(track_ids=ids))
        elif name == "reset":
            rig.call(Reset, "reset", Reset.Request())
        elif name == "bad_prompt":
            self._add(Prompt(type=self.random.randrange(8)), self._prompt(track_id=10**6))
        elif name == "bad_image":
            self._bad_image(image)
        elif name == "duplicate":
            stamp = rig.show(image)
            rig.show(image, stamp)
        elif name == "zero":
            rig.show(image, 0)
        elif name == "back":
            rig.show(image, time.time_ns() - 100 * 10**9)
        elif name == "resize":
            self.size = 1 - self.size
        elif name == "list":
            self._live()
        elif name == "parameter":
            parameter = Parameter("score_threshold", value=self.random.uniform(0.3, 0.7)).to_parameter_msg()
            rig.call(SetParameters, "set_parameters", SetParameters.Request(parameters=[parameter]))

    def fill(self) -> None:
        """In either size every number of objects from 1 to all places, an image for each."""
        from ausm_ros.srv import Reset

        rig = self.rig
        for size in (1, 0):
            self.size = size
            for number in range(CAPACITY + 1):
                if number:
                    self._add(self._prompt())
                before = len(rig.arrivals)
                rig.wait_until(lambda n=before: self._shown(n), "an answer to an image")
            rig.call(Reset, "reset", Reset.Request())

    def _shown(self, number: int) -> bool:
        """Shows an image; whether more than `number` answers have come."""
        self.rig.show(self.images[self.size])
        time.sleep(1 / self.rate)
        return len(self.rig.arrivals) > number

    def _bad_image(self, image: np.ndarray) -> None:
        from std_msgs.msg import Header

        from ausm_ros.messages import to_image, to_time

        message = to_image(Header(stamp=to_time(time.time_ns())), image)
        kind = self.random.randrange(3)
        if kind == 0:
            message.encoding = "h265"
        elif kind == 1:
            message.data = message.data[: self.random.randrange(len(message.data))]
        else:
            message.width = 4_000_000_000
        self.rig.publisher.publish(message)

    def _settle(self) -> None:
        """Back to the usual size and until diagnostics tell of it, so that the bytes of the state can be compared."""
        rig, self.size = self.rig, 0
        usual = SIZES[0]

        def answered() -> bool:
            rig.show(self.images[0])
            time.sleep(1 / self.rate)
            message = rig.arrivals[-1].message if rig.arrivals else None
            return message is not None and (message.height, message.width) == usual and message.frame_index > 0

        rig.wait_until(answered, "an answer of the usual size")
        since = time.time()
        # zero bytes would be the moment between an epoch and its first image
        rig.wait_until(
            lambda: sum(s["at"] > since and s["state_bytes"] > 0 for s in rig.states[-2:]) > 1, "diagnostics"
        )

    def minute(self, length: float) -> Minute:
        """All events in random order over `length` seconds, images at the rate throughout."""
        events = list(EVENTS)
        self.random.shuffle(events)
        start, first, rss = time.monotonic(), len(self.rig.arrivals), []
        frames, done = 0, 0
        while (now := time.monotonic() - start) < length:
            if done < len(events) and now > (done + 0.5) * 0.9 * length / len(events):
                self.event(events[done])
                done += 1
            if now >= frames / self.rate:
                self.rig.show(self.images[self.size])
                rss.append(self.process.memory_info().rss)
                frames += 1
            time.sleep(0.005)
        self._settle()
        arrivals = self.rig.arrivals[first:]
        latency = [1e3 * (at - seconds(m.header.stamp)) for at, m in arrivals if seconds(m.header.stamp) > at - 50]
        dropped = sum(m.dropped for _, m in arrivals)
        epochs = len({m.epoch for _, m in arrivals})
        p50, p95 = np.percentile(latency, [50, 95])
        del self.rig.arrivals[:], self.rig.states[:-1]
        state = self.rig.states[-1]["state_bytes"]
        return Minute(float(np.median(rss)), state, p50, p95, len(arrivals), dropped, len(self._live()), epochs)


def row(number: int, m: Minute) -> str:
    megabytes = f"{m.rss / 2**20:8.1f} {m.state / 2**20:8.2f}"
    return f"{number:6d} {megabytes} {m.p50:8.1f} {m.p95:8.1f} {m.messages:8d} {m.dropped:8d} {m.live:6d} {m.epochs:6d}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--minute", type=float, default=60.0, help="seconds of a minute, for trials")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--short-side", type=int, default=128, help="input_short_side of the node")
    parser.add_argument("--rate", type=float, default=RATE, help="images per second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    log = Path(tempfile.mkdtemp(prefix="ausm_soak_")) / "node.log"
    parameters = [f"checkpoint:={args.checkpoint}", f"input_short_side:={args.short_side}", "device:=cpu"]
    parameters += [f"warmup_size:=[{SIZES[0][0]}, {SIZES[0][1]}]", f"capacity:={CAPACITY}", "max_missed:=30"]
    with NodeRig(parameters, log) as rig:
        soak = Soak(rig, args.seed, args.rate)
        rig.wait_for_node(soak.images[0])
        soak.fill()
        print(f"{'minute':>6s} {'RSS MB':>8s} {'state MB':>8s} {'p50 ms':>8s} {'p95 ms':>8s} "
              f"{'messages':>8s} {'dropped':>8s} {'live':>6s} {'epochs':>6s}")  # fmt: skip
        minutes = []
        for number in range(1, args.minutes + 1):
            minutes.append(soak.minute(args.minute))
            print(row(number, minutes[-1]), flush=True)
    text = log.read_text()
    exceptions = text.count("Traceback") + text.count("failed at")
    early, late = minutes[min(1, len(minutes) - 1)], minutes[-1]
    figures = {
        "rss_ratio": round(late.rss / early.rss, 4),
        "state_ratio": round(late.state / early.state, 4),
        "p95_ratio": round(late.p95 / early.p95, 4),
        "exceptions": exceptions,
        "minutes": len(minutes),
        "codes": dict(soak.codes),
    }
    flat = late.rss <= 1.02 * early.rss and late.state == early.state
    good = flat and late.p95 <= 1.1 * early.p95 and not exceptions
    print(f"results of prompts: {dict(soak.codes)}; node's log: {log}")
    print(json.dumps({**figures, "passed": bool(good)}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
