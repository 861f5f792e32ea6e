"""Which data a training run reads: a TOML file with one [[source]] table a source."""

import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from training import readers_coco, readers_folders, readers_sav, readers_sim, readers_ytvis
from training.clips import ClipDataError
from training.loader import OWN, Source
from training.readers import Reader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceConfig:
    """One [[source]] table. Only `kind` and `root` are required."""

    kind: str  # a key of KINDS
    root: str  # relative to the folder of the configuration file
    weight: float = 1.0  # share of the batches, relative to the other sources
    name: str = ""  # default: kind
    exhaustive: bool | None = None  # None: as the kind is labelled
    head: str | None = None  # None: as the kind has classes; "" drops the classes
    exclude: tuple[str, ...] = ()  # items never read, on top of the held-out ones
    annotations: str = "annotations.json"  # COCO kinds: the json, relative to root
    images: str = "images"  # COCO kinds: the folder, relative to root
    crowded: bool = False  # COCO kinds: only the images with crowd regions, which an exhaustive source leaves out
    topic: str | None = None  # bags: the camera topic, where there are several
    labels: str | None = None  # bags: the topic of the masks, where there are several
    paste: float | None = None  # probability of pasted objects, None = as the clip configuration says
    frames: int | None = None  # T of this source's clips, None = as the stage says
    size: tuple[int, int] | None = None  # (H, W) of this source's crop, None = as the stage says
    whole: float | None = None  # photos: probability of no zoom, None = as the clip configuration says
    alone: bool = False  # simulated clips of hidden objects: nothing else is labelled
    linger: float | None = None  # simulated clips: probability of longer absences, None = as the configuration says


# types of the keys that are no strings
VALUES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "weight": ((int, float), "a number"),
    "paste": ((int, float), "a number"),
    "frames": (int, "a whole number"),
    "size": (list, "[height, width]"),
    "whole": ((int, float), "a number"),
    "linger": ((int, float), "a number"),
    "exhaustive": (bool, "true or false"),
    "alone": (bool, "true or false"),
    "crowded": (bool, "true or false"),
    "exclude": (list, "a list"),
}

Maker = Callable[[SourceConfig, Path], Reader]


def _coco(source: SourceConfig, root: Path) -> Reader:
    return readers_coco.CocoReader(
        root / source.annotations,
        root / source.images,
        name=source.name or "coco",
        exhaustive=source.exhaustive is not False,
        classes=source.head != "",
        exclude=source.exclude,
        crowded=source.crowded,
    )


def _folder(make: Callable[..., Reader]) -> Maker:
    return lambda source, root: make(root, name=source.name or source.kind, exclude=source.exclude)


def _bag(source: SourceConfig, root: Path) -> Reader:
    from training.readers_bag import BagReader  # needs the package rosbags, which the other kinds do not

    return BagReader(
        root,
        name=source.name or "bag",
        head=source.head or "",
        exhaustive=bool(source.exhaustive),
        topic=source.topic,
        labels=source.labels,
        exclude=source.exclude,
    )


def _sim(source: SourceConfig, root: Path) -> Reader:
    return readers_sim.sim(root, name=source.name or "sim", exclude=source.exclude, alone=source.alone)


KINDS: dict[str, Maker] = {
    "bag": _bag,
    "coco": _coco,
    "davis2016": _folder(readers_folders.davis2016),
    "davis2017": _folder(readers_folders.davis2017),
    "mose": _folder(readers_folders.mose),
    "youtube_vos": _folder(readers_folders.youtube_vos),
    "sav": _folder(readers_sav.sav),
    "youtube_vis_2019": _folder(partial(readers_ytvis.youtube_vis, year=2019)),
    "youtube_vis_2021": _folder(partial(readers_ytvis.youtube_vis, year=2021)),
    "ovis": _folder(readers_ytvis.ovis),
    "sim": _sim,
}


