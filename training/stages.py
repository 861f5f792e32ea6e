"""The three stages as frozen dataclasses: the paper's recipe to the letter, and the recipe of `nano`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from ausm.errors import InputError
from training.clips import ClipConfig, check_chances, check_least
from training.losses import LossConfig
from training.noise import HistoryNoise


@dataclass(frozen=True)
class Stage:
    """One training stage. `batch` is the global batch in clips, whatever the number of processes."""

    name: str
    frames: int  # T
    iterations: int
    batch: int
    size: tuple[int, int]  # (H, W) of the training crop
    lr: float = 1e-4  # App. A, all stages
    backbone_lr_scale: float = 0.1  # Mask2Former; 0 = frozen
    weight_decay: float = 0.05
    clip_norm: float = 0.01  # Mask2Former, full model
    warmup: int = 0
    decay_at: tuple[float, ...] = (0.89, 0.96)  # learning rate x0.1 at these fractions; () = linear over `cooldown`
    cooldown: float = 0.0  # last fraction of the iterations, linear to zero
    ema: float = 0.0  # decay of the moving average; 0 = none
    first_p: float = 0.8  # class-agnostic sources: ts = first appearance (A3)
    unknown_p: float = 0.0  # exhaustive sources: share of the clips that begin with nothing prompted (ts > 0)
    self_fed: float = 0.0  # share of iterations whose history is the model's own predictions of a first pass
    self_fed_stream: bool = False  # ... those made frame after frame, as a stream's: mistakes feed on themselves
    only: str = ""  # regular expression: train the parameters whose names it finds, the rest stays as it is
    max_instances: int = 25  # per clip
    noise: HistoryNoise | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)  # augmentations; its frames, size, max_instances: see above

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "backbone_lr_scale", "weight_decay", "clip_norm", "warmup"), 0)
        check_least(self, {"frames": 1, "iterations": 1, "batch": 1, "max_instances": 1, **rates})
        check_chances(self, ("cooldown", "ema", "first_p", "unknown_p", "self_fed"))

    def clip_config(self) -> ClipConfig:
        return replace(self.clips, frames=self.frames, size=self.size, max_instances=self.max_instances)


def paper(stage: int) -> Stage:
    """App. A and section 3.2: 3 / 5 / 16 frames, 147,500 / 32,000 / 40,000 iterations, batch 16, AdamW 1e-4."""
    if stage == 1:
        return Stage("paper-1", frames=3, iterations=147_500, batch=16, size=(768, 768))
    if stage == 2:  # frames at most 5 apart, in order
        wide = ClipConfig(max_stride=5)
        return Stage("paper-2", frames=5, iterations=32_000, batch=16, size=(640, 1024), decay_at=(0.75,), clips=wide)
    return Stage(
        "paper-3",
        frames=16,
        iterations=40_000,
        batch=16,
        size=(512, 896),
        decay_at=(0.75,),
        backbone_lr_scale=0.0,
        only=r"^(?!backbone|neck|norm_x)",  # "update only the temporal modules and prediction heads"
        clips=ClipConfig(max_stride=3),
    )


def nano(stage: int) -> Stage:
    """For the data at hand on a few CPU cores: frozen ImageNet backbone, smaller crops, longer clips stage by stage."""
    # few class labels here: at Mask2Former's weight of 2 they are half of the gradient (docs/training.md)
    loss = LossConfig(points=1536, deep=0.5, w_class=0.2)
    common: dict[str, Any] = dict(  # noqa: C408  (keyword arguments, read as such)
        backbone_lr_scale=0.0, clip_norm=1.0, decay_at=(), ema=0.995, loss=loss, noise=HistoryNoise(), max_instances=8
    )
    if stage == 1:
        return Stage("nano-1", 4, 1000, 4, (192, 320), lr=5e-4, warmup=150, **common)
    if stage == 2:
        return Stage("nano-2", 8, 1000, 2, (256, 448), lr=4e-4, warmup=50, self_fed=0.5, **common)
    # what the runs after the first eight added (docs/checkpoints/runs.md): a stream's own mistakes, clips that begin
    # unknown, false and late marks of what was hidden, an objectness that knows how good a mask is
    common["noise"] = HistoryNoise(blackout=0.25, blackout_frames=(2, 6), slip=0.5, early_frames=(0, 2), late=0.5)
    common["loss"] = replace(loss, no_object=0.4, quality=True, hard=True)
    common |= {"self_fed": 0.5, "self_fed_stream": True, "unknown_p": 0.5}
    return Stage("nano-3", 10, 1150, 1, (320, 576), lr=4e-4, warmup=20, cooldown=1.0, **common)


def from_json(saved: dict[str, Any]) -> Stage:
    """The stage that `json.dumps(dataclasses.asdict(stage))` wrote. A field that did not exist then has its default,
    which is what the run did; one that exists no more is left out."""
    noise = saved.get("noise")
    parts = {"loss": _from_json(LossConfig, saved.get("loss", {})), "noise": noise and _from_json(HistoryNoise, noise)}
    parts["clips"] = _from_json(ClipConfig, saved.get("clips", {}))
    stage: Stage = _from_json(Stage, saved | parts)
    return stage


def _from_json(cls: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in fields(cls)} & set(values)
    return cls(**{k: tuple(v) if isinstance(v := values[k], list) else v for k in known})


WHOLE = ""  # in a tree of settings: the text of the field itself

RECIPES = {"nano": nano, "swin_t": paper, "swin_b": paper}


def override(stage: Stage, settings: Sequence[str]) -> Stage:
    """`--set a.b=c` on the frozen tree; the value is read as JSON, for a text as it is. Raises InputError.

    All take effect together, so that fields which need each other may come in any order; of two for one field the last
    one counts.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        name, sep, text = setting.partition("=")
        if not sep:
            raise InputError(f"--set {setting!r}: expected name=value")
        if name in ("clips.frames", "clips.size", "clips.max_instances"):
            raise InputError(f"--set {setting!r}: {name.removeprefix('clips.')} is a field of the stage itself")
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = {WHOLE: text}  # what was said of its fields before is gone
    changed: Stage = _replace(stage, tree)
    return changed


