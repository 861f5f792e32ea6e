"""Figures and pictures of a demo, made from what the recorder received: report.json, overlay.mp4, sheet.png."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ausm.tracks import Source, TrackState
from ausm.visualize import VideoWriter, contact_sheet, draw_caption, draw_tracks, write_image
from ausm_ros.counts import DROPS
from ausm_ros.demo_recorder import StoredImage
from ausm_ros.instance_bag import Received
from ausm_ros.messages import to_drawn, to_ns
from ausm_ros.msg import InstanceArray

SHEET = 8  # pictures


class Percentiles(NamedTuple):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float


class Recording(NamedTuple):
    """What one demo left behind."""

    stamps: list[int]  # of the frames that were played, in order [ns]
    frames: list[int]  # their indices in the input
    pause_s: float  # how long the player held at the prompt frame
    prompt: dict[str, Any] | None  # the player's log of add_objects
    received: list[Received]  # InstanceArray messages in the order of receipt
    images: list[StoredImage]  # images that arrived at the recorder
    diagnostics: list[dict[str, Any]]  # first and last
    rss: list[tuple[int, int]]  # time [ns] and resident bytes of the node


def percentiles(values: Sequence[float]) -> Percentiles:
    """Of at least one value."""
    return Percentiles(*(round(float(np.percentile(values, q)), 2) for q in (50, 95, 99, 100)))


def rate(stamps: Sequence[int], pause_s: float = 0.0) -> float:
    """Per second, from first to last stamp [ns] less a pause; 0 for fewer than two."""
    seconds = (stamps[-1] - stamps[0]) / 1e9 - pause_s if len(stamps) > 1 else 0.0
    return round((len(stamps) - 1) / seconds, 2) if seconds > 0 else 0.0


def summarise_tracks(messages: Sequence[InstanceArray]) -> list[dict[str, Any]]:
    """One entry per id in order of appearance; frame numbers count processed frames."""
    tracks: dict[int, dict[str, Any]] = {}
    for number, message in enumerate(messages):
        for i in message.instances:
            entry = tracks.setdefault(i.track_id, {"id": i.track_id, "first": number, "seen": 0, "lost": 0})
            entry |= {"name": i.name, "source": Source(i.source).name.lower(), "class_name": i.class_name}
            entry |= {"last": number, "last_state": TrackState(i.state).name.lower(), "score": round(i.score, 3)}
            entry["seen"] += i.state in (TrackState.TRACKED, TrackState.TENTATIVE)
            entry["lost"] += i.state == TrackState.LOST
    return list(tracks.values())


def follow_prompt(prompt: dict[str, Any] | None, messages: Sequence[InstanceArray]) -> dict[str, Any] | None:
    """What became of the prompted objects between the prompt and the end; None without a prompt."""
    if prompt is None:
        return None
    ids = [r["track_id"] for r in prompt["results"] if r["code"] == 0]
    after = [m for m in messages if to_ns(m.header.stamp) > prompt["applied_stamp_ns"]]
    states = [{i.track_id: i.state for i in m.instances} for m in after]
    alive = [all(s.get(i, TrackState.REMOVED) != TrackState.REMOVED for i in ids) for s in states]
    seen = [sum(s.get(i) == TrackState.TRACKED for s in states) for i in ids]
    return {
        "frame": prompt["frame"],
        "success": prompt["success"],
        "message": prompt["message"],
        "results": prompt["results"],
        "on_its_own_frame": prompt["applied_stamp_ns"] == prompt["stamp_ns"],
        "frames_after": len(after),
        "alive_to_the_end": bool(ids) and len(ids) == len(prompt["results"]) and all(alive),
        "frames_seen": dict(zip(map(str, ids), seen, strict=True)),
    }


def explain_drops(recording: Recording, messages: Sequence[InstanceArray]) -> dict[str, Any]:
    """How many of the played frames have no result, and where they were left.

    `by_the_node` is what its messages say. The rest were `overwritten` before the node looked: its subscription holds
    one image, the newest. `counters` are the node's own, by reason, of its last diagnostics.
    """
    dropped = len(recording.stamps) - len(messages)
    by_the_node = sum(m.dropped for m in messages)
    reasons: dict[str, int] = {}
    for name, values in (recording.diagnostics[-1]["status"] if recording.diagnostics else {}).items():
        if name.endswith(" stream"):
            reasons = {k: int(v) for k, v in values.items() if k in DROPS and int(v)}
    why = "none"
    if dropped:
        step = percentiles([to_ns(m.processing_time) / 1e6 for m in messages]).p50 if messages else float("nan")
        period = 1e3 / (rate(recording.stamps, recording.pause_s) or float("nan"))
        why = (
            f"the node takes the newest image when it is free: it took {step:.0f} ms from receipt to publication "
            f"(median), an image came every {period:.0f} ms"
        )
    return {
        "total": dropped,
        "by_the_node": by_the_node,
        "overwritten": dropped - by_the_node,
        "counters": reasons,
        "why": why,
    }


def memory(recording: Recording) -> dict[str, Any]:
    """Bytes of the model's state and of the node's process, at half of the results and at the end."""
    values = [v for d in recording.diagnostics for n, v in d["status"].items() if n.endswith("ausm: memory")]
    states = [int(v["state_bytes"]) for v in values if "state_bytes" in v]
    begin = recording.received[len(recording.received) // 2].received if recording.received else 0
    rss = [resident for time_ns, resident in recording.rss if time_ns >= begin]
    return {
        "state_bytes": states[-1] if states else None,
        "node_rss_bytes": {"middle": rss[0], "end": rss[-1], "peak": max(r for _, r in recording.rss)} if rss else None,
    }


def make_report(recording: Recording, source: dict[str, Any]) -> dict[str, Any]:
    """report.json: `source` describes the input."""
    messages = [r.message for r in recording.received]
    tracks = summarise_tracks(messages)
    model: dict[str, Any] = {}
    for name, values in (recording.diagnostics[-1]["status"] if recording.diagnostics else {}).items():
        model = dict(values) if name.endswith("ausm: model") else model
    latency = [(r.received - to_ns(r.message.header.stamp)) / 1e6 for r in recording.received]
    split = {
        "image_stamp_to_subscriber": latency,
        "queue": [to_ns(m.queue_time) / 1e6 for m in messages],
        "inference": [to_ns(m.inference_time) / 1e6 for m in messages],
        "receipt_to_publication": [to_ns(m.processing_time) / 1e6 for m in messages],
    }
    return {
        "input": source,
        "model": model,
        "frames_in": len(recording.stamps),
        "frames_out": len(messages),
        "dropped": explain_drops(recording, messages),
        "images_at_subscriber": len(recording.images),
        "fps": {
            "in": rate(recording.stamps, recording.pause_s),
            "out": rate([to_ns(m.header.stamp) for m in messages], recording.pause_s),
            "hold_at_prompt_s": round(recording.pause_s, 3),
        },
        "latency_ms": {name: percentiles(v)._asdict() for name, v in split.items() if v},
        "prompt": follow_prompt(recording.prompt, messages),
        "tracks": {
            "prompted": sum(t["source"] == "prompt" for t in tracks),
            "discovered": sum(t["source"] == "discovered" for t in tracks),
            "list": tracks,
        },
        "memory": memory(recording),
    }


def overlays(recording: Recording, images: Path) -> Iterator[tuple[bool, np.ndarray]]:
    """For each image that arrived: is it one with a result, and the picture a viewer would see then.

    An image without a result shows the newest one that has: masks are never drawn on a picture they do not belong to.
    """
    results = {to_ns(r.message.header.stamp): r.message for r in recording.received}
    frame_of = dict(zip(recording.stamps, recording.frames, strict=True))
    shown: np.ndarray | None = None
    with images.open("rb") as file:
        for image in sorted(recording.images):
            message = results.get(image.stamp)
            if message is None and shown is not None:
                yield False, shown
                continue
            file.seek(image.offset)
            jpeg = np.frombuffer(file.read(image.length), np.uint8)
            shown = np.ascontiguousarray(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[:, :, ::-1])
            if message is not None:
                shown = draw_tracks(shown, to_drawn(message.instances, message.height, message.width))
            shown = draw_caption(shown, f"frame {frame_of.get(image.stamp, '?')}")
            yield message is not None, shown


def draw(recording: Recording, images: Path, out: Path, fps: float) -> str:
    """Writes overlay.mp4 and sheet.png (after the prompt, to the end) into `out`; returns the codec of the video."""
    has_result = {to_ns(r.message.header.stamp) for r in recording.received}
    start = recording.prompt["stamp_ns"] if recording.prompt else 0
    candidates = [i.stamp for i in sorted(recording.images) if i.stamp in has_result and i.stamp > start]
    chosen = {candidates[round(k)] for k in np.linspace(0, len(candidates) - 1, SHEET)} if candidates else set()
    sheet: list[np.ndarray] = []
    with VideoWriter(out / "overlay.mp4", fps) as video:
        for image, (_, picture) in zip(sorted(recording.images), overlays(recording, images), strict=True):
            video.write(picture)
            if image.stamp in chosen:
                sheet.append(picture)
        codec = video.codec
    if sheet:
        write_image(out / "sheet.png", contact_sheet(sheet, columns=2, width=640))
    return codec
