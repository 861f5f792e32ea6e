"""From an item of a reader to a training clip. A clip is a pure function of (reader, item, generator, config, bank)."""

from collections.abc import Callable

import cv2
import numpy as np

from training.augment_colour import change_look
from training.augment_motion import STILL, VIDEO, absent_span, camera_path, object_path
from training.augment_occlude import boxes_over_time, occluder
from training.augment_paste import Bank, CutOut, Layer, cut_out, draw, fit, layer_maps, recolour, sway, usable
from training.clips import Clip, ClipConfig
from training.readers import MAX_OBJECTS, RawClip, Reader, channels, get_object


def choose_frames(rng: np.random.Generator, length: int, config: ClipConfig) -> list[int]:
    """T frame indices: stride uniform in 1..max_stride where the video allows it, reversed by chance.

    A video shorter than T is played to and fro.
    """
    if length == 1:
        return [0] * config.frames
    longest = max(1, (length - 1) // max(1, config.frames - 1))
    stride = int(rng.integers(1, min(config.max_stride, longest) + 1))
    span = (config.frames - 1) * stride + 1
    start = int(rng.integers(0, max(1, length - span + 1)))
    frames = start + stride * np.arange(config.frames)
    period = 2 * (length - 1)
    frames = frames % period
    frames = np.where(frames < length, frames, period - frames)
    if rng.random() < config.reverse:
        frames = frames[::-1]
    return [int(frame) for frame in frames]


def make_clip(reader: Reader, item: int, rng: np.random.Generator, config: ClipConfig, bank: Bank | None) -> Clip:
    """One training sample of an item: camera, pasted objects, occluders, colours. Raises ClipDataError."""
    frames = choose_frames(rng, reader.length(item), config)
    still = reader.length(item) == 1
    raw = reader.load(item, frames[:1] if still else frames)
    if still:
        raw = RawClip(raw.images * config.frames, raw.bits * config.frames, raw.class_ids)
    images, bits = _film(raw, still, rng, config)
    class_ids = list(raw.class_ids)
    if bank is not None:
        class_ids = _populate(images, bits, raw, class_ids, reader, rng, config, bank)
    masks, kept = visible_masks(bits, len(class_ids), config)
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
    away = None
    if len(raw.class_ids) and config.frames >= 4 and rng.random() < config.away:
        away = absent_span(rng, config.frames)
    maps = camera_path(
        rng,
        config.frames,
        config.size,
        source,
        focus,
        STILL if still else VIDEO,
        close=1.0 if still or away else 0.6,
        jump=still and rng.random() < config.jump,
        away=away,
    )
    if rng.random() < config.flip:
        mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        maps = maps @ mirror
    shrink = 1 / np.sqrt(np.abs(np.linalg.det(maps[:, :, :2])).min())  # largest output/source scale of the clip
    fill = [float(v) for v in raw.images[0].mean(axis=(0, 1))]
    planes = channels(min(len(raw.class_ids) + config.max_paste + 3, MAX_OBJECTS))
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
    height, width = raw.images[0].shape[:2]
    whole = np.array([0.0, 0.0, width, height])
    first = raw.bits[0][::4, ::4]
    areas = np.array([get_object(first, index).sum() for index in range(len(raw.class_ids))], float)
    if not areas.any() or rng.random() < 0.15:
        return whole
    index = int(rng.choice(len(areas), p=np.sqrt(areas) / np.sqrt(areas).sum()))
    chosen = raw.bits[:1] if still else raw.bits[:: max(1, len(raw.bits) // 4)]
    boxes = boxes_over_time(chosen, index)
    return np.concatenate([np.nanmin(boxes[:, :2], axis=0), np.nanmax(boxes[:, 2:], axis=0)])


def _populate(
    images: list[np.ndarray],
    bits: list[np.ndarray],
    raw: RawClip,
    class_ids: list[int],
    reader: Reader,
    rng: np.random.Generator,
    config: ClipConfig,
    bank: Bank,
) -> list[int]:
    """Pastes moving objects and occluders into the frames, in place. Returns the class ids of all objects."""
    class_ids = list(class_ids)
    capacity = 31 * bits[0].shape[2]

    def label_of(cut: CutOut) -> int:
        class_ids.append(cut.class_id if cut.head == reader.head and reader.head else -1)
        return len(class_ids) - 1

    labelled = reader.exhaustive or rng.random() >= config.unlabelled
    if rng.random() < config.paste:
        cuts = _choose_cuts(raw, reader, rng, config, bank)
        for cut in cuts:
            index = label_of(cut) if labelled and len(class_ids) < capacity else -1
            if index < 0 and reader.exhaustive:
                break
            _draw_layer(images, bits, *_moving(cut, index, rng, config))
    if rng.random() < config.occlude and len(class_ids) < capacity:
        targets = [index for index in range(len(class_ids)) if get_object(bits[0][::4, ::4], index).sum() >= 6]
        if targets:
            boxes = boxes_over_time(bits, targets[int(rng.integers(len(targets)))])
            layer = occluder(rng, bank, boxes, config.size, len(class_ids))
            if layer is not None:
                if layer.label >= 0:
                    label_of(layer.cut)
                _draw_layer(images, bits, layer, None)
    return class_ids


def _choose_cuts(
    raw: RawClip, reader: Reader, rng: np.random.Generator, config: ClipConfig, bank: Bank
) -> list[CutOut]:
    """One to max_paste cut-outs at their size in the output; a twin shares the look of its sibling."""
    height, width = config.size
    cuts: list[CutOut] = []
    for _ in range(int(rng.integers(1, config.max_paste + 1))):
        cut: CutOut | None = None
        if rng.random() < config.own_twin and not cuts:
            own = usable(raw)
            if own:
                index = own[int(rng.integers(len(own)))]
                cut = cut_out(raw.images[0], get_object(raw.bits[0], index), int(raw.class_ids[index]), reader.head)
        elif cuts and rng.random() < config.twins:
            cuts.append(cuts[-1])
            continue
        if cut is None:
            cut = bank.draw(rng)
            if cut is None:
                continue
            cut = recolour(cut, rng, 0.3)
        span = np.exp(rng.uniform(np.log(0.15), np.log(0.6))) * min(height, width)
        rows, columns = cut.alpha.shape
        scale = min(span / np.sqrt(rows * columns), 1.8, 0.9 * height / rows, 0.9 * width / columns)
        cuts.append(fit(cut, scale))
    return cuts


def _moving(
    cut: CutOut, index: int, rng: np.random.Generator, config: ClipConfig
) -> tuple[Layer, Callable[[CutOut, int], CutOut] | None]:
    gone = absent_span(rng, config.frames) if config.frames >= 3 and rng.random() < 0.3 else None
    path = object_path(rng, config.frames, config.size, cut.alpha.shape[:2], gone=gone)
    behind = rng.random() < config.behind
    if rng.random() < 0.5:
        cut = cut._replace(image=cut.image[:, ::-1].copy(), alpha=cut.alpha[:, ::-1].copy())
    return Layer(cut, layer_maps(cut, *path), index, behind), sway(rng, cut, config.frames)


def _draw_layer(
    images: list[np.ndarray],
    bits: list[np.ndarray],
    layer: Layer,
    bend: Callable[[CutOut, int], CutOut] | None,
) -> None:
    for frame, (image, labels) in enumerate(zip(images, bits, strict=True)):
        draw(image, labels, layer, frame, bend)


def visible_masks(bits: list[np.ndarray], objects: int, config: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """(N, T, H, W) bool masks of the largest max_instances objects ever seen, and their indices (N,).

    A visible part below min_pixels counts as absent on that frame.
    """
    coarse = np.stack([labels[::2, ::2] for labels in bits])
    largest = np.array([get_object(coarse, i).sum(axis=(1, 2)).max() * 4 for i in range(objects)], float)
    order = np.argsort(-largest, kind="stable")[: config.max_instances]
    kept = np.sort(order[largest[order] >= config.min_pixels])
    stack = np.stack(bits)
    masks = np.zeros((len(kept), *stack.shape[:3]), bool)
    for row, index in enumerate(kept):
        masks[row] = get_object(stack, int(index))
    counts = np.count_nonzero(masks, axis=(2, 3))
    masks[counts < config.min_pixels] = False
    seen = masks.any(axis=(1, 2, 3)) if len(kept) else np.zeros(0, bool)
    return masks[seen], kept[seen]
