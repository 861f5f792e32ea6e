"""Prompt messages to masks: every check before any state is touched, every refusal a typed code with the numbers.

Nothing here imports ROS: messages are read by their field names, so the checks are tested and fuzzed without it.
Nothing is allocated on the word of a message: sizes are compared first, as Python integers, which do not overflow.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ausm.errors import AusmError, CapacityError, EmptyMaskError, ImageError, SizeError, UnknownIdError
from ausm.image_encodings import read_header
from ausm.masks import Box, decode_rle, discs

MAX_POINTS = 1000  # per prompt
MAX_NAME = 256  # characters
OTHER_IDS = "ids are others in it"  # of an epoch; in every STALE_STAMP that no newer image mends


class Code(IntEnum):
    """The constants of `msg/PromptResult.msg`."""

    OK = 0
    NOT_ACTIVE = 1
    UNKNOWN_CAMERA = 2
    NO_IMAGE = 3
    WRONG_SIZE = 4
    BAD_ENCODING = 5
    EMPTY_MASK = 6
    INVALID_MASK = 7
    CAPACITY_EXCEEDED = 8
    UNKNOWN_ID = 9
    DUPLICATE_NAME = 10
    STALE_STAMP = 11
    UNSUPPORTED_TYPE = 12
    TOO_MANY = 13
    TIMEOUT = 14
    INTERNAL_ERROR = 255


class PromptType(IntEnum):
    """The constants of `msg/Prompt.msg`."""

    MASK_IMAGE = 0
    MASK_RLE = 1
    MASK_PNG = 2
    BOX = 3
    POINTS = 4


class Refusal(Exception):
    """A request that is not carried out, and why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Outcome(NamedTuple):
    """What became of one prompt or removal: the fields of `msg/PromptResult.msg`."""

    code: Code
    message: str = ""
    track_id: int = 0
    iou_with_prompt: float = math.nan


@dataclass(frozen=True, eq=False)  # arrays do not compare as a whole
class ObjectPrompt:
    """One checked prompt: a mask of the size of the camera image.

    Of a box or points the mask is the plain shape; the model may know better when it is applied (`ausm.prompts`).
    """

    mask: np.ndarray  # (H, W) bool, at least one pixel
    track_id: int = 0  # 0 = new object
    name: str = ""
    box: Box | None = None
    points: tuple[tuple[int, int, int], ...] = ()  # x, y, label


@dataclass(frozen=True)
class Scene:
    """What prompts are checked against: the newest image of a camera and the objects alive on it."""

    height: int
    width: int
    names: dict[int, str]  # live track id -> name
    pinned: int  # live objects that were prompted, so keep their place
    capacity: int
    min_area: int = 1  # pixels


def code_of(error: Exception) -> Code:
    """The result code for an error of the model's stream."""
    for kind, code in (
        (SizeError, Code.WRONG_SIZE),
        (EmptyMaskError, Code.EMPTY_MASK),
        (CapacityError, Code.CAPACITY_EXCEEDED),
        (UnknownIdError, Code.UNKNOWN_ID),
        (AusmError, Code.INVALID_MASK),
    ):
        if isinstance(error, kind):
            return code
    return Code.INTERNAL_ERROR


def _check_size(what: str, size: tuple[int, int], scene: Scene) -> None:
    if size != (scene.height, scene.width):
        raise Refusal(Code.WRONG_SIZE, f"{what} {size[0]}x{size[1]}, camera image {scene.height}x{scene.width}")


