"""Tracks drawn on images, contact sheets and video files: for people to look at, never read back by the model.

Images are (H, W, 3) uint8 RGB throughout.
"""

import colorsys
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Self

import cv2
import numpy as np

from ausm.errors import AusmError, ImageError, SizeError
from ausm.masks import box_of
from ausm.tracks import Source, Track

OPACITY = 0.45  # of a mask over the image
DASH = 6  # pixels of contour on, then off, around a discovered object, at 480 lines
FONT = cv2.FONT_HERSHEY_SIMPLEX


class Drawn(NamedTuple):
    """What `draw_tracks` needs of an object; a decoded message gives it without a `Track`."""

    track_id: int
    mask: np.ndarray  # (H, W) bool
    name: str  # "" for none; of a class with its probability: `name_of`
    score: float  # 0..1, of the object, whatever its class
    source: int  # a value of `Source`


def name_of(name: str, class_name: str, class_score: float) -> str:
    """What an object is called in pictures: its own name, else "person (0.15)", as a class may be hardly likely."""
    return name or (f"{class_name} ({class_score:.2f})" if class_name else "")


def colour_of(track_id: int) -> tuple[int, int, int]:
    """RGB of an id: the same on every frame and in every run, neighbouring ids far apart on the colour circle."""
    hue = (track_id * 0.61803398875) % 1.0  # the golden ratio spreads any number of hues evenly
    saturation = (0.9, 0.65, 0.8)[track_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _check_image(image: np.ndarray) -> np.ndarray:
    """A copy to draw on; raises ImageError unless (H, W, 3) uint8."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"an image is a (H, W, 3) array of uint8, this one is {found}")
    return np.ascontiguousarray(image).copy()


def _as_drawn(track: Track | Drawn) -> Drawn:
    if isinstance(track, Track):
        name = name_of(track.name, track.class_name, track.class_score)
        return Drawn(track.track_id, track.mask, name, track.score, track.source)
    return track


def _draw_mask(image: np.ndarray, drawn: Drawn, thickness: int) -> None:
    """Fill and contour. Prompted: closed contour with a white rim; discovered: thinner and dashed."""
    box = box_of(drawn.mask)
    y0, x0 = max(0, box.y - thickness - 1), max(0, box.x - thickness - 1)
    part = (slice(y0, box.y + box.height + thickness + 1), slice(x0, box.x + box.width + thickness + 1))
    inside, pixels = drawn.mask[part], image[part]
    colour = colour_of(drawn.track_id)
    tint = np.empty_like(pixels)
    tint[:] = colour
    np.copyto(pixels, cv2.addWeighted(pixels, 1 - OPACITY, tint, OPACITY, 0), where=inside[:, :, None])
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = np.zeros(inside.shape, np.uint8)
    if drawn.source == Source.PROMPT:
        cv2.drawContours(line, contours, -1, 255, 2 * thickness + 1)
        pixels[line > 0] = 255
        line[:] = 0
        cv2.drawContours(line, contours, -1, 255, thickness)
    else:
        cv2.drawContours(line, contours, -1, 255, thickness)
        dash = max(3, DASH * image.shape[0] // 480)
        diagonals = np.add.outer(np.arange(inside.shape[0]), np.arange(inside.shape[1]))
        line[diagonals // dash % 2 == 1] = 0
    pixels[line > 0] = colour


def _draw_label(image: np.ndarray, drawn: Drawn, thickness: int) -> None:
    """Box and "id name score": black text on the colour if prompted, white text on dark if discovered."""
    box = box_of(drawn.mask)
    colour = colour_of(drawn.track_id)
    cv2.rectangle(image, (box.x, box.y), (box.x + box.width - 1, box.y + box.height - 1), colour, 1)
    words = [str(drawn.track_id), drawn.name, f"{drawn.score:.2f}"]
    text = " ".join(word for word in words if word).encode("ascii", "replace").decode()
    scale = max(0.35, image.shape[0] / 1100)
    (width, height), below = cv2.getTextSize(text, FONT, scale, 1)
    x = min(max(0, box.x), max(0, image.shape[1] - width - 4))
    y = box.y if box.y >= height + below + 4 else min(box.y + height + below + 4, image.shape[0])  # inside at the top
    prompted = drawn.source == Source.PROMPT
    corner = (x + width + 3, y - height - below - 3)
    cv2.rectangle(image, (x, y), corner, colour if prompted else (25, 25, 25), cv2.FILLED)
    if not prompted:
        cv2.rectangle(image, (x, y), corner, colour, 1)
    text_colour = (0, 0, 0) if prompted else (255, 255, 255)
    cv2.putText(image, text, (x + 2, y - below), FONT, scale, text_colour, max(1, thickness // 2), cv2.LINE_AA)


def draw_tracks(image: np.ndarray, tracks: Iterable[Track | Drawn]) -> np.ndarray:
    """The image with every non-empty mask on it: translucent fill, contour, box and label, in the colour of its id.

    Prompted objects have a closed, white-rimmed contour and a filled label; discovered ones a dashed contour and a
    dark label. image: (H, W, 3) uint8 RGB, left untouched. Raises SizeError for a mask of another size.
    """
    canvas = _check_image(image)
    visible = []
    for drawn in map(_as_drawn, tracks):
        if drawn.mask.shape != canvas.shape[:2]:
            sizes = f"{drawn.mask.shape[0]}x{drawn.mask.shape[1]}, image {canvas.shape[0]}x{canvas.shape[1]}"
            raise SizeError(f"mask of track {drawn.track_id} {sizes}")
        if drawn.mask.any():
            visible.append(drawn)
    visible.sort(key=lambda d: (d.source, d.score))  # prompted and certain ones on top
    thickness = max(1, round(canvas.shape[0] / 360))
    for drawn in visible:
        _draw_mask(canvas, drawn, thickness)
    for drawn in visible:
        _draw_label(canvas, drawn, thickness)
    return canvas


def draw_caption(image: np.ndarray, text: str) -> np.ndarray:
    """The image with a line of ASCII text on a dark strip at its top left."""
    canvas = _check_image(image)
    text = text.encode("ascii", "replace").decode()
    scale = max(0.4, canvas.shape[0] / 1000)
    (width, height), below = cv2.getTextSize(text, FONT, scale, 1)
    cv2.rectangle(canvas, (0, 0), (width + 8, height + below + 6), (25, 25, 25), cv2.FILLED)
    cv2.putText(canvas, text, (4, height + 3), FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, width: int = 480, gap: int = 6) -> np.ndarray:
    """One image of n images in rows of `columns`, each `width` pixels wide, `gap` pixels of dark grey between them.

    Images of other shapes than the first are fitted into its cell. Raises ImageError when there is no image.
    """
    if not images:
        raise ImageError("a contact sheet of 0 images")
    columns = max(1, min(columns, len(images)))
    height = max(1, round(width * images[0].shape[0] / images[0].shape[1]))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 32, np.uint8)
    for i, image in enumerate(map(_check_image, images)):
        scale = min(width / image.shape[1], height / image.shape[0])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        cell = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        y = gap + i // columns * (height + gap) + (height - size[1]) // 2
        x = gap + i % columns * (width + gap) + (width - size[0]) // 2
        sheet[y : y + size[1], x : x + size[0]] = cell
    return sheet


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes RGB to the format of the suffix (PNG, JPEG, ...). Raises AusmError when it cannot."""
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(_check_image(image), cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise AusmError(f"{path}: cannot write the image ({error.err})") from error
    if not written:
        raise AusmError(f"{path}: cannot write the image")


def _find_ffmpeg() -> str | None:
    """An ffmpeg with libx264, which plays in every browser: the one of `imageio-ffmpeg`, else the one on the PATH."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        executable: str | None = get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        executable = shutil.which("ffmpeg")
    if executable is None:
        return None
    encoders = subprocess.run([executable, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False)
    return executable if "libx264" in encoders.stdout else None


class VideoWriter:
    """Writes RGB frames to an mp4: H.264 where an ffmpeg is found, else MPEG-4 part 2 by OpenCV (`codec` tells).

    The file takes its size from the first frame (an odd row or column is repeated once: both codecs need even sizes).
    Use as a context manager; `write` and `close` raise AusmError when the file cannot be written.
    """

    def __init__(self, path: str | Path, rate: float = 24.0, ffmpeg: bool = True) -> None:
        """rate: frames per second; ffmpeg: False forces OpenCV's encoder."""
        self.path, self.rate, self.frames = Path(path), float(rate) if rate and rate > 0 else 24.0, 0
        self._executable = _find_ffmpeg() if ffmpeg else None
        self.codec = "h264" if self._executable else "mp4v"
        self._size: tuple[int, int] | None = None  # (H, W) as given
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._opencv: cv2.VideoWriter | None = None

    def _open(self, height: int, width: int) -> None:
        if self._executable is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._opencv = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, code, self.rate, (width, height))
            if not self._opencv.isOpened():
                raise AusmError(f"{self.path}: cannot write a video of {height}x{width} (height x width)")
            return
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self.rate:.6f}", "-i", "-"]
        target = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"]
        command = [self._executable, "-v", "error", "-y", *source, *target, "-movflags", "+faststart", str(self.path)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close(); a pipe nobody reads would block the encoder
        # a session of its own: Ctrl-C must not end it before the file is finished
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._errors, start_new_session=True)

    def write(self, image: np.ndarray) -> None:
        """Appends one (H, W, 3) uint8 RGB frame. Raises SizeError when its size is not that of the first."""
        frame = _check_image(image)
        if self._size is None:
            self._size = frame.shape[:2]
            self._open(frame.shape[0] + frame.shape[0] % 2, frame.shape[1] + frame.shape[1] % 2)
        if frame.shape[:2] != self._size:
            first = f"the first {self._size[0]}x{self._size[1]}"
            raise SizeError(f"frame {self.frames} is {frame.shape[0]}x{frame.shape[1]}, {first}")
        even = ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0))
        frame = np.pad(frame, even, mode="edge") if any(pair[1] for pair in even) else frame
        if self._opencv is not None:
            self._opencv.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        elif self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(frame.data)
            except OSError:  # the encoder is gone: close() says why
                self.close()
        else:
            raise AusmError(f"{self.path}: the video is closed")
        self.frames += 1

    def close(self) -> None:
        """Finishes the file. Raises AusmError with the encoder's own words when it failed."""
        if self._opencv is not None:
            self._opencv.release()
            self._opencv = None
        if self._process is not None and self._errors is not None:
            process, errors, self._process, self._errors = self._process, self._errors, None, None
            try:
                process.communicate()
            except OSError:
                process.wait()
            with errors:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip()
            if process.returncode:
                raise AusmError(f"{self.path}: the video encoder failed: {words or process.returncode}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except AusmError:
            if kind is None:  # else what went wrong before is the reason
                raise
