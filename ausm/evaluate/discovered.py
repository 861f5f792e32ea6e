"""Videos of which nothing is given: YouTube-VIS and OVIS. All objects are to be found, named and followed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ausm.errors import InputError, SizeError
from ausm.io import read_image
from ausm.metrics.tubes import Entry, TubeScores, encode_segmentation, evaluate_tubes, tube_of_segmentations
from ausm.scaling import video_fbf
from ausm.tracks import StepOutput, TrackState

PER_FRAME = {"youtube-vis": 10, "ovis": 20}  # App. A: objects shown on one frame, the best ones
HEADS = {"youtube-vis": ("ytvis19", "ytvis21"), "ovis": ("ovis",)}
_ANNOTATIONS = ("instances.json", "{split}.json", "{split}/instances.json", "annotations_{split}.json")
_IMAGES = ("JPEGImages", "{split}/JPEGImages", "{split}")


@dataclass(frozen=True)
class VideoEntry:
    """One video of the annotation file."""

    video_id: int
    height: int
    width: int
    images: list[Path]


@dataclass(frozen=True)
class VideoSet:
    """An annotation file: videos by id, category ids ascending, true tracks (none on a split without labels).

    names: of the categories, in the same order, "" where the file has none.
    annotations, images: the file and the folder of images that were found.
    """

    annotations: Path
    images: Path
    videos: dict[int, VideoEntry]
    categories: list[int]
    names: list[str]
    truth: list[dict[str, Any]]


def _first_existing(root: Path, patterns: Sequence[str], split: str, what: str) -> Path:
    tried = [root / pattern.format(split=split) for pattern in patterns]
    for path in tried:
        if path.exists():
            return path
    raise InputError(f"{root}: no {what}, tried {', '.join(str(p.relative_to(root)) for p in tried)}")


def load_video_set(
    root: Path, split: str = "valid", annotations: Path | None = None, images: Path | None = None
) -> VideoSet:
    """Reads a split in the layout of YouTube-VIS or OVIS. Raises InputError for what is missing or malformed."""
    annotations = annotations or _first_existing(root, _ANNOTATIONS, split, "annotation file")
    images = images or _first_existing(root, _IMAGES, split, "folder of images")
    try:
        data = json.loads(annotations.read_text())
        videos = {
            int(v["id"]): VideoEntry(int(v["id"]), v["height"], v["width"], [images / n for n in v["file_names"]])
            for v in data["videos"]
        }
        name_of = {int(c["id"]): str(c.get("name", "")) for c in data["categories"]}
        categories = sorted(name_of)
        truth = [a for a in data.get("annotations") or [] if a["video_id"] in videos]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{annotations}: not a YouTube-VIS file ({type(error).__name__}: {error})") from error
    if not videos:
        raise InputError(f"{annotations}: lists no video")
    return VideoSet(annotations, images, videos, categories, [name_of[i] for i in categories], truth)


class _Collected:
    """One track of one video: what the submission needs, frame by frame."""

    def __init__(self, frames: int) -> None:
        self.segmentations: list[dict[str, Any] | None] = [None] * frames
        self.scores: list[float] = []
        self.class_id, self.class_score = -1, 1.0


def run_discovered(stream: Any, video: VideoEntry, per_frame: int, repeat: bool = False) -> list[dict[str, Any]]:
    """Tracks of one video: score, class_id (index in the head, -1 without one) and one segmentation per frame.

    Of each frame the `per_frame` best tracks are shown. A track scores the mean of its scores where it is shown, times
    the probability of its class. repeat: the video is run forward, backward and forward, the last pass counts.
    Raises SizeError for an image of another size than the annotation file says.
    """
    count = len(video.images)
    order, first_kept = list(range(count)), 0
    if repeat and count:
        plan = video_fbf(order)
        order, first_kept = plan.frames, plan.keep[0]
    tracks: dict[int, _Collected] = {}
    for showing, index in enumerate(order):
        image = read_image(video.images[index])
        if image.shape[:2] != (video.height, video.width):
            sizes = f"{image.shape[0]}x{image.shape[1]}, listed as {video.height}x{video.width}"
            raise SizeError(f"{video.images[index]} is {sizes}")
        output: StepOutput = stream.step(image)
        if showing < first_kept:
            continue
        seen = [t for t in output.tracks if t.state == TrackState.TRACKED and t.mask.any()]
        for track in sorted(seen, key=lambda t: -t.score)[:per_frame]:
            entry = tracks.setdefault(track.track_id, _Collected(count))
            entry.segmentations[index] = encode_segmentation(track.mask)
            entry.scores.append(float(track.score))
            entry.class_id = track.class_id
            entry.class_score = float(track.class_score) if track.class_id >= 0 else 1.0
    rows = []
    for _, entry in sorted(tracks.items()):
        score = sum(entry.scores) / len(entry.scores) * entry.class_score
        rows.append({"score": score, "class_id": entry.class_id, "segmentations": entry.segmentations})
    return rows


def to_results(video: VideoEntry, rows: list[dict[str, Any]], categories: list[int]) -> list[dict[str, Any]]:
    """Rows of results.json. Without classes every track is of the first category."""
    results = []
    for row in rows:
        category = categories[row["class_id"]] if row["class_id"] >= 0 else categories[0]
        fields = {"video_id": video.video_id, "category_id": category, "score": row["score"]}
        results.append(fields | {"segmentations": row["segmentations"]})
    return results


def judge(videos: VideoSet, results: list[dict[str, Any]], class_agnostic: bool) -> TubeScores:
    """AP and AR of results.json against the true tracks of the annotation file."""

    def entry(row: dict[str, Any]) -> Entry:
        video = videos.videos[row["video_id"]]
        tube = tube_of_segmentations(row["segmentations"], video.height, video.width)
        return Entry(
            row["video_id"], tube, row["category_id"], row.get("score", 1.0), is_crowd=bool(row.get("iscrowd", 0))
        )

    return evaluate_tubes([entry(row) for row in videos.truth], [entry(row) for row in results], class_agnostic)
