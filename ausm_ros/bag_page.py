"""report.html of a recording: one file, no script, no network; pictures and plots lie in it."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ausm.bag_masks import TruthReader
from ausm.io import FrameSource
from ausm.tracks import Source
from ausm.visualize import Drawn, colour_of, contact_sheet, draw_tracks
from ausm_ros.bag_figures import EARLY, score_rows
from ausm_ros.instance_bag import read_instances
from ausm_ros.messages import to_drawn, to_ns
from ausm_ros.svg import Bar, Curve, plot, timeline

PICTURES = 6
PANE = 520  # width of one picture [pixels]
LINES = 480  # least height that masks are drawn at [pixels]
QUALITY = 85  # of the JPEG pictures
BARS = 60  # lines of the timeline at most
MIB = 2.0**20
BLUE, RED, GREEN = "#2b6cb0", "#c05621", "#2f855a"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a202c; background: #f7fafc; }
body { margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 6px; }
p { margin: 4px 0 10px; color: #4a5568; }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 8px; }
.card { background: #fff; border: 1px solid #e2e8f0; border-radius: 8px; padding: 10px 16px; min-width: 80px; }
.card b { display: block; font-size: 24px; line-height: 1.25; } .card span { color: #4a5568; font-size: 13px; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e2e8f0; font-size: 14px; }
th, td { padding: 4px 14px; text-align: right; border-bottom: 1px solid #edf2f7; }
th { background: #edf2f7; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; } .side { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
svg { display: block; width: 100%; height: auto; background: #fff; border: 1px solid #e2e8f0; border-radius: 8px; }
svg .grid { stroke: #e2e8f0; } svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #4a5568; }
figure { margin: 0 0 18px; } figure img { max-width: 100%; border-radius: 6px; display: block; }
figcaption { font-size: 13px; color: #4a5568; margin-top: 3px; }
.note { background: #fffaf0; border-left: 4px solid #dd6b20; padding: 6px 12px; margin: 6px 0; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 7px; }
"""


class Picture(NamedTuple):
    """One image with what was found in it, beside the truth where there is one."""

    caption: str
    image: np.ndarray  # (h, w, 3) uint8 RGB