def _replace(node: object, tree: dict[str, Any]) -> Any:
    """`node` with the values of `tree`: by field, each a tree of its own, {WHOLE: text} for a value."""
    if not is_dataclass(node) or isinstance(node, type):
        raise InputError(f"--set: {'.'.join(sorted(tree))} of {node!r}, which has no fields")
    names, values = {f.name for f in fields(node)}, {}
    for name, branch in tree.items():
        if name not in names:
            raise InputError(f"--set: {type(node).__name__} has no field {name!r}; fields: {sorted(names)}")
        value = getattr(node, name)
        if WHOLE in branch:
            value = _value(name, value, branch[WHOLE])
        if inner := {field: below for field, below in branch.items() if field != WHOLE}:
            if name == "noise" and value is None:
                value = HistoryNoise()  # a stage without: begins with the defaults
            value = _replace(value, inner)
        values[name] = value
    return replace(node, **values)


def _value(name: str, old: Any, text: str) -> Any:
    """`text` as a value of the kind that the field has. Raises InputError: a word for a switch would count as true."""
    if isinstance(old, str):
        return text
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        value = text
    if isinstance(old, bool):
        kind, fits = "true or false", isinstance(value, bool)
    elif isinstance(old, int):
        value = int(value) if isinstance(value, float) and value.is_integer() else value  # 1e3
        kind, fits = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(old, float):
        kind, fits = "a number", _is_number(value)
    elif isinstance(old, tuple):
        free = name == "decay_at"  # as many as wanted
        whole = not free and all(isinstance(number, int) for number in old)
        kind = "a list of numbers" if free else f"a list of {len(old)} {'whole ' if whole else ''}numbers"
        fits = isinstance(value, list) and all(map(_is_number, value)) and (free or len(value) == len(old))
        fits = fits and not (whole and any(isinstance(number, float) for number in value))
        value = tuple(value) if fits else value
    elif name == "noise":
        kind, fits, old = "null, or its fields one by one: noise.blackout=0.2", value is None, None
    else:
        kind, fits, old = f"its fields one by one: {name}.{fields(old)[0].name}", False, None
    if not fits:
        example = "" if old is None else f", as in {name}={json.dumps(old)}"
        raise InputError(f"--set {name}={text}: expected {kind}{example}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
