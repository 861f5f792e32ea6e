"""From an item of a reader to a training clip. A clip is a pure function of (reader, item, generator, config, bank)."""

import cv2
import numpy as np

from training.augment_colour import change_look
from training.augment_motion import STILL, VIDEO, absent_span, camera_path
from training.augment_occlude import boxes_over_time
from training.augment_paste import Bank
from training.augment_scene import EXTRA, Scene, populate
from training.clips import Clip, ClipConfig
from training.readers import MAX_OBJECTS, KnowsAbsences, RawClip, Reader, channels, get_object

LONGEST_ABSENCE = 30  # frames, as in the benchmark (`training.sim_occlusion`, which needs the simulator)
SEEN = 3  # frames before and after an absence that lasts longer


def choose_frames(
    rng: np.random.Generator, length: int, config: ClipConfig, absence: tuple[int, int] | None = None
) -> list[int]:
    """T frame indices: stride uniform in 1..max_stride where the video allows it, reversed by chance.

    A video shorter than T is played to and fro. absence: frames [start, stop) without some object. The clip spans them
    and SEEN frames before and after them, where it is long enough; by chance (`linger`) they last longer.
    """
    if length == 1:
        return [0] * config.frames
    fits = absence is not None and 2 <= absence[1] - absence[0] <= config.frames - 2 * SEEN
    if absence is not None and fits and config.linger > 0 and rng.random() < config.linger:
        frames = _linger(rng, length, config, absence)
    else:
        steps = max(1, config.frames - 1)
        shortest, longest = 1, min(config.max_stride, max(1, (length - 1) // steps))
        shown = absence if absence is not None and _span(absence) <= longest * steps + 1 else None
        if shown is not None:
            shortest = -(-(_span(shown) - 1) // steps)  # the least stride that still spans it
        stride = int(rng.integers(shortest, longest + 1))
        reach = (config.frames - 1) * stride  # from the first frame to the last
        low, high = 0, max(0, length - reach - 1)
        if shown is not None:
            edges = shown[1] + SEEN - reach - 1, shown[0] - SEEN
            low, high = (min(max(edge, 0), high) for edge in edges)
        start = int(rng.integers(low, high + 1))
        frames = _fold(start + stride * np.arange(config.frames), length)
    if rng.random() < config.reverse:
        frames = frames[::-1]
    return [int(frame) for frame in frames]


def _span(absence: tuple[int, int]) -> int:
    """Frames of an absence [start, stop) with what is shown before and after it."""
    return absence[1] - absence[0] + 2 * SEEN


def _fold(frames: np.ndarray, length: int) -> np.ndarray:
    """Frame numbers from 0 on as those of a video of `length` >= 2 frames that is played to and fro."""
    frames = frames % (2 * (length - 1))
    return np.where(frames < length, frames, 2 * (length - 1) - frames)


def _linger(rng: np.random.Generator, length: int, config: ClipConfig, absence: tuple[int, int]) -> np.ndarray:
    """T frame indices of a video whose absence [start, stop) is played to and fro within itself and so lasts longer.

    It lasts up to LONGEST_ABSENCE frames; SEEN frames before and after it are in the clip where the video has them.
    What is still too short goes to and fro as a whole. T must have room for the absence and 2 SEEN.
    """
    start, stop = absence
    hidden = list(range(start, stop))
    room = min(LONGEST_ABSENCE, config.frames - 2 * SEEN) - len(hidden)
    extra = int(rng.integers(0, max(room, 0) // 2 + 1))  # frames back; as many go forward again
    while extra > 0:
        back = min(extra, stop - start - 1)
        hidden += [*range(stop - 2, stop - 2 - back, -1), *range(stop - back, stop)]
        extra -= back
    order = np.array([*range(start), *hidden, *range(stop, length)])
    earliest, latest = start + len(hidden) + SEEN - config.frames, start - SEEN  # first frames that show both sides
    first = int(np.clip(rng.integers(earliest, latest + 1), 0, max(len(order) - config.frames, 0)))
    return order[_fold(first + np.arange(config.frames), len(order))]


def make_clip(reader: Reader, item: int, rng: np.random.Generator, config: ClipConfig, bank: Bank | None) -> Clip:
    """One training sample of an item: camera, pasted objects, occluders, colours. Raises ClipDataError."""
    absence = reader.absence(item) if isinstance(reader, KnowsAbsences) else None
    frames = choose_frames(rng, reader.length(item), config, absence)
    still = reader.length(item) == 1
    raw = reader.load(item, frames[:1] if still else frames)
    if still:
        raw = RawClip(raw.images * config.frames, raw.bits * config.frames, raw.class_ids)
    images, bits = _film(raw, still, rng, config)
    scene = Scene(images, bits, [int(class_id) for class_id in raw.class_ids], reader.head, reader.exhaustive)
    if bank is not None:
        populate(scene, rng, config, bank)
    class_ids = scene.class_ids
    cap = max(config.max_instances, config.max_exhaustive) if reader.exhaustive else config.max_instances
    masks, kept = visible_masks(bits, len(class_ids), cap, config.min_pixels)
    images = change_look(images, rng, config)
    ids = np.array(class_ids, np.int64)[kept] if reader.head else np.full(len(kept), -1, np.int64)
    name = f"{reader.name}/{reader.item_name(item)}"
    return Clip(np.stack(images), masks, ids, reader.exhaustive, reader.head, name)


def _film(
    raw: RawClip, still: bool, rng: np.random.Generator, config: ClipConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The frames and bit maps through a moving window of the output size."""
    height, width = config.size
    source = raw.images[0].shape[:2]
    focus = _focus(raw, rng, still)
    # without the chance no draw is taken: the sequence of draws stays what it was
    whole = still and config.whole > 0 and rng.random() < config.whole
    if whole:
        focus = _whole_frame(raw)
    away = None
    if not whole and len(raw.class_ids) and config.frames >= 3 and rng.random() < config.away:
        away = absent_span(rng, config.frames)
    maps = camera_path(
        rng,
        config.frames,
        config.size,
        source,
        focus,
        STILL if still else VIDEO,
        close=0.0 if whole else 1.0 if still or away else 0.6,
        jump=still and not whole and rng.random() < config.jump,
        away=away,
    )
    if rng.random() < config.flip:
        mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        maps = maps @ mirror
    shrink = 1 / np.sqrt(np.abs(np.linalg.det(maps[:, :, :2])).min())  # largest output/source scale of the clip
    fill = [float(v) for v in raw.images[0].mean(axis=(0, 1))]
    planes = channels(min(len(raw.class_ids) + config.max_paste + EXTRA, MAX_OBJECTS))
    images, bits = [], []
    smaller: dict[int, np.ndarray] = {}
    for image, labels, matrix in zip(raw.images, raw.bits, maps, strict=True):
        view = matrix
        if shrink < 0.6:  # a plain warp would alias: shrink by area first
            factor = shrink * 1.2
            if id(image) not in smaller:
                smaller[id(image)] = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            ratio = np.array(smaller[id(image)].shape[1::-1]) / np.array(image.shape[1::-1])
            view = ratio[:, None] * matrix
            view[:, 2] += 0.5 * ratio - 0.5
            image = smaller[id(image)]
        flags = cv2.WARP_INVERSE_MAP
        images.append(cv2.warpAffine(image, view, (width, height), flags=flags | cv2.INTER_LINEAR, borderValue=fill))
        warped = cv2.warpAffine(labels, matrix, (width, height), flags=flags | cv2.INTER_NEAREST)
        canvas = np.zeros((height, width, planes), np.int32)
        canvas[..., : labels.shape[2]] = warped.reshape(height, width, -1)[..., :planes]
        bits.append(canvas)
    return images, bits


def _focus(raw: RawClip, rng: np.random.Generator, still: bool) -> np.ndarray:
    """(4,) box x0, y0, x1, y1 the camera cares for: one object (larger ones more often), or the whole frame."""
    first = raw.bits[0][::4, ::4]
    areas = np.array([get_object(first, index).sum() for index in range(len(raw.class_ids))], float)
    if not areas.any() or rng.random() < 0.15:
        return _whole_frame(raw)
    index = int(rng.choice(len(areas), p=np.sqrt(areas) / np.sqrt(areas).sum()))
    chosen = raw.bits[:1] if still else raw.bits[:: max(1, len(raw.bits) // 4)]
    boxes = boxes_over_time(chosen, index)
    return np.concatenate([np.nanmin(boxes[:, :2], axis=0), np.nanmax(boxes[:, 2:], axis=0)])


def _whole_frame(raw: RawClip) -> np.ndarray:
    """(4,) box x0, y0, x1, y1."""
    height, width = raw.images[0].shape[:2]
    return np.array([0.0, 0.0, width, height])


def visible_masks(bits: list[np.ndarray], objects: int, cap: int, min_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, T, H, W) bool masks of the largest `cap` objects ever seen, and their indices (N,).

    A visible part below min_pixels counts as absent on that frame.
    """
    coarse = np.stack([labels[::2, ::2] for labels in bits])
    largest = np.array([get_object(coarse, i).sum(axis=(1, 2)).max() * 4 for i in range(objects)], float)
    order = np.argsort(-largest, kind="stable")[:cap]
    kept = np.sort(order[largest[order] >= min_pixels])
    stack = np.stack(bits)
    masks = np.zeros((len(kept), *stack.shape[:3]), bool)
    for row, index in enumerate(kept):
        masks[row] = get_object(stack, int(index))
    counts = np.count_nonzero(masks, axis=(2, 3))
    masks[counts < min_pixels] = False
    seen = masks.any(axis=(1, 2, 3)) if len(kept) else np.zeros(0, bool)
    return masks[seen], kept[seen]
