"""Frames from a video file, a folder of images or a rosbag2, one at a time: memory does not grow with the length."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ausm.errors import AusmError, InputError, SizeError
from ausm.image_encodings import ends_early

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
BAG_SUFFIXES = (".mcap", ".db3")
MISCOUNT = 2  # frames by which the header of a video often counts wrong
NOMINAL_RATE = 24.0  # Hz, for stamps where the input has no clock


class Frame(NamedTuple):
    """One image of an input."""

    index: int  # type: ignore[assignment]  # from 0; hides tuple.index, which nobody asks of a frame
    name: str  # file name without suffix in a folder, else the index in five digits
    stamp_ns: int  # of the message in a bag; index / rate in a video; index / 24 Hz in a folder
    image: np.ndarray  # (H, W, 3) uint8 RGB
    frame_id: str = ""  # of the message in a bag: the camera's coordinate frame


class FrameSource:
    """Frames of one size, iterable any number of times; each iteration reads the input again.

    kind: "video", "folder" or "rosbag2". name: of the file or folder. rate: Hz, None if unknown. height, width: pixels.
    count: frames announced by the input, None if unknown (exact for folders and bags, the header's word for videos,
    which is an estimate: a pass that ends earlier is logged).
    topic: of a bag, else None.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        read: Callable[[], Iterator[Frame]],
        rate: float | None = None,
        count: int | None = None,
        topic: str | None = None,
    ) -> None:
        """read: starts a new pass. Reads the first frame for the size; raises InputError when there is none."""
        self.kind, self.path, self.name, self.topic = kind, path, path.stem or path.name, topic
        self.rate, self.count, self._read = rate, count, read
        first = next(iter(read()), None)
        if first is None:
            raise InputError(f"{path}: holds no frame")
        self.height, self.width = first.image.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        """Raises SizeError at a frame of another size, InputError where the input breaks off."""
        for frame in self._read():
            height, width = frame.image.shape[:2]
            if (height, width) != (self.height, self.width):
                sizes = f"{height}x{width}, the first {self.height}x{self.width}"
                raise SizeError(f"{self.path}: frame {frame.index} ({frame.name}) is {sizes}")
            yield frame

    def __len__(self) -> int:
        """`count`; TypeError when it is not known."""
        if self.count is None:
            raise TypeError(f"{self.path}: the number of frames is not known")
        return self.count


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts "frame2" before "frame10"."""
    parts = re.split(r"([0-9]+)", name)  # text and digits take turns
    return [(0, int(part)) if i % 2 else (1, part) for i, part in enumerate(parts)]


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the stored pixels: EXIF rotation is not applied, so masks drawn on the pixels fit.

    Raises InputError for what cannot be decoded or was cut off.
    """
    try:
        data = path.read_bytes()
        if ends_early(data):
            raise InputError(f"{path}: its {len(data)} bytes end before the image does")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise InputError(f"{path}: cannot be decoded as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def sequence_names(text: str) -> list[str]:
    """The sequences of a DAVIS list, each once: a line holds a name, or (2016) the paths of an image and its mask."""
    words = [line.split()[0] for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(Path(word).parent.name if "/" in word else word for word in words))


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order. InputError: no such folder, or two images of one name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    paths.sort(key=lambda p: natural_key(p.name))
    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(path.stem, path)
        if other is not path:
            raise InputError(f"{folder}: {other.name} and {path.name} have one name, their masks would too")
    return paths


def _open_folder(folder: Path) -> FrameSource:
    paths = list_images(folder)
    if not paths:
        raise InputError(f"{folder}: no image ({' '.join(IMAGE_SUFFIXES)}), and no metadata.yaml of a rosbag2")
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:  # headers only: better to learn of a stray image now than at frame 5,000
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: cannot be decoded as an image ({error})") from error
    if len(sizes) > 1:
        found = ", ".join(f"{path.name} is {h}x{w}" for (w, h), path in list(sizes.items())[:3])
        raise SizeError(f"{folder}: images of {len(sizes)} sizes: {found}")

    def read() -> Iterator[Frame]:
        for index, path in enumerate(paths):
            yield Frame(index, path.stem, round(index / NOMINAL_RATE * 1e9), read_image(path))

    return FrameSource("folder", folder, read, count=len(paths))


def _open_video(path: Path) -> FrameSource:
    def start() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise InputError(f"{path}: cannot be decoded as a video")
        return capture

    capture = start()
    rate, announced = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    rate = rate if 0 < rate < 1000 else NOMINAL_RATE
    count = announced if announced > 0 else None

    def read() -> Iterator[Frame]:
        capture, index = start(), 0
        try:
            while True:
                found, image = capture.read()
                if not found:
                    break
                yield Frame(index, f"{index:05d}", round(index / rate * 1e9), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                index += 1
        finally:
            capture.release()
        if index == 0:
            raise InputError(f"{path}: no frame could be decoded")
        if count is not None and index < count - MISCOUNT:
            # often the length of the sound or a rate that varies: no reason to lose what was decoded
            log.warning(
                "%s: %d frames decoded, its header announces about %d: cut off, unless it counts wrong",
                path,
                index,
                count,
            )

    return FrameSource("video", path, read, rate=rate, count=count)


def open_frames(path: str | Path, topic: str | None = None) -> FrameSource:
    """Opens a video file, a folder of images or a rosbag2 (folder, .mcap or .db3).

    topic: the image topic of a bag; needed when it holds several. Raises InputError, naming the path, for what is
    missing, cannot be decoded or holds no image; SizeError for images of several sizes.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix in BAG_SUFFIXES or (path / "metadata.yaml").exists():
        from ausm.bag import open_bag

        return open_bag(path, topic)
    if topic is not None:
        raise AusmError(f"{path} is not a rosbag2: topic {topic} has no meaning")
    return _open_folder(path) if path.is_dir() else _open_video(path)