def make_source(config: SourceConfig, base: Path) -> Source:
    """The reader of one table, with its overrides. Raises ClipDataError."""
    if config.kind not in KINDS:
        raise ClipDataError(f"source kind {config.kind!r}: known are {', '.join(sorted(KINDS))}")
    reader = KINDS[config.kind](config, base / config.root)
    if config.exhaustive is not None:
        reader.exhaustive = config.exhaustive
    if config.head is not None:
        reader.head = config.head
    own = {name: getattr(config, name) for name in OWN}
    return Source(reader, config.weight, alone=config.alone, **own)


def check_classes(sources: Sequence[Source], heads: Mapping[str, int]) -> None:
    """Whether the classes of every source fit the model's heads (number of classes by name).

    Classes without a head teach nothing, which is logged. Raises ClipDataError where their number differs: a json that
    lists some of the classes only would number them otherwise.
    """
    for source in sources:
        reader, head = source.reader, source.reader.head
        found = len(getattr(reader, "category_names", ()))
        if head and head not in heads:
            log.warning("source %s: no class head %r in this model, classes are not learned", reader.name, head)
        elif head and found and found != heads[head]:
            raise ClipDataError(
                f'source {reader.name}: {found} classes, head {head!r} has {heads[head]}; head = "" drops the classes'
            )


def parse_data_config(path: Path) -> list[SourceConfig]:
    """The tables of the file. Raises ClipDataError that names the table and the wrong key."""
    try:
        data = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ClipDataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ClipDataError(f"{path}: {error}") from error
    tables = data.get("source")
    if not isinstance(tables, list) or not tables or set(data) != {"source"}:
        raise ClipDataError(f"{path}: holds {sorted(data)}, needs one or more [[source]] tables and nothing else")
    return [_parse_table(table, f"{path}, [[source]] {number}") for number, table in enumerate(tables, 1)]


def _parse_table(table: dict[str, Any], where: str) -> SourceConfig:
    known = {field.name for field in fields(SourceConfig)}
    unknown, missing = sorted(set(table) - known), sorted({"kind", "root"} - set(table))
    if unknown or missing:
        raise ClipDataError(f"{where}: unknown keys {unknown}, missing keys {missing}; known: {sorted(known)}")
    values = dict(table)
    for key, value in values.items():
        expected, called = VALUES.get(key, (str, "a string"))
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ClipDataError(f"{where}: {key} = {value!r} is not {called}")
    if values.get("weight", 1.0) < 0 or not 0 <= values.get("paste", 0.0) <= 1:
        raise ClipDataError(f"{where}: weight {values.get('weight')} must be >= 0, paste {values.get('paste')} in 0..1")
    if values.get("frames", 1) < 1:
        raise ClipDataError(f"{where}: frames {values['frames']} must be >= 1")
    for key in ("alone", "linger"):
        if values.get(key) and values["kind"] != "sim":
            raise ClipDataError(f"{where}: {key} is for simulated clips, kind is {values['kind']!r}")
    if values.get("alone") and values.get("exhaustive"):
        raise ClipDataError(f"{where}: alone leaves all but one object without a label, so it is not exhaustive")
    if values.get("crowded") and values["kind"] != "coco":
        raise ClipDataError(f"{where}: crowded is for COCO images, kind is {values['kind']!r}")
    for key in ("whole", "linger"):
        if not 0 <= values.get(key, 0.0) <= 1:
            raise ClipDataError(f"{where}: {key} {values[key]} must be in 0..1")
    if "size" in values:
        size = values["size"]
        if len(size) != 2 or not all(type(n) is int and n >= 32 and n % 32 == 0 for n in size):
            raise ClipDataError(f"{where}: size {size} must be [height, width], both multiples of 32")
        values["size"] = tuple(size)
    values["exclude"] = tuple(str(item) for item in values.get("exclude", ()))
    return SourceConfig(**values)


def load_data_config(path: Path) -> list[Source]:
    """Opens every source of the file. Roots are relative to the file. Raises ClipDataError."""
    path = Path(path)
    return make_sources(parse_data_config(path), path.parent)


def make_sources(configs: Sequence[SourceConfig], base: Path) -> list[Source]:
    """Opens every source; relative roots start at `base`. Raises ClipDataError."""
    return [make_source(config, base) for config in configs]
