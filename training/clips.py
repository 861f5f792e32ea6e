"""The training sample and its configuration: what every reader and augmentation ends in.

Sizes: T frames, N instances, H x W pixels of the training crop.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ausm.errors import InputError


class ClipDataError(InputError):
    """Training data that is missing, unreadable or malformed. The message names the file."""


class Clip(NamedTuple):
    """One training sample. Masks are the visible parts; an absent instance has an all-False mask on that frame."""

    images: np.ndarray  # (T, H, W, 3) uint8 RGB
    masks: np.ndarray  # (N, T, H, W) bool, N may be 0
    class_ids: np.ndarray  # (N,) int64 in the label space of `head`, -1 unknown
    exhaustive: bool  # every object of the frames is labelled, so the rest is background
    head: str  # "coco" | "sim" | ... ; "" = class-agnostic
    source: str  # where it came from: source name and item, for error messages and pictures


CHANCES = (
    *("reverse", "flip", "linger", "jump", "away", "whole", "paste", "twins", "own_twin", "behind"),
    *("occlude", "hide_twin", "unlabelled"),
    *("colour", "grey", "blur", "noise", "jpeg"),
)


@dataclass(frozen=True)
class ClipConfig:
    """Shape of the samples and the probabilities of the augmentations (each drawn once a clip)."""

    frames: int = 8  # T
    size: tuple[int, int] = (256, 448)  # (H, W) of the training crop
    max_instances: int = 20  # the largest are kept
    max_exhaustive: int = 40  # the same for exhaustive sources: what is dropped there would be taught as background
    min_pixels: int = 16  # a smaller visible part counts as absent on that frame

    max_stride: int = 4  # real videos: stride uniform in 1..max_stride
    reverse: float = 0.5  # real videos: played backwards
    linger: float = 0.0  # where an object is known to be out of sight: that part is played to and fro, up to 30 frames
    flip: float = 0.5  # horizontal flip of the whole clip
    jump: float = 0.15  # pseudo-videos: one hard cut of the camera
    whole: float = 0.0  # pseudo-videos: as wide as the crop allows, no zoom, jump or absence: small stays small
    away: float = 0.15  # the camera looks away from an object for some frames and returns

    paste: float = 0.6  # moving cut-outs of other images are pasted on the clip
    max_paste: int = 3
    twins: float = 0.3  # given a paste: a second copy of one cut-out moves on its own (look-alike)
    own_twin: float = 0.25  # given a paste: one cut-out is an object of this very clip
    behind: float = 0.3  # given a pasted object: it passes behind the labelled ones
    occlude: float = 0.45  # something sweeps over an object, hides it for some frames and leaves
    hide_twin: float = (
        0.4  # given such an occlusion: a copy of the hidden object stays in view (memory must tell them apart)
    )
    unlabelled: float = 0.05  # non-exhaustive sources: what is put on a clip has no label (pure distractors)

    colour: float = 0.8
    grey: float = 0.03
    blur: float = 0.15
    noise: float = 0.2
    jpeg: float = 0.1

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.size) < 16 or self.max_instances < 1 or self.max_stride < 1:
            raise ClipDataError(
                f"frames {self.frames}, size {self.size}, max_instances {self.max_instances}, max_stride "
                f"{self.max_stride}: need >= 1, >= 16 px, >= 1, >= 1"
            )
        check_least(self, {"max_exhaustive": 1, "min_pixels": 1, "max_paste": 1})
        check_chances(self, CHANCES)


def check_chances(config: object, names: Iterable[str]) -> None:
    """Raises ClipDataError naming the fields that are no probabilities."""
    if wrong := {name: getattr(config, name) for name in names if not 0 <= getattr(config, name) <= 1}:
        raise ClipDataError(f"probabilities outside 0..1: {wrong}")


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Raises ClipDataError naming the fields below the least value that makes sense."""
    if wrong := {name: getattr(config, name) for name in least if not getattr(config, name) >= least[name]}:
        needed = {name: least[name] for name in wrong}
        raise ClipDataError(f"too small: {wrong}, need at least {needed}")


def plain(frames: int, size: tuple[int, int], max_instances: int = 20) -> ClipConfig:
    """A configuration with every random change of look, occlusion and pasting off: for validation pictures."""
    return ClipConfig(
        frames=frames,
        size=size,
        max_instances=max_instances,
        **dict.fromkeys(CHANCES, 0.0),  # type: ignore[arg-type]
    )
