"""History noise against exposure bias and against relying on the last marks alone (section 1.3 of the design, issue C).

All functions change only what the model is told about the past, never the targets.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.clips import ClipDataError, check_chances


@dataclass(frozen=True)
class HistoryNoise:
    """Probabilities per instance and frame, `blackout` per instance and clip.

    A blackout begins anywhere in the clip, also before the instance has marks or at its end, so the share of instances
    that lose marks is lower than `blackout` (docs/training.md).
    """

    morph: float = 0.1  # dilate or erode by one token
    shift: float = 0.1  # by one or two tokens
    drop: float = 0.05  # one frame without its mask
    blackout: float = 0.15  # a run of frames without marks although the object is visible: only the state knows it
    blackout_frames: tuple[int, int] = (2, 4)
    slip: float = 0.0  # per absence: the mark goes on to something else, as a mask that loses its object does
    early_frames: tuple[int, int] = (0, 0)  # ... so many frames before the object is out of sight
    late: float = 0.0  # per absence: told only some frames after the return, so that the object must be known again
    late_frames: tuple[int, int] = (1, 6)
    joined: float = 0.0  # per discovered id: its first marks take in a smaller neighbour (training.joined_tracks)
    false_id: float = 0.0  # per clip of an exhaustive source: one more id, on background (training.false_tracks)

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        spans = {name: value for name, value in values.items() if isinstance(value, tuple)}
        check_chances(self, [name for name in values if name not in spans])
        if wrong := {name: span for name, span in spans.items() if not 0 <= span[0] <= span[1]}:
            raise ClipDataError(f"no spans of frames: {wrong}")


class Noisy(NamedTuple):
    """A history with noise, and where it was made wrong on purpose for longer than a frame."""

    history: Tensor  # (B, T, K, h, w) bool
    fixed: Tensor  # (B, T, K) bool: withheld or false marks; the model's own masks must not repair them


def add_noise(history: Tensor, active: Tensor, noise: HistoryNoise, generator: torch.Generator) -> Noisy:
    """history (B, T, K, h, w) bool, active (B, T, K) bool -> noisy history, same shape, on the same device.

    No noise leaves an instance without any mark on its first history frame: it would have no history at all.
    """
    B, T, K = active.shape
    if K == 0:  # a clip without any object
        return Noisy(history, torch.zeros_like(active))
    device = history.device

    def chance(p: float) -> Tensor:
        return (torch.rand(B, T, K, generator=generator) < p).to(device)[..., None, None]

    maps = history.float().flatten(0, 1)
    grown = (F.max_pool2d(maps, 3, 1, 1) > 0).view_as(history)
    shrunk = (F.max_pool2d(-maps, 3, 1, 1) < 0).view_as(history)
    grow = torch.rand(B, T, K, 1, 1, generator=generator).to(device) < 0.5
    out = torch.where(chance(noise.morph), torch.where(grow, grown, shrunk), history)
    code = torch.randint(0, 24, (B, T, K), generator=generator).to(device)
    code += code >= 12  # 12 of 0..24 would be no shift
    out = torch.where(chance(noise.shift), _shifted(out, code // 5 - 2, code % 5 - 2), out)

    first = active & (active.cumsum(1) == 1)
    gone = first & ~out.flatten(3).any(-1)
    out = torch.where(gone[..., None, None], history, out)
    lost = chance(noise.drop)[..., 0, 0]
    length = draw_span(noise.blackout_frames, (B, 1, K), generator)
    start = torch.randint(1, max(T, 2), (B, 1, K), generator=generator)
    t = torch.arange(T)[None, :, None]
    run = (t >= start) & (t < start + length) & (torch.rand(B, 1, K, generator=generator) < noise.blackout)
    run = run.to(device) & ~first
    out = out & ~((lost & ~first) | run)[..., None, None]
    return _mislead(out, history, active, run, noise, generator)


def _mislead(
    out: Tensor, history: Tensor, active: Tensor, fixed: Tensor, noise: HistoryNoise, generator: torch.Generator
) -> Noisy:
    """False marks while an object is away, and no true ones for a while after it is back."""
    if not (noise.slip or noise.late):
        return Noisy(out, fixed)
    out, fixed = out.clone(), fixed.clone()
    has = history.flatten(3).any(-1)
    T = active.shape[1]
    for b, k in (has.any(1) & (active & ~has).any(1)).nonzero().tolist():
        for gone, back in _absences(has[b, :, k].tolist()):
            slips, is_late = (torch.rand(2, generator=generator) < torch.tensor([noise.slip, noise.late])).tolist()
            end = back
            if is_late:
                end = min(back + int(draw_span(noise.late_frames, (), generator)), T)
            out[b, back:end, k] = False
            start = back
            if slips:
                first = int(has[b, :, k].int().argmax())
                start = max(gone - int(draw_span(noise.early_frames, (), generator)), first + 1)  # the first marks stay
                out[b, start:end, k] = _wrong_marks(history[b], start, end, k, generator)
            fixed[b, start:end, k] = True
    return Noisy(out, fixed)


def draw_span(span: tuple[int, int], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole numbers of a span, both ends included."""
    return torch.randint(span[0], span[1] + 1, shape, generator=generator)


def _absences(has: list[bool]) -> list[tuple[int, int]]:
    """[gone, back) for every run of frames without marks after the first marks; back = T where none come again."""
    runs, gone = [], 0
    for t in range(1, len(has) + 1):
        if t < len(has) and has[t - 1] and not has[t]:
            gone = t
        elif gone and (t == len(has) or has[t]):
            runs.append((gone, t))
            gone = 0
    return runs


def _wrong_marks(history: Tensor, start: int, end: int, k: int, generator: torch.Generator) -> Tensor:
    """(end - start, h, w): half of another object, which follows it, or the last marks a few tokens aside, at rest.

    history (T, K, h, w).
    """
    others = [j for j in range(history.shape[1]) if j != k and bool(history[start:end, j].any())]
    if others and float(torch.rand((), generator=generator)) < 0.5:
        j = others[int(torch.randint(len(others), (), generator=generator))]
        marks = history[start:end, j]
        return marks & (marks.int().cumsum(-1) * 2 <= marks.sum(-1, keepdim=True) + 1)  # of every row of tokens
    code = int(torch.randint(0, 48, (), generator=generator))
    code += code >= 24  # 24 of 0..48 would be no shift
    dy, dx = (torch.full((1, 1, 1), n, device=history.device) for n in (code // 7 - 3, code % 7 - 3))
    last = history[start - 1, k][None, None, None]
    moved = _shifted(last, dy, dx)
    return (moved if bool(moved.any()) else last)[0, 0].expand(end - start, -1, -1)  # none is moved out of the image


def _shifted(maps: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """maps (B, T, K, h, w) moved by dy, dx (B, T, K) tokens. What leaves the grid is lost; nothing enters it."""
    h, w = maps.shape[-2:]
    y = torch.arange(h, device=maps.device) - dy[..., None]
    x = torch.arange(w, device=maps.device) - dx[..., None]
    moved = maps.gather(-2, y.clamp(0, h - 1)[..., None].expand(maps.shape))
    moved = moved.gather(-1, x.clamp(0, w - 1)[..., None, :].expand(maps.shape))
    return moved & ((y >= 0) & (y < h))[..., None] & ((x >= 0) & (x < w))[..., None, :]