def choose_frames(j: Sequence[float | None], count: int = PICTURES) -> list[int]:
    """Positions of the worst frames, none close to another; evenly spread ones where nothing was scored."""
    known = sorted((value, k) for k, value in enumerate(j) if value is not None)
    if not known:
        return sorted({round(k) for k in np.linspace(0, len(j) - 1, count)})
    gap, chosen = max(1, len(j) // (2 * count)), list[int]()
    for _, k in known:
        if all(abs(k - other) >= gap for other in chosen):
            chosen.append(k)
        if len(chosen) == count:
            break
    return chosen


def _enlarge(image: np.ndarray, drawn: Sequence[Drawn]) -> tuple[np.ndarray, list[Drawn]]:
    """Small images twice or more as large, so that contours and labels do not hide the masks."""
    factor = -(-LINES // image.shape[0])
    size = image.shape[1] * factor, image.shape[0] * factor
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) if factor > 1 else image
    return image, [d._replace(mask=d.mask.repeat(factor, 0).repeat(factor, 1)) for d in drawn]


def draw_pictures(
    report: dict[str, Any], source: FrameSource, truth: TruthReader | None, instances: Path
) -> list[Picture]:
    """Found masks beside true ones, read back from the recording and from the results that were written."""
    frames = report["frames"]
    chosen = choose_frames(frames["j"])
    stamps = {frames["stamp_ns"][k] for k in chosen}
    found = {}
    for received in read_instances(instances):
        if (stamp := to_ns(received.message.header.stamp)) in stamps:
            found[stamp] = received.message
    track_of = {row["object"]: row["track_id"] for row in report["objects"]}
    drawn: dict[int, Picture] = {}
    for k, frame in enumerate(islice(source, max(chosen) + 1)):
        if k not in chosen:
            continue
        message, j = found[frame.stamp_ns], frames["j"][k]
        panes = [draw_tracks(*_enlarge(frame.image, to_drawn(message.instances, message.height, message.width)))]
        known = truth.at(frame.stamp_ns, source.height, source.width) if truth else None
        if known is not None:
            true = [Drawn(track_of.get(i, i), m, f"(truth {i})", 1.0, Source.PROMPT) for i, m in known.items()]
            panes.append(draw_tracks(*_enlarge(frame.image, true)))
        seconds = (frame.stamp_ns - frames["stamp_ns"][0]) / 1e9
        caption = f"frame {frame.index}, {seconds:.2f} s, found: {frames['objects'][k]}"
        caption += f", true: {len(known)}" if known is not None else ""
        caption += f", J {100 * j:.1f}" if j is not None else ""
        drawn[k] = Picture(caption, contact_sheet(panes, columns=len(panes), width=PANE, gap=4))
    return [drawn[k] for k in chosen]


def _embed(picture: Picture) -> str:
    bgr = np.ascontiguousarray(picture.image[:, :, ::-1])
    data = base64.b64encode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    lines = ["<table><tr>", *(f"<th>{html.escape(h)}</th>" for h in head), "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "".join([*lines, "</table>"])


def _card(value: str, name: str) -> str:
    return f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'


def _colour(track_id: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(track_id))


def _cards(summary: dict[str, Any]) -> str:
    names = {"JF": "J&F", "AP": "AP", "AP50": "AP50", "HOTA": "HOTA", "IDF1": "IDF1", "MOTA": "MOTA"}
    cards = [_card(f"{summary[k]:.1f}", name) for k, name in names.items() if summary.get(k) is not None]
    cards.append(_card(f"{summary['fps']:.1f}", "frames / s"))
    cards.append(_card(f"{summary['latency_p50_ms']:.0f} ms", "latency, median"))
    cards.append(_card(f"{summary['rss_late_bytes'] / MIB:.0f} MiB", "memory at the end"))
    cards.append(_card(str(summary["tracks"]), "tracks"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _plots(report: dict[str, Any]) -> list[str]:
    frames, summary = report["frames"], report["summary"]
    parts = []
    if any(value is not None for value in frames["j"]):
        j = [math.nan if value is None else 100 * value for value in frames["j"]]
        what = (
            "of the prompted objects, each under its own id; the frame of its prompt does not count"
            if report["settings"]["prompt_truth"]
            else "of the best assignment of found to true masks on this frame, whatever their ids; a miss counts 0"
        )
        parts += ["<h2>J per frame</h2>", f"<p>Mean overlap (intersection over union, percent) {what}.</p>"]
        parts.append(plot("J per frame", [Curve("J", j, BLUE)], "percent", high=100.0, highest=False))
    p50, p95 = summary["latency_p50_ms"], summary["latency_p95_ms"]
    parts += ["<h2>Latency per frame</h2>", f"<p>The model's step on each image. Median {p50:.1f} ms, 95 % below "]
    parts[-1] += f"{p95:.1f} ms, longest {summary['latency_max_ms']:.1f} ms.</p>"
    parts.append(plot("Latency per frame", [Curve("latency", frames["latency_ms"], RED)], "milliseconds"))
    parts += ["<h2>Objects per frame</h2>", "<p>Objects with a mask.</p>"]
    parts.append(plot("Objects per frame", [Curve("objects", frames["objects"], GREEN)], "objects"))
    return parts


def _timeline(report: dict[str, Any]) -> list[str]:
    tracks = sorted(report["tracks"], key=lambda t: -sum(b - a + 1 for a, b in t["spans"]))[:BARS]
    tracks.sort(key=lambda t: t["id"])
    bars = [Bar(f"{t['id']}", t["spans"], _colour(t["id"])) for t in tracks]
    text = "A bar where the object has a mask; a gap is a time out of sight. One row per id; no id is given twice."
    if len(report["tracks"]) > BARS:
        text += f" The {BARS} longest of {len(report['tracks'])} are shown."
    return ["<h2>Ids over time</h2>", f"<p>{text}</p>", timeline("Ids over time", bars, report["summary"]["frames"])]


def _memory(report: dict[str, Any]) -> list[str]:
    rss = [value / MIB for value in report["frames"]["rss_bytes"]]
    s = report["summary"]
    early, late, state = (s[f"{name}_bytes"] / MIB for name in ("rss_early", "rss_late", "state"))
    text = f"Resident memory of this process: {early:.0f} MiB at frame {min(EARLY, s['frames'] - 1)}, "
    text += f"{late:.0f} MiB at the end, the books of the scores included. The state of the model takes "
    text += f"{state:.2f} MiB at most."
    return ["<h2>Memory</h2>", f"<p>{text}</p>", plot("Memory", [Curve("rss", rss, BLUE)], "MiB")]


def _live(report: dict[str, Any]) -> list[str]:
    summary = report["summary"]
    if not (live := summary.get("live")):
        return []
    text = "The same recording played to the running node at its own rate. Every image is judged by the result of the "
    text += f"newest image that was processed: {live['frames_out']} of {live['frames_in']}, {live['dropped']} dropped"
    text += f" ({live['why']}). " if live["dropped"] else ". "
    text += "Live latency is from the stamp of an image to a subscriber's receipt of its masks."
    every, alive = dict(score_rows(summary)), dict(score_rows(live))
    rows = [["frames processed", str(summary["frames"]), str(live["frames_out"])]]
    rows += [["frames / s", f"{summary['fps']:.1f}", f"{live['fps_out']:.1f}"]]
    for name in ("p50", "p95", "max"):
        if (key := f"latency_{name}_ms") in live:
            rows.append([f"latency {name}, ms", f"{summary[key]:.1f}", f"{live[key]:.1f}"])
    rows += [[html.escape(name), every[name], value] for name, value in alive.items() if name in every]
    return ["<h2>Live</h2>", f"<p>{html.escape(text)}</p>", _html_table(["measure", "every image", "live"], rows)]


def _tracks(report: dict[str, Any]) -> list[str]:
    rows = []
    for t in report["tracks"]:
        seen = sum(b - a + 1 for a, b in t["spans"])
        swatch = f'<span class="swatch" style="background:{_colour(t["id"])}"></span>{t["id"]}'
        words = (html.escape(t[k]) for k in ("name", "source", "class_name"))
        ends = str(t["spans"][0][0]), str(t["spans"][-1][1])
        rows.append([swatch, *words, *ends, str(seen), str(len(t["spans"]) - 1), f"{t['score']:.2f}", t["last_state"]])
    head = ["id", "name", "source", "class", "first frame", "last frame", "frames seen", "gaps", "score", "at the end"]
    return ["<h2>Tracks</h2>", _html_table(head, rows)] if rows else []


def make_page(report: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page."""
    source, model, summary = report["input"], report["model"], report["summary"]
    title = f"Evaluation of {Path(source['path']).name}"
    where = f"{source['path']}, {source['topic']}, {source['height']}x{source['width']}, {summary['frames']} frames"
    values = {k.replace("_", " "): v for k, v in report["settings"].items() if v is not None}
    settings = ", ".join(f"{k} {('off', 'on')[v] if isinstance(v, bool) else v}" for k, v in values.items())
    rate = f" at {source['rate_hz']:.1f} Hz" if source["rate_hz"] else ""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(where + rate)}<br>"]
    which = f"model {model['checkpoint']} on {model['device']}, {model['precision']}"
    parts[-1] += html.escape(f"{which}; {settings}") + "<br>"
    parts[-1] += f"truth {html.escape(source['truth_topic'] or 'none: nothing is scored')}</p>"
    parts += [_cards(summary), *(f'<div class="note">{html.escape(note)}</div>' for note in report["notes"])]
    parts.append("<h2>Scores</h2>")
    if rows := [(html.escape(name), value) for name, value in score_rows(summary)]:
        parts.append("<p>Classes are ignored.</p>")
        percent = [row for row in rows if "." in row[1]]
        tables = [_html_table(["measure", "percent"], percent)]
        if counts := rows[len(percent) :]:
            tables.append(_html_table(["count", ""], counts))
        if report["objects"]:
            cells = []
            for r in report["objects"]:
                figures = (r["J"] + r["F"]) / 2, r["J"], r["F"]
                whole = (str(r[name]) for name in ("object", "track_id", "from", "frames"))
                cells.append([*whole, *(f"{figure:.1f}" for figure in figures)])
            head = ["true object", "track", "prompted on frame", "frames judged", "J&F", "J", "F"]
            tables.append(_html_table(head, cells))
        parts.append(f'<div class="side">{"".join(tables)}</div>')
    else:
        parts.append("<p>The bag holds no truth to compare with.</p>")
    parts += [*_plots(report), *_timeline(report), *_memory(report), *_live(report)]
    scored = any(value is not None for value in report["frames"]["j"])
    text = "Left: what was found; right: the truth. Lowest J first." if scored else "Spread over the recording."
    parts += [f"<h2>{'Worst frames' if scored else 'Frames'}</h2>", f"<p>{text}</p>", *map(_embed, pictures)]
    parts += _tracks(report)
    parts += ["<h2>The same again</h2>", "<p>Equal hashes mean equal masks, bit by bit: sha256 over stamps, ids and "]
    parts[-1] += f"run lengths.</p><p>masks <code>{summary['hash']}</code><br>"
    parts[-1] += f"checkpoint <code>{html.escape(str(model['sha256']))}</code></p>"
    meta = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    meta += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html><html lang="en"><head>{meta}</head><body><main>{"".join(parts)}</main></body></html>\n'


def write_page(
    path: Path, report: dict[str, Any], source: FrameSource, truth: TruthReader | None, instances: Path
) -> None:
    """Writes report.html. Raises AusmError when recording or results cannot be read back."""
    path.write_text(make_page(report, draw_pictures(report, source, truth, instances)), encoding="utf-8")
