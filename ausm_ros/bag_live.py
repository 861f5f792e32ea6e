"""The same recording at its real rate: played to the running node over DDS, and what a subscriber got from it.

Reuses the processes of `ausm_ros.demo` (node, player, recorder). Here images are dropped when the node is too slow;
each is then judged by the result of the newest image that was processed, as a robot would have to use it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ausm.bag_masks import TruthReader
from ausm.errors import AusmError
from ausm_ros.bag_scores import BagScorer
from ausm_ros.demo import RAW, Plan, check, describe, load, prepare
from ausm_ros.demo_player import DemoError
from ausm_ros.demo_processes import run
from ausm_ros.demo_report import Recording, make_report
from ausm_ros.messages import to_mask, to_ns
from ausm_ros.msg import InstanceArray
from ausm_ros.parameters import SPECS, Settings
from ausm_ros.transport import use_large_shared_memory

FOLDER = "live"  # in the output folder


def make_plan(bag: Path, topic: str | None, frames: int, size: tuple[int, int], settings: Settings) -> Plan:
    """The whole recording once, at its own rate, to a node with the settings of the evaluation."""
    values = {s.name: getattr(settings, s.field) for s in SPECS if s.name not in ("cameras", "autostart")}
    values |= {"warmup_size": list(size)}
    parameters = tuple(f"{name}:={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
    return Plan(bag, topic, 0, frames, 1e9, None, 0, 1.0, parameters)


def masks_of(message: InstanceArray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """Id -> (H, W) bool mask and id -> score of the objects that are drawn."""
    drawn = [i for i in message.instances if len(i.mask.runs)]
    found = {i.track_id: to_mask(i.mask, message.height, message.width) for i in drawn}
    return {i: m for i, m in found.items() if m.any()}, {i.track_id: float(i.score) for i in drawn}


def score_live(
    recording: Recording, truth: TruthReader, stamps: Sequence[int], size: tuple[int, int]
) -> dict[str, float | int | None]:
    """Figures as those of the evaluation. stamps: of the images in the bag, by their index [ns]."""
    results: Mapping[int, InstanceArray] = {to_ns(r.message.header.stamp): r.message for r in recording.received}
    scorer = BagScorer(False, *size, len(stamps))
    found: dict[int, np.ndarray] = {}
    scores: dict[int, float] = {}
    for played, index in zip(recording.stamps, recording.frames, strict=True):
        if played in results:
            found, scores = masks_of(results[played])
        known = truth.at(stamps[index], *size)
        if known is not None:
            scorer.feed(index, found, scores, known)
    return scorer.finish()[0] if scorer.frames else {}


def run_live(plan: Plan, out: Path, truth: TruthReader | None, stamps: Sequence[int]) -> dict[str, Any]:
    """Plays, records, scores; DIR/live keeps the messages. Raises AusmError when a process fails."""
    use_large_shared_memory()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(20 + os.getpid() % 80))  # not to meet another robot
    clip, folder = check(plan), out / FOLDER
    prepare(folder)
    try:
        recording = load(folder, run(plan, clip.frames, folder))
    except DemoError as error:
        raise AusmError(f"live: {error}") from error
    finally:
        for name in RAW:
            (folder / name).unlink(missing_ok=True)
    report = make_report(recording, describe(plan, clip))
    latency = report["latency_ms"].get("image_stamp_to_subscriber", {})
    figures: dict[str, Any] = {
        "frames_in": report["frames_in"], "frames_out": report["frames_out"], "dropped": report["dropped"]["total"],
        "why": report["dropped"]["why"], "fps_in": report["fps"]["in"], "fps_out": report["fps"]["out"],
        "tracks": len(report["tracks"]["list"]),
    }  # fmt: skip
    figures |= {f"latency_{name}_ms": value for name, value in latency.items()}
    if resident := report["memory"]["node_rss_bytes"]:
        figures["rss_late_bytes"] = resident["end"]
    size = clip.source.height, clip.source.width
    scores = score_live(recording, truth, stamps, size) if truth else {}
    return figures | {name: round(v, 5) if isinstance(v, float) else v for name, v in scores.items()}