def _from_image(message: Any, scene: Scene) -> np.ndarray:
    """(H, W) bool from a mono8 or 8UC1 image."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    if message.encoding not in ("mono8", "8UC1"):
        raise Refusal(Code.BAD_ENCODING, f"mask encoding '{message.encoding[:40]}', only mono8 and 8UC1 are read")
    _check_size("mask", (height, width), scene)
    needed = step * (height - 1) + width
    if step < width or not needed <= len(message.data) <= step * height:
        raise Refusal(
            Code.INVALID_MASK,
            f"mask {height}x{width} of step {step}: {len(message.data)} bytes, {step * height} expected",
        )
    rows = np.lib.stride_tricks.as_strided(np.frombuffer(message.data, np.uint8), (height, width), (step, 1))
    mask: np.ndarray = rows != 0
    return mask


def _from_rle(message: Any, scene: Scene) -> np.ndarray:
    """(H, W) bool from run lengths inside a rectangle."""
    roi = message.roi
    try:
        box = (roi.x_offset, roi.y_offset, roi.width, roi.height)
        return decode_rle(box, message.runs, scene.height, scene.width)
    except AusmError as error:
        raise Refusal(Code.INVALID_MASK, str(error)) from error


def _from_png(message: Any, scene: Scene) -> np.ndarray:
    """(H, W) bool from a one-channel or palette PNG; its header is checked before it is decoded."""
    data = bytes(message.data)
    try:
        header = read_header(data)
    except ImageError as error:
        raise Refusal(Code.BAD_ENCODING, f"mask: {error}") from error
    if header.kind != "png":
        raise Refusal(Code.BAD_ENCODING, f"mask is a {header.kind.upper()}: its compression would alter it, send PNG")
    _check_size("PNG mask", (header.height, header.width), scene)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("1", "L", "P", "I;16", "I"):
                raise Refusal(Code.BAD_ENCODING, f"PNG mask of mode {image.mode}, one channel or a palette is needed")
            mask: np.ndarray = np.asarray(image) != 0
            return mask
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refusal(Code.INVALID_MASK, f"PNG mask of {len(data)} bytes cannot be decoded: {error}") from error


def _from_box(roi: Any, scene: Scene) -> np.ndarray:
    """(H, W) bool: the filled rectangle."""
    x, y, width, height = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if x + width > scene.width or y + height > scene.height:
        raise Refusal(
            Code.INVALID_MASK,
            f"box x={x} y={y} width={width} height={height} outside the image of {scene.height}x{scene.width} "
            "(height x width)",
        )
    mask = np.zeros((scene.height, scene.width), np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def _from_points(message: Any, scene: Scene) -> np.ndarray:
    """(H, W) bool: a filled disc at each point on the object, less the discs of the points that are not."""
    xs, ys, labels = message.point_x, message.point_y, message.point_labels
    if not len(xs) == len(ys) == len(labels) or len(xs) > MAX_POINTS:
        raise Refusal(
            Code.INVALID_MASK,
            f"{len(xs)} point_x, {len(ys)} point_y, {len(labels)} point_labels (at most {MAX_POINTS})",
        )
    for x, y, label in zip(xs, ys, labels, strict=True):
        if label not in (0, 1):
            raise Refusal(Code.INVALID_MASK, f"point label {label}, only 1 (object) and 0 (not object) are known")
        if x >= scene.width or y >= scene.height:
            raise Refusal(
                Code.INVALID_MASK,
                f"point x={x} y={y} outside the image of {scene.height}x{scene.width} (height x width)",
            )
    return discs(list(zip(xs, ys, strict=True)), labels, scene.height, scene.width)


def mask_of(prompt: Any, scene: Scene) -> np.ndarray:
    """The (H, W) bool mask a `msg/Prompt` describes. Raises `Refusal`."""
    try:
        kind = PromptType(prompt.type)
    except ValueError:
        known = " ".join(f"{t.name}={t.value}" for t in PromptType)
        raise Refusal(Code.UNSUPPORTED_TYPE, f"prompt type {prompt.type}, known: {known}") from None
    if kind == PromptType.MASK_IMAGE:
        mask = _from_image(prompt.mask, scene)
    elif kind == PromptType.MASK_RLE:
        mask = _from_rle(prompt.rle, scene)
    elif kind == PromptType.MASK_PNG:
        mask = _from_png(prompt.png, scene)
    elif kind == PromptType.BOX:
        mask = _from_box(prompt.box, scene)
    else:
        mask = _from_points(prompt, scene)
    area, least = int(np.count_nonzero(mask)), max(1, scene.min_area)
    if area < least:
        raise Refusal(Code.EMPTY_MASK, f"mask of {area} pixels, at least {least} are needed")
    return mask


def check_count(prompts: Sequence[Any], limit: int) -> None:
    """Refuses an empty request and one of more than `limit` prompts, whatever they hold."""
    if len(prompts) == 0:
        raise Refusal(Code.EMPTY_MASK, "no prompts in the request")
    if len(prompts) > limit:
        raise Refusal(Code.TOO_MANY, f"{len(prompts)} prompts in one request, at most {limit} are accepted")


def _checked(prompt: Any, scene: Scene, track_id: int, name: str) -> ObjectPrompt:
    mask, box, points = mask_of(prompt, scene), None, list[tuple[int, int, int]]()
    if prompt.type == PromptType.BOX:
        box = Box(prompt.box.x_offset, prompt.box.y_offset, prompt.box.width, prompt.box.height)
    elif prompt.type == PromptType.POINTS:
        xs, ys, labels = prompt.point_x, prompt.point_y, prompt.point_labels
        points = [(int(x), int(y), int(v)) for x, y, v in zip(xs, ys, labels, strict=True)]
    return ObjectPrompt(mask, track_id, name, box, tuple(points))


def check_prompts(
    prompts: Sequence[Any], scene: Scene, reserved: Mapping[str, int] = MappingProxyType({})
) -> list[ObjectPrompt | Refusal]:
    """Checks each `msg/Prompt` on its own and against those before it; same order as the request.

    reserved: names of prompts that wait to be applied, with the id they name, 0 for a new object. New objects count
    against the capacity as long as only prompted objects hold the places: discovered ones give theirs up.
    """
    names = {name: track_id for track_id, name in scene.names.items() if name}
    taken, new, again, checked = dict(reserved), 0, set(), list[ObjectPrompt | Refusal]()
    for prompt in prompts:
        try:
            track_id, name = int(prompt.track_id), str(prompt.name)
            if track_id and track_id not in scene.names:
                raise Refusal(Code.UNKNOWN_ID, f"no live object has id {track_id}; {len(scene.names)} are alive")
            if track_id in again:
                raise Refusal(Code.UNKNOWN_ID, f"id {track_id} is prompted twice in one request")
            if len(name) > MAX_NAME:
                raise Refusal(Code.DUPLICATE_NAME, f"name of {len(name)} characters, at most {MAX_NAME}")
            owners = {named[name] for named in (taken, names) if name and name in named}
            if owners and (not track_id or owners != {track_id}):
                raise Refusal(Code.DUPLICATE_NAME, f"another object is named '{name}'")
            if not track_id and scene.pinned + new >= scene.capacity:
                raise Refusal(
                    Code.CAPACITY_EXCEEDED, f"capacity {scene.capacity}, {scene.pinned + new} prompted objects in use"
                )
            checked.append(_checked(prompt, scene, track_id, name))
        except Refusal as refusal:
            checked.append(refusal)
            continue
        new += not track_id
        taken |= {name: track_id} if name else {}
        again |= {track_id} if track_id else set()
    return checked


def outcomes_if_refused(checked: Sequence[ObjectPrompt | Refusal], all_or_nothing: bool) -> list[Outcome | None]:
    """One entry per prompt: its refusal, or None where it goes on to be applied.

    With `all_or_nothing` one refusal refuses all: the good ones then carry the code of the first bad one.
    """
    bad = next(((i, c) for i, c in enumerate(checked) if isinstance(c, Refusal)), None)
    outcomes: list[Outcome | None] = []
    for entry in checked:
        if isinstance(entry, Refusal):
            outcomes.append(Outcome(entry.code, entry.message))
        elif bad and all_or_nothing:
            message = f"not applied, all_or_nothing: results[{bad[0]}] was refused: {bad[1].message}"
            outcomes.append(Outcome(bad[1].code, message))
        else:
            outcomes.append(None)
    return outcomes
