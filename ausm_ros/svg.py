"""Plots as inline SVG: a curve over the frames and a timeline of ids. No plotting package, no script in the page."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 1080, 220  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 34  # margins
POINTS = 1000  # at most in one curve: more cannot be seen
ROW = 18  # height of a line of the timeline


class Curve(NamedTuple):
    """One line of a plot; NaN leaves a gap."""

    name: str
    values: Sequence[float]
    colour: str


class Bar(NamedTuple):
    """One line of a timeline: spans of first and last frame, inclusive."""

    label: str
    spans: Sequence[tuple[int, int]]
    colour: str


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover low..high; at least two."""
    span = high - low if high > low else max(abs(high), 1.0)
    raw = span / max(1, count - 1)
    step = next(s for s in (m * 10 ** math.floor(math.log10(raw)) for m in (1, 2, 2.5, 5, 10)) if s >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil((low + span) / step - 1e-9))
    return [k * step for k in range(first, last + 1)]


def thin(values: Sequence[float], highest: bool, points: int = POINTS) -> list[tuple[float, float]]:
    """(position, value) of at most `points` values: of each group the worst one, so that no spike is lost.

    highest: the highest of a group is the worst (latency), else the lowest (a score). A group of NaN stays NaN.
    """
    group = max(1, -(-len(values) // points))
    result = []
    for start in range(0, len(values), group):
        part = [(v, k) for k, v in enumerate(values[start : start + group], start) if not math.isnan(v)]
        value, position = (max(part) if highest else min(part)) if part else (math.nan, start)
        result.append((float(position), value))
    return result


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'


def _x(frame: float, frames: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * frame / max(1, frames - 1)


def _frame_axis(frames: int, bottom: float, top: float) -> list[str]:
    parts = []
    for tick in nice_ticks(0, max(1, frames - 1), 9):
        if 0 <= tick <= frames - 1 and tick == round(tick):
            x = _x(tick, frames)
            parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" class="grid"/>')
            parts.append(_text(x, bottom + 16, f"{tick:g}"))
    parts.append(_text(WIDTH - RIGHT, bottom + 30, "frame", "end", "axis"))
    return parts


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
    return head + "".join(parts) + "</svg>"


def plot(
    title: str,
    curves: Sequence[Curve],
    unit: str = "",
    low: float | None = 0.0,
    high: float | None = None,
    highest: bool = True,
) -> str:
    """Curves of one length over the frames. low, high: of the vertical axis, else from the values."""
    frames = max(len(c.values) for c in curves)
    known = [v for c in curves for v in c.values if not math.isnan(v)] or [0.0]
    ticks = nice_ticks(min(known) if low is None else low, max(known) if high is None else high)
    bottom = HEIGHT - BOTTOM

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = _frame_axis(frames, bottom, TOP)
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" y1="{y(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    if unit:
        parts.append(_text(LEFT, HEIGHT - 4, unit, "start", "axis"))
    for number, curve in enumerate(curves):
        run: list[str] = []
        for position, value in [*thin(curve.values, highest), (0.0, math.nan)]:
            if not math.isnan(value):
                run.append(f"{_x(position, frames):.1f},{y(value):.1f}")
                continue
            if len(run) == 1:
                across, down = run[0].split(",")
                parts.append(f'<circle cx="{across}" cy="{down}" r="2.5" fill="{curve.colour}"/>')
            elif run:
                parts.append(f'<polyline points="{" ".join(run)}" class="curve" stroke="{curve.colour}"/>')
            run = []
        if len(curves) > 1:
            x = WIDTH - RIGHT - 150 * (len(curves) - number)
            parts.append(f'<rect x="{x}" y="{HEIGHT - 12}" width="12" height="4" fill="{curve.colour}"/>')
            parts.append(_text(x + 18, HEIGHT - 5, curve.name, "start", "axis"))
    return _svg(HEIGHT, parts, title)


def timeline(title: str, bars: Sequence[Bar], frames: int) -> str:
    """One line per object, filled on the frames on which it is seen."""
    bottom = TOP + ROW * max(1, len(bars))
    parts = _frame_axis(frames, bottom, TOP)
    width = (WIDTH - LEFT - RIGHT) / max(1, frames - 1)
    for row, bar in enumerate(bars):
        y = TOP + ROW * row
        parts.append(_text(LEFT - 8, y + ROW - 5, bar.label, "end"))
        for first, last in bar.spans:
            x = _x(first, frames)
            length = max(2.0, min(_x(last, frames) + width, WIDTH - RIGHT) - x)
            parts.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}" fill="{bar.colour}"/>')
    return _svg(bottom + BOTTOM, parts, title)
