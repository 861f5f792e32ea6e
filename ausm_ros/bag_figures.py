"""What a run over a recording leaves behind, and report.json made from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil

from ausm.io import FrameSource
from ausm.tracks import Source, Track, TrackState
from ausm_ros.bag_scores import BagScorer
from ausm_ros.demo_report import percentiles
from ausm_ros.session import Snapshot

BAG, REPORT, HTML = "instances", "report.json", "report.html"  # names in the output folder
EARLY = 50  # frame by which caches are warm: memory should not grow from here on
PERCENT = {
    "JF": "J&F", "J": "J", "F": "F", "J_recall": "J recall", "F_recall": "F recall", "AP": "AP", "AP50": "AP50",
    "AP75": "AP75", "AR10": "AR10", "HOTA": "HOTA", "DetA": "DetA", "AssA": "AssA", "IDF1": "IDF1", "MOTA": "MOTA",
    "J_frame_mean": "J per frame",
}  # fmt: skip
COUNTS = {
    "true_tracks": "true tracks", "predicted_tracks": "found tracks", "missed": "missed masks", "false": "false masks",
    "id_switches": "id switches",
}  # fmt: skip


class FrameRow(NamedTuple):
    """One processed image."""

    index: int  # type: ignore[assignment]  # as in ausm.io.Frame
    stamp_ns: int
    latency_ms: float  # the model's step, prompts included
    ids: tuple[int, ...]  # objects with a mask
    j: float  # 0..1, NaN where there is nothing to compare


class TrackRow(NamedTuple):
    """What became of one object."""

    id: int
    name: str
    source: str
    class_name: str
    score: float  # newest
    spans: tuple[tuple[int, int], ...]  # first and last frame of each uninterrupted sighting
    last_state: str


@dataclass
class Run:
    """Grows by one row per frame."""

    frames: list[FrameRow] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)  # resident bytes of this process after each frame
    state_bytes: list[int] = field(default_factory=list)
    tracks: dict[int, TrackRow] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0  # reading, scoring and writing included
    hash: str = ""

    def __post_init__(self) -> None:
        self._process = psutil.Process()

    def add(self, row: FrameRow, tracks: Sequence[Track], snapshot: Snapshot) -> None:
        """The next frame and all its tracks."""
        self.frames.append(row)
        self.rss.append(self._process.memory_info().rss)
        self.state_bytes.append(snapshot.state_bytes)
        number, seen = len(self.frames) - 1, set(row.ids)
        for t in tracks:
            old = self.tracks.get(t.track_id)
            spans = old.spans if old else ()
            if t.track_id in seen:
                extends = bool(spans) and spans[-1][1] == number - 1
                spans = (*spans[:-1], (spans[-1][0], number)) if extends else (*spans, (number, number))
            elif not spans:  # tentative and never drawn
                continue
            score = float(t.score) if t.track_id in seen or old is None else old.score
            source, state = Source(t.source).name.lower(), TrackState(t.state).name.lower()
            self.tracks[t.track_id] = TrackRow(t.track_id, t.name, source, t.class_name, score, spans, state)


def _rounded(value: Any) -> Any:
    """Figures for JSON: floats to five digits, NaN as null."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value


def _number(values: Sequence[int], index: int) -> int:
    return values[min(index, len(values) - 1)]


