"""The state of the node as `/diagnostics`: stream, objects and inference per camera, memory and model for the node."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from ausm.tracks import TrackState
from ausm_ros.counts import DROPS, USELESS, CameraCounts
from ausm_ros.memory import resident_bytes
from ausm_ros.parameters import Settings
from ausm_ros.session import Snapshot

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SILENT = 2.0  # seconds without an image that are an error
EVENTS = ("received", "processed", "time_jumps", "size_changes", "model_errors", "incompatible_qos")


class CameraView(NamedTuple):
    """What diagnostics look at for one camera."""

    name: str
    topic: str
    reliability: str
    enabled: bool
    counts: CameraCounts
    snapshot: Snapshot


def _hz(rate: float) -> str:
    return f"{rate:.1f} Hz" if rate == 0 or rate >= 1 else f"{rate:.2g} Hz"  # max_rate may be a few an hour


def _status(name: str, level: bytes, message: str, values: dict[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=f"{v:.3f}" if isinstance(v, float) else str(v)) for key, v in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id="ausm", values=pairs)


def stream_status(view: CameraView, settings: Settings) -> DiagnosticStatus:
    """Rates, drops by reason and the age of the last image."""
    counts = view.counts
    age = time.monotonic() - counts.last_received if counts.last_received else math.inf
    received, processed = counts.received.rate(), counts.processed.rate()
    totals = counts.totals((*EVENTS, *DROPS))
    level, message = OK, f"{received:.1f} Hz in, {_hz(processed)} processed"
    expected = settings.diagnostics_expected_rate
    if not view.enabled:
        message = "disabled"
    elif age > SILENT:
        level, message = ERROR, "no image yet" if math.isinf(age) else f"no image for {age:.1f} s"
        if counts.since_last_image("incompatible_qos"):
            message += ": a publisher offers an incompatible QoS"
    elif counts.useless():
        level, message = ERROR, f"{received:.1f} Hz in, none processed for {USELESS:g} s: {counts.reason()}"
    elif expected and received < 0.8 * expected:
        level, message = WARN, f"{received:.1f} Hz in, {expected:.1f} Hz expected"
    error, error_ago = counts.last_error()
    values: dict[str, object] = {
        "topic": view.topic,
        "reliability": view.reliability,
        "encoding": counts.encoding,
        "height": view.snapshot.height,
        "width": view.snapshot.width,
        "rate_in_hz": received,
        "rate_processed_hz": processed,
        "last_image_age_s": age,
        "last_error": error,
        "last_error_age_s": error_ago,
        **totals,
    }
    return _status(f"ausm: {view.name} stream", level, message, values)


def inference_status(view: CameraView, settings: Settings) -> DiagnosticStatus:
    """Percentiles of the model's time (of all cameras of a pass), the queue and receipt to publication [ms]."""
    values: dict[str, object] = {}
    for name, rolling in (
        ("inference", view.counts.inference),
        ("queue", view.counts.queue),
        ("processing", view.counts.processed),
    ):
        values |= {f"{name}_{key}_ms": value for key, value in rolling.percentiles()._asdict().items()}
    p95, limit = float(str(values["processing_p95_ms"])), settings.diagnostics_max_latency_ms
    late = limit > 0 and p95 > limit
    level, message = WARN if late else OK, f"p95 {p95:.0f} ms" + (f", more than {limit:.0f} ms" if late else "")
    if view.counts.recent("model_errors"):
        level, message = ERROR, f"history reset after an error: {view.counts.last_error()[0]}"
    return _status(f"ausm: {view.name} inference", level, message, values)


def objects_status(view: CameraView) -> DiagnosticStatus:
    """Places in use, epoch and ids."""
    s = view.snapshot
    lost = sum(t.state == TrackState.LOST for t in s.tracks)
    full = s.capacity > 0 and s.in_use >= s.capacity
    message = f"{s.in_use} of {s.capacity} in use, {lost} lost"
    values: dict[str, object] = {
        "in_use": s.in_use,
        "capacity": s.capacity,
        "lost": lost,
        "epoch": s.epoch,
        "ids_issued": s.ids_issued,
    }
    return _status(f"ausm: {view.name} objects", WARN if full else OK, message, values)


def memory_status(views: Sequence[CameraView], device: torch.device | None) -> DiagnosticStatus:
    """State bytes of all cameras, memory of the process and of the device."""
    state = sum(v.snapshot.state_bytes for v in views)
    values: dict[str, object] = {"state_bytes": state, "rss_bytes": resident_bytes()}
    if device is not None and device.type == "cuda":
        values |= {
            "device_allocated_bytes": torch.cuda.memory_allocated(device),
            "device_reserved_bytes": torch.cuda.memory_reserved(device),
            "device_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    return _status("ausm: memory", OK, f"state {state / 1e6:.1f} MB", values)


def model_status(values: dict[str, object], error: str) -> DiagnosticStatus:
    """values: checkpoint, sha256, device, ...; error: why the node is not running, "" if it is."""
    state = "" if values.get("active", True) else ", inactive: no image is processed"
    message = f"{values.get('checkpoint', '')}{state}"
    return _status("ausm: model", ERROR if error else OK, error or message, values)


def camera_statuses(view: CameraView, settings: Settings) -> list[DiagnosticStatus]:
    return [stream_status(view, settings), inference_status(view, settings), objects_status(view)]


def to_array(stamp: object, statuses: Sequence[DiagnosticStatus], node: str) -> DiagnosticArray:
    """stamp: builtin_interfaces/Time; node: put before each name, so that several nodes can be told apart."""
    message = DiagnosticArray()
    message.header.stamp = stamp
    for status in statuses:
        status.name = f"{node}: {status.name}"
    message.status = list(statuses)
    return message
