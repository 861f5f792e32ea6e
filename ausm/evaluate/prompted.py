"""Videos whose objects are given by masks, at their own first frame each: MOSE and YouTube-VOS."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ausm.errors import InputError, SizeError
from ausm.io import list_images, read_image
from ausm.masks import label_map, read_palette_png


@dataclass(frozen=True)
class PromptedVideo:
    """One video of a benchmark; frames are named by their file name without suffix.

    given: per frame the ids whose masks the annotation of that frame gives. wanted: frames of the submission.
    truths: annotations of all wanted frames where they are local, else empty.
    """

    name: str
    images: list[Path]
    annotations: Path
    given: dict[str, list[int]]
    wanted: list[str]
    truths: dict[str, Path]


def _subfolders(root: Path, kind: str) -> list[str]:
    folder = root / kind
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not names:
        raise InputError(f"{folder}: no video, the layout is JPEGImages/<video>/ and Annotations/<video>/")
    return names


def _ids(path: Path) -> list[int]:
    return [int(v) for v in np.unique(read_palette_png(path)) if v]


def mose_videos(root: Path) -> list[PromptedVideo]:
    """MOSE: all objects are given on the first frame; the train split has all other annotations too."""
    videos = []
    for name in _subfolders(root, "JPEGImages"):
        images, annotations = list_images(root / "JPEGImages" / name), root / "Annotations" / name
        if not images or not (annotations / f"{images[0].stem}.png").is_file():
            raise InputError(f"{annotations}: the masks of the first frame are missing")
        wanted = [path.stem for path in images]
        files = {stem: annotations / f"{stem}.png" for stem in wanted}
        truths = files if len(images) > 1 and all(path.is_file() for path in files.values()) else {}
        given = {wanted[0]: _ids(files[wanted[0]])}
        videos.append(PromptedVideo(name, images, annotations, given, wanted, truths))
    return videos


def youtube_vos_videos(root: Path, all_frames: Path | None = None) -> list[PromptedVideo]:
    """YouTube-VOS: `meta.json` names the frames of each object, the first of which is given.

    all_frames: folder of JPEGImages at the full rate. In the validation split every mask that a given annotation holds
    is used; where all annotations are local only the first of each object is.
    """
    try:
        meta = json.loads((root / "meta.json").read_text())["videos"]
        objects = {n: {int(i): list(o["frames"]) for i, o in v["objects"].items()} for n, v in meta.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{root / 'meta.json'}: not a YouTube-VOS list ({type(error).__name__}: {error})") from error
    videos = []
    for name, entries in sorted(objects.items()):
        images, annotations = list_images((all_frames or root / "JPEGImages") / name), root / "Annotations" / name
        wanted = sorted({frame for frames in entries.values() for frame in frames})
        missing = sorted(set(wanted) - {path.stem for path in images})
        if missing:
            raise InputError(
                f"{name}: {len(missing)} of {len(wanted)} frames of meta.json have no image, first {missing[0]}"
            )
        files = {stem: annotations / f"{stem}.png" for stem in wanted}
        truths = files if len(wanted) > 1 and all(path.is_file() for path in files.values()) else {}
        given: dict[str, list[int]] = {}
        for object_id, frames in sorted(entries.items()):
            if not files[frames[0]].is_file():
                raise InputError(f"{files[frames[0]]}: the first mask of object {object_id} is missing")
            given.setdefault(frames[0], []).append(object_id)
        if not truths:
            given = {stem: _ids(files[stem]) for stem in given}
        videos.append(PromptedVideo(name, images, annotations, given, wanted, truths))
    return videos


def run_prompted(stream: Any, video: PromptedVideo) -> Iterator[tuple[str, np.ndarray]]:
    """Name and (H, W) label map of every frame, in order. A given mask replaces the prediction of its frame.

    stream: fresh, without discovery. Objects given again are re-prompted under their id. Raises SizeError.
    """
    of_track: dict[int, int] = {}
    for index, path in enumerate(video.images):
        image = read_image(path)
        height, width = image.shape[:2]
        labels = np.zeros((height, width), np.uint8)
        ids = video.given.get(path.stem, [])
        if ids:
            found = read_palette_png(video.annotations / f"{path.stem}.png")
            if found.shape != labels.shape:
                sizes = f"{found.shape[0]}x{found.shape[1]}, its image {height}x{width}"
                raise SizeError(f"{video.name}: annotation {path.stem} is {sizes}")
            labels = np.where(np.isin(found, ids), found, 0)
            ids = [i for i in ids if (labels == i).any()]
        if index > 0:
            stream.step(image)
        known = {value: track for track, value in of_track.items()}
        fresh, again = [i for i in ids if i not in known], [i for i in ids if i in known]
        if fresh:
            of_track |= dict(zip(stream.prompt(np.stack([labels == i for i in fresh])), fresh, strict=True))
        if again:
            stream.prompt(np.stack([labels == i for i in again]), track_ids=[known[i] for i in again])
        if index == 0:
            stream.step(image)  # after the prompt, so that it is part of the history the stream starts on
        yield path.stem, _labels(stream.current.tracks, of_track, labels, ids)


def _labels(tracks: Any, of_track: dict[int, int], given: np.ndarray, ids: list[int]) -> np.ndarray:
    """Predictions of the objects that are not given on this frame, under the given masks."""
    shown = [t for t in tracks if of_track.get(t.track_id, 0) and of_track[t.track_id] not in ids and t.mask.any()]
    values = [of_track[t.track_id] for t in shown]
    labels = label_map([t.mask for t in shown], values, [t.score for t in shown], given.shape)
    return np.where(given > 0, given, labels)