def make_report(
    source: FrameSource,
    truth: str | None,
    model: dict[str, Any],
    settings: dict[str, Any],
    run: Run,
    scorer: BagScorer | None,
) -> dict[str, Any]:
    """report.json. `summary` is the one JSON line of the command; `frames` holds the curves. Scores are in percent."""
    scores, objects, notes = scorer.finish() if scorer else ({}, [], [])
    times = [row.latency_ms for row in run.frames]
    latency = percentiles(times)
    judged = [row.j for row in run.frames if not math.isnan(row.j)]
    summary: dict[str, Any] = {
        "frames": len(run.frames),
        "fps": round(1e3 * len(times) / sum(times), 3),
        "latency_p50_ms": latency.p50,
        "latency_p95_ms": latency.p95,
        "latency_p99_ms": latency.p99,
        "latency_max_ms": latency.max,
        "rss_early_bytes": _number(run.rss, EARLY),
        "rss_late_bytes": run.rss[-1],
        "rss_peak_bytes": max(run.rss),
        "state_bytes": max(run.state_bytes),
        "tracks": len(run.tracks),
        "hash": run.hash,
        "checkpoint_sha256": model["sha256"],
        "precision": model["precision"],
    }
    summary |= {name: _rounded(value) for name, value in scores.items()}
    if judged:
        summary["J_frame_mean"] = round(100 * sum(judged) / len(judged), 5)
    first, last = run.frames[0].stamp_ns, run.frames[-1].stamp_ns
    return {
        "input": {
            "path": str(source.path), "topic": source.topic, "truth_topic": truth, "width": source.width,
            "height": source.height, "rate_hz": _rounded(source.rate), "seconds": (last - first) / 1e9,
            "frames_in_bag": source.count,
        },
        "model": model,
        "settings": settings,
        "summary": summary,
        "notes": [*run.notes, *notes],
        "seconds": round(run.seconds, 3),
        "objects": [{k: _rounded(v) for k, v in row.items()} for row in objects],
        "tracks": [run.tracks[i]._asdict() | {"score": _rounded(run.tracks[i].score)} for i in sorted(run.tracks)],
        "frames": {
            "index": [row.index for row in run.frames],
            "stamp_ns": [row.stamp_ns for row in run.frames],
            "latency_ms": [round(row.latency_ms, 3) for row in run.frames],
            "objects": [len(row.ids) for row in run.frames],
            "j": [_rounded(row.j) for row in run.frames],
            "rss_bytes": run.rss,
            "state_bytes": run.state_bytes,
        },
    }  # fmt: skip


def score_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores that are defined, for a table: percent to one digit, then counts."""
    rows = [(name, f"{summary[key]:.1f}") for key, name in PERCENT.items() if summary.get(key) is not None]
    return rows + [(name, str(summary[key])) for key, name in COUNTS.items() if summary.get(key) is not None]


def live_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What the running node did with the same recording; nothing without --live."""
    if not (live := summary.get("live")):
        return []
    delay = f"{live['latency_p50_ms']:.1f} ms median, {live['latency_p95_ms']:.1f} p95, image to subscriber"
    return [
        ("live frames", f"{live['frames_out']} of {live['frames_in']}, {live['dropped']} dropped; {live['why']}"),
        ("live rate", f"{live['fps_in']:.1f} Hz in, {live['fps_out']:.1f} Hz out"),
        *([("live latency", delay)] if "latency_p50_ms" in live else []),
        *((f"live {name}", value) for name, value in score_rows(live)),
    ]


def table(report: dict[str, Any]) -> str:
    """The report in lines for people."""
    s, source, model = report["summary"], report["input"], report["model"]
    mb, ms = 1 / 2**20, [f"{s[f'latency_{p}_ms']:.1f}" for p in ("p50", "p95", "p99")]
    lines = [
        ("input", f"{source['path']} {source['topic']}, {source['height']}x{source['width']}, {s['frames']} frames"),
        ("truth", source["truth_topic"] or "none: nothing is scored"),
        ("model", f"{model['checkpoint']} on {model['device']}, {model['precision']}"),
        ("speed", f"{s['fps']:.1f} frames/s"),
        ("latency", f"{ms[0]} ms median, {ms[1]} p95, {ms[2]} p99"),
        ("memory", f"{s['rss_early_bytes'] * mb:.0f} MiB early, {s['rss_late_bytes'] * mb:.0f} MiB at the end"),
        ("state", f"{s['state_bytes'] * mb:.2f} MiB"),
        ("tracks", str(s["tracks"])),
        *score_rows(s),
        *live_rows(s),
        ("hash", s["hash"]),
        *(("note", note) for note in report["notes"]),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in lines)
