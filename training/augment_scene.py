"""What is added to the frames of a clip: moving cut-outs, look-alikes, occluders."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.augment_motion import absent_span, object_path
from training.augment_occlude import boxes_over_time, occluder
from training.augment_paste import Bank, CutOut, Layer, cut_out, draw, fit, layer_maps, recolour, sway, usable
from training.clips import ClipConfig
from training.readers import BITS, RawClip, get_object

EXTRA = 2  # labels besides the pasted ones: a hidden object's twin and an occluder

Bend = Callable[[CutOut, int], CutOut] | None


@dataclass
class Scene:
    """The frames of one clip while things are added to them."""

    images: list[np.ndarray]  # T x (H, W, 3) uint8 RGB
    bits: list[np.ndarray]  # T x (H, W, C) int32
    class_ids: list[int]  # one an object, in the label space of `head`
    head: str
    exhaustive: bool

    @property
    def full(self) -> bool:
        """No bit is free for another object."""
        return len(self.class_ids) >= BITS * int(self.bits[0].shape[2])

    def label(self, cut: CutOut) -> int:
        """A new object index for a cut-out; its class is known only if it comes from the same label space."""
        self.class_ids.append(cut.class_id if cut.head == self.head and self.head else -1)
        return len(self.class_ids) - 1

    def draw(self, layer: Layer, bend: Bend = None) -> None:
        """Paints a layer into every frame."""
        for frame, (image, labels) in enumerate(zip(self.images, self.bits, strict=True)):
            draw(image, labels, layer, frame, bend)

    def whole(self) -> list[int]:
        """Objects of the first frame that can be cut out."""
        return usable(RawClip(self.images[:1], self.bits[:1], np.array(self.class_ids)))

    def cut(self, index: int) -> CutOut:
        """An object as it looks on the first frame."""
        return cut_out(self.images[0], get_object(self.bits[0], index), self.class_ids[index], self.head)


def populate(scene: Scene, rng: np.random.Generator, config: ClipConfig, bank: Bank) -> None:
    """Adds pasted objects and an occlusion by their probabilities, in place."""
    labelled = scene.exhaustive or rng.random() >= config.unlabelled
    if rng.random() < config.paste:
        for cut in _choose_cuts(scene, rng, config, bank):
            if labelled and scene.full:
                break
            _paste(scene, cut, scene.label(cut) if labelled else -1, rng, config)
    if rng.random() < config.occlude and not scene.full:
        _occlude(scene, rng, config, bank, labelled)


def _choose_cuts(scene: Scene, rng: np.random.Generator, config: ClipConfig, bank: Bank) -> list[CutOut]:
    """One to max_paste cut-outs at their size in the output; a twin shares the look of its sibling."""
    height, width = config.size
    cuts: list[CutOut] = []
    for _ in range(int(rng.integers(1, config.max_paste + 1))):
        own = scene.whole() if not cuts and rng.random() < config.own_twin else []
        if own:
            cuts.append(fit(scene.cut(int(rng.choice(own))), float(rng.uniform(0.8, 1.2))))
            continue
        if cuts and rng.random() < config.twins:
            cuts.append(cuts[-1])
            continue
        cut = bank.draw(rng)
        if cut is None:
            continue
        span = np.exp(rng.uniform(np.log(0.15), np.log(0.6))) * min(height, width)
        rows, columns = cut.alpha.shape
        scale = min(span / np.sqrt(rows * columns), 1.8, 0.9 * height / rows, 0.9 * width / columns)
        cuts.append(fit(recolour(cut, rng, 0.3), scale))
    return cuts


def _paste(scene: Scene, cut: CutOut, label: int, rng: np.random.Generator, config: ClipConfig) -> None:
    """Moves one cut-out over the clip."""
    gone = absent_span(rng, config.frames) if config.frames >= 3 and rng.random() < 0.3 else None
    path = object_path(rng, config.frames, config.size, cut.alpha.shape[:2], gone=gone)
    behind = bool(rng.random() < config.behind)
    if rng.random() < 0.5:
        cut = cut._replace(image=cut.image[:, ::-1].copy(), alpha=cut.alpha[:, ::-1].copy())
    scene.draw(Layer(cut, layer_maps(cut, *path), label, behind), sway(rng, cut, config.frames))


def _occlude(scene: Scene, rng: np.random.Generator, config: ClipConfig, bank: Bank, labelled: bool) -> None:
    """Hides one object for some frames; often a twin of it stays in view meanwhile. labelled: twin and cover are."""
    seen = [i for i in range(len(scene.class_ids)) if get_object(scene.bits[0][::4, ::4], i).sum() >= 6]
    if not seen:
        return
    whole = [index for index in scene.whole() if index in seen]
    twin = bool(whole) and rng.random() < config.hide_twin
    target = int(rng.choice(whole if twin else seen))
    boxes = boxes_over_time(scene.bits, target)
    if twin:
        cut = scene.cut(target)
        path = _beside(rng, config, cut, (boxes[0, :2] + boxes[0, 2:]) / 2)
        label = scene.label(cut) if labelled else -1
        scene.draw(Layer(cut, layer_maps(cut, *path), label), sway(rng, cut, config.frames))
        boxes = boxes_over_time(scene.bits, target)  # the twin may cover it in part
    if scene.full:
        return
    layer = occluder(rng, bank, boxes, config.size, len(scene.class_ids) if labelled else -1)
    if layer is not None:
        if layer.label >= 0:
            scene.label(layer.cut)
        scene.draw(layer)


def _beside(
    rng: np.random.Generator, config: ClipConfig, cut: CutOut, middle: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first of five paths (else the last) that starts clear of this point (x, y)."""
    rows, columns = cut.alpha.shape
    for _ in range(5):
        path = object_path(rng, config.frames, config.size, (rows, columns))
        apart = np.abs(path[0][0] - middle)
        if apart[0] > columns or apart[1] > rows:
            break
    return path
