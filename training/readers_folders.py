"""Videos as folders of frames and palette PNGs: DAVIS 2016/2017, MOSE, YouTube-VOS."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ausm.io import sequence_names
from training.clips import ClipDataError
from training.readers import (
    HELD_OUT,
    RawClip,
    bits_of_labels,
    check_frames,
    check_one_size,
    check_sizes,
    read_labels,
    read_rgb,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VOID = 255  # "do not care" in palette label maps


class FolderReader:
    """`images/<video>/<frame>.jpg` with `labels/<video>/<frame>.png`; only frames that have a label map count.

    `binary` True: any non-zero value is the one object (DAVIS-2016). Otherwise each palette index is an object and
    255 is void. Class-agnostic and not exhaustive: what has no label is not background. Held-out sequences are never
    read.
    Raises ClipDataError for a missing folder or when nothing is left.
    """

    exhaustive = False
    head = ""

    def __init__(
        self,
        images: Path,
        labels: Path,
        *,
        name: str,
        binary: bool = False,
        videos: Collection[str] | None = None,
        exclude: Collection[str] = (),
    ) -> None:
        self.name, self.binary = name, binary
        self.images, self.labels = Path(images), Path(labels)
        refused = HELD_OUT["davis"] | frozenset(exclude)
        try:
            found = sorted(path.name for path in self.labels.iterdir() if path.is_dir())
            self._items = []
            for video in found:
                if video in refused or (videos is not None and video not in videos):
                    continue
                frames = self._frames(video)
                if frames:
                    self._items.append((video, frames))
        except OSError as error:
            raise ClipDataError(f"{error.filename}: {error.strerror or error}") from error
        if not self._items:
            raise ClipDataError(f"{self.labels}: no video is left to train on")
        self._values: dict[int, list[int]] = {}

    def _frames(self, video: str) -> list[tuple[Path, Path]]:
        images = {path.stem: path for path in (self.images / video).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        labels = sorted(path for path in (self.labels / video).iterdir() if path.suffix == ".png")
        # a label map without its frame is kept: loading it names the missing file
        return [(images.get(path.stem, self.images / video / f"{path.stem}.jpg"), path) for path in labels]

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, item: int) -> str:
        return self._items[item][0]

    def length(self, item: int) -> int:
        return len(self._items[item][1])

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Frames in the given order; an object keeps its index over the clip. Raises ClipDataError."""
        check_frames(self, item, frames)
        images: list[np.ndarray] = []
        maps: list[np.ndarray] = []
        for frame in frames:
            image_path, label_path = self._items[item][1][frame]
            image, labels = read_rgb(image_path), read_labels(label_path)
            check_sizes(str(label_path), image, labels)
            check_one_size(image_path, image, images)
            images.append(image)
            maps.append(labels)
        values: list[int]
        if self.binary:
            maps = [(labels > 0).astype(np.uint8) for labels in maps]
            values = [1]
        else:
            present = np.zeros(256, bool)
            for labels in maps:
                present |= np.bincount(labels.ravel(), minlength=256) > 0
            values = [int(v) for v in np.flatnonzero(present) if v not in (0, VOID)]
        bits = [bits_of_labels(labels, values) for labels in maps]
        return RawClip(images, bits, np.full(len(values), -1, np.int64))


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ClipDataError(f"{path}: {error.strerror or error}") from error


def davis2016(root: Path, *, name: str = "davis16", exclude: Collection[str] = ()) -> FolderReader:
    """`JPEGImages/<seq>`, `Annotations/<seq>`; or the official `480p` level below both.

    Where there is an `ImageSets`, as in the official archives, which hold the validation sequences beside the others,
    the training split of 2016, else of 2017 is read. Raises ClipDataError for an `ImageSets` with neither.
    """
    root = Path(root)
    images, labels, sets = root / "JPEGImages", root / "Annotations", root / "ImageSets"
    if (images / "480p").is_dir():
        images, labels = images / "480p", labels / "480p"
    videos = None
    if sets.is_dir():
        lists = [sets / "480p" / "train.txt", sets / "2016" / "train.txt", sets / "2017" / "train.txt"]
        found = next((path for path in lists if path.is_file()), None)
        if found is None:
            raise ClipDataError(f"{sets} lists no training split: none of {[str(p.relative_to(sets)) for p in lists]}")
        videos = sequence_names("\n".join(_names(found)))
    return FolderReader(images, labels, name=name, binary=True, videos=videos, exclude=exclude)


def davis2017(
    root: Path, *, name: str = "davis17", split: str = "train", exclude: Collection[str] = ()
) -> FolderReader:
    """`JPEGImages/480p`, `Annotations/480p`, `ImageSets/2017/<split>.txt`."""
    root = Path(root)
    return FolderReader(
        root / "JPEGImages" / "480p",
        root / "Annotations" / "480p",
        name=name,
        videos=_names(root / "ImageSets" / "2017" / f"{split}.txt"),
        exclude=exclude,
    )


def mose(root: Path, *, name: str = "mose", exclude: Collection[str] = ()) -> FolderReader:
    """`train/JPEGImages/<video>`, `train/Annotations/<video>`."""
    base = Path(root) / "train"
    return FolderReader(base / "JPEGImages", base / "Annotations", name=name, exclude=exclude)


def youtube_vos(root: Path, *, name: str = "youtube_vos", exclude: Collection[str] = ()) -> FolderReader:
    """`train/JPEGImages`, `train/Annotations` (every fifth frame is labelled), `train/meta.json` lists the videos."""
    base = Path(root) / "train"
    meta = base / "meta.json"
    try:
        videos = json.loads(meta.read_bytes())["videos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipDataError(f"{meta}: {error!r}") from error
    return FolderReader(base / "JPEGImages", base / "Annotations", name=name, videos=list(videos), exclude=exclude)
