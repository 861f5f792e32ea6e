"""YouTube-VIS 2019/2021 and OVIS: one json of videos, a run-length mask or nothing per object and frame."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.clips import ClipDataError
from training.packed import Packed
from training.readers import MAX_OBJECTS, RawClip, channels, check_frames, check_one_size, read_rgb, set_object
from training.readers_coco import load_json, mask_of


class YoutubeVisReader:
    """`annotations` (instances.json of a train split) over `images/<file_names[t]>`.

    Category ids become 0..C-1 in ascending order: 40 classes for YouTube-VIS, 25 for OVIS. Items are named by the
    folder of the video. Every object of these classes is labelled in every frame, so exhaustive by default; objects of
    other classes are not, so set `exhaustive` False where that matters more. Raises ClipDataError.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        *,
        name: str,
        head: str,
        exhaustive: bool = True,
        exclude: Collection[str] = (),
    ) -> None:
        self.name, self.head, self.exhaustive = name, head, exhaustive
        self.images = Path(images)
        data = load_json(Path(annotations), ("videos", "annotations", "categories"))
        try:
            categories = sorted(data["categories"], key=lambda category: category["id"])
            index_of = {category["id"]: index for index, category in enumerate(categories)}
            self.category_names = tuple(str(category["name"]) for category in categories)
            by_video: dict[int, list[tuple[int, list[Any]]]] = {}
            for annotation in data["annotations"] or ():
                tracks = by_video.setdefault(annotation["video_id"], [])
                tracks.append((index_of[annotation["category_id"]], annotation["segmentations"]))
            items: list[tuple[str, list[str], list[tuple[int, list[Any]]]]] = []
            for video in sorted(data["videos"], key=lambda video: video["id"]):
                files = list(video["file_names"])
                tracks = by_video.get(video["id"], [])[:MAX_OBJECTS]
                for _, masks in tracks:
                    if len(masks) != len(files):
                        raise ClipDataError(f"{annotations}: {files[:1]}: {len(masks)} masks for {len(files)} frames")
                title = Path(files[0]).parts[0] if files else ""
                if files and title not in exclude and (tracks or exhaustive):
                    items.append((title, files, tracks))
        except (KeyError, TypeError, IndexError) as error:
            raise ClipDataError(f"{annotations}: malformed video annotations ({error!r})") from error
        if not items:
            raise ClipDataError(f"{annotations}: no video is left to train on")
        self._videos = [(title, files) for title, files, _ in items]
        self._tracks = Packed(tracks for _, _, tracks in items)

    def __len__(self) -> int:
        return len(self._videos)

    def item_name(self, item: int) -> str:
        return self._videos[item][0]

    def length(self, item: int) -> int:
        return len(self._videos[item][1])

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        """Frames in the given order; objects of the whole video keep their indices. Raises ClipDataError."""
        check_frames(self, item, frames)
        files, tracks = self._videos[item][1], self._tracks[item]
        images: list[np.ndarray] = []
        bits: list[np.ndarray] = []
        for frame in frames:
            path = self.images / files[frame]
            image = read_rgb(path)
            check_one_size(path, image, images)
            labels = np.zeros((*image.shape[:2], channels(len(tracks))), np.int32)
            for index, (_, masks) in enumerate(tracks):
                if masks[frame]:  # None or empty: not visible on this frame
                    set_object(labels, index, mask_of(masks[frame], image.shape[0], image.shape[1], str(path)))
            images.append(image)
            bits.append(labels)
        return RawClip(images, bits, np.array([class_id for class_id, _ in tracks], np.int64))


def _split(root: Path, folder: str, names: tuple[str, ...]) -> tuple[Path, Path]:
    for name in names:
        if (root / name).is_file():
            return root / name, root / folder
    raise ClipDataError(f"{root}: none of {', '.join(names)} is here")


def youtube_vis(
    root: Path, year: int, *, name: str = "", exhaustive: bool = True, exclude: Collection[str] = ()
) -> YoutubeVisReader:
    """`train/JPEGImages/<video>/<frame>.jpg` with `train/instances.json` (2021), `train.json` or
    `instances_train_sub.json` (the 2019 releases). The head is "ytvis19" or "ytvis21". Raises ClipDataError."""
    root = Path(root)
    annotations, images = _split(
        root, "train/JPEGImages", ("train/instances.json", "train.json", "instances_train_sub.json", "train/train.json")
    )
    head = f"ytvis{year % 100}"
    return YoutubeVisReader(annotations, images, name=name or head, head=head, exhaustive=exhaustive, exclude=exclude)


def ovis(root: Path, *, name: str = "ovis", exhaustive: bool = True, exclude: Collection[str] = ()) -> YoutubeVisReader:
    """`annotations_train.json` with frames below `train/`. The head is "ovis". Raises ClipDataError."""
    annotations, images = _split(Path(root), "train", ("annotations_train.json", "annotations/annotations_train.json"))
    return YoutubeVisReader(annotations, images, name=name, head="ovis", exhaustive=exhaustive, exclude=exclude)
