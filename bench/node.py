"""`ausm bench node`: the latency of the ROS 2 node, from the stamp of an image to its InstanceArray in another process.

This process is camera and listener, the node another one. Prints a table and, as its last line, one JSON object:
`latency_*` stamp to receipt; `inference` the model's step; `queue` the wait for the step before; `own` the node's
decoding and messages; `transport` both ways over DDS; `overhead` = latency - inference; `step` the bare model here,
with the node's settings, precision and prompts.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ausm.errors import AusmError
from ausm.masks import Box
from bench.node_rig import Arrival, NodeRig

if TYPE_CHECKING:
    from ausm_ros.session import Session

WARM_UP = 10  # images before the measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="480x640", help="HxW of the images (default %(default)s)")
    parser.add_argument("--rate", type=float, default=5.0, help="images per second (default %(default)s)")
    parser.add_argument("--objects", type=int, default=3, help="prompted objects (default %(default)s)")
    parser.add_argument("--frames", type=int, default=100, help="images that are measured (default %(default)s)")
    parser.add_argument("--checkpoint", default="nano", help="as the node's parameter (default %(default)s)")
    parser.add_argument("--short-side", type=int, default=0, help="input_short_side; 0 = the checkpoint's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="as the node's parameter (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the model; 0 = PyTorch's own choice")
    parser.add_argument("--log", type=Path, help="file for the node's output")


def parse_size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise AusmError(f"size {text!r} is not HxW, such as 480x640")
    return int(match[1]), int(match[2])


def picture(size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: coloured discs on a smooth ground, always the same."""
    import cv2

    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(60, 200, (6, 8, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = tuple(int(v) for v in rng.integers(0, size[::-1]))
        cv2.circle(image, centre, int(rng.integers(15, 60)), tuple(int(v) for v in rng.integers(0, 256, 3)), cv2.FILLED)
    return image


def place_boxes(size: tuple[int, int], number: int) -> list[Box]:
    """`number` boxes in a row."""
    pitch = size[1] // (number + 1)
    top, width, height = size[0] // 3, pitch * 2 // 3, size[0] // 4
    return [Box(pitch // 2 + k * pitch, top, width, height) for k in range(number)]


def prompt_boxes(rig: NodeRig, boxes: Sequence[Box], image: np.ndarray) -> int:
    """Prompts the node; returns how many of the boxes it took."""
    from ausm_ros.msg import Prompt
    from ausm_ros.srv import AddObjects
    from sensor_msgs.msg import RegionOfInterest

    if not boxes:
        return 0
    places = [RegionOfInterest(x_offset=b.x, y_offset=b.y, width=b.width, height=b.height) for b in boxes]
    answer = rig.call(AddObjects, "add_objects", AddObjects.Request(prompts=[Prompt(type=3, box=p) for p in places]))
    rig.show(image)
    return sum(r.code == 0 for r in answer.results)


def seconds(duration: Any) -> float:
    return float(duration.sec + duration.nanosec / 1e9)


def split(arrivals: list[Arrival]) -> dict[str, np.ndarray]:
    """Milliseconds of each part, one value for each message."""
    rows = []
    for at, message in arrivals:
        latency = at - seconds(message.header.stamp)
        queue, inference = seconds(message.queue_time), seconds(message.inference_time)
        processing = seconds(message.processing_time)
        own = processing - queue - inference
        rows.append((latency, inference, queue, own, latency - processing, latency - inference))
    names = ("latency", "inference", "queue", "own", "transport", "overhead")
    return dict(zip(names, 1e3 * np.array(rows).T, strict=True))


def bare_session(args: argparse.Namespace, boxes: Sequence[Box], image: np.ndarray, precision: str) -> "Session":
    """What the node has for its camera: the default settings, this image seen and the boxes prompted on it."""
    import torch

    from ausm_ros.parameters import SPECS, make_settings
    from ausm_ros.prompts import ObjectPrompt
    from ausm_ros.runtime import load_model, stream_maker
    from ausm_ros.session import Session

    given = {name: getattr(args, name) for name in ("checkpoint", "device", "threads")}
    given |= {"input_short_side": args.short_side, "precision": precision}
    settings = make_settings({spec.name: spec.default for spec in SPECS} | given)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    session = Session(stream_maker(load_model(settings)[0], settings))
    session.see(image.shape[0], image.shape[1], 1)
    session.step(image, 1)
    prompts = []
    for box in boxes:
        mask = np.zeros(image.shape[:2], bool)
        mask[box.y : box.y + box.height, box.x : box.x + box.width] = True
        prompts.append(ObjectPrompt(mask, box=box))
    session.prompt(prompts, atomic=False)
    return session


def bare_step(session: "Session", image: np.ndarray) -> float:
    """Median milliseconds of `Stream.step` on the same image with nothing around it, in this process."""
    times = []
    for _ in range(25):
        session.stream.absorb()  # as in the node: this part is off the latency
        start = time.perf_counter()
        session.stream.step(image)
        times.append(time.perf_counter() - start)
    return float(1e3 * np.median(times[5:]))


def run(args: argparse.Namespace) -> int:
    size = parse_size(args.size)
    image = picture(size)
    parameters = [f"checkpoint:={args.checkpoint}", f"device:={args.device}", f"threads:={args.threads}"]
    parameters += [f"input_short_side:={args.short_side}", f"warmup_size:=[{size[0]}, {size[1]}]"]
    parameters += [f"precision:={args.precision}"]
    boxes = place_boxes(size, args.objects)
    with NodeRig(parameters, args.log) as rig:
        rig.wait_for_node(image)
        objects = prompt_boxes(rig, boxes, image)
        stamps = []
        period, due = 1.0 / args.rate, time.monotonic()
        for k in range(WARM_UP + args.frames):
            due += period
            time.sleep(max(0.0, due - time.monotonic()))
            stamps.append(rig.show(image))
            if k % 20 == 0:
                print(f"\r{k}/{WARM_UP + args.frames} images", end="", file=sys.stderr)
        time.sleep(2.0 + 2 * period)
        print("\r", end="", file=sys.stderr)
        rig.wait_until(lambda: "precision" in rig.model, "diagnostics", 10.0)
        precision = rig.model["precision"]  # what auto has chosen there: here it might choose otherwise
        first = stamps[WARM_UP]
        arrivals = [a for a in rig.arrivals if round(seconds(a.message.header.stamp) * 1e9) >= first - 1000]
    if not arrivals:
        raise AusmError(f"{args.frames} images shown, no InstanceArray received")
    parts = split(arrivals)
    figures: dict[str, float] = {}
    what = f"{args.checkpoint} in {precision}, {args.size} at {args.rate:g} Hz, {objects} prompted objects"
    print(f"{what}, {len(arrivals)} messages")
    print(f"{'ms':12s} {'p50':>8s} {'p95':>8s} {'max':>8s}")
    for name, values in parts.items():
        p50, p95 = np.percentile(values, [50, 95])
        figures |= {f"{name}_p50_ms": round(float(p50), 3), f"{name}_p95_ms": round(float(p95), 3)}
        print(f"{name:12s} {p50:8.2f} {p95:8.2f} {values.max():8.2f}")
    figures["step_p50_ms"] = round(bare_step(bare_session(args, boxes, image, precision), image), 3)
    print(f"{'bare step':12s} {figures['step_p50_ms']:8.2f}")
    sent, received = args.frames, len(arrivals)
    counts = {"sent": sent, "received": received, "dropped": sent - received, "objects": objects}
    print(json.dumps({**figures, **counts, "precision": precision}))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
