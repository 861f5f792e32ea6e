"""Camera images of every usual encoding to (H, W, 3) uint8 RGB, with NumPy and OpenCV only.

The names are those of ROS's `sensor_msgs/image_encodings.hpp`. cv_bridge is not used: its binary half does not load
beside NumPy 2, and its PyPI form decodes channels wrongly with OpenCV 5. Every size is checked before anything is
allocated.
"""

import struct
from typing import Any, NamedTuple

import cv2
import numpy as np

from ausm.errors import ImageError

DEFAULT_MAX_PIXELS = 64 * 1024 * 1024  # an 8192 x 8192 image; larger headers are refused unread
# The most pixels a byte of a file can stand for: a file that announces more lies, and is refused before it is decoded.
# PNG: deflate packs at most 1032 to 1, eight pixels of one bit to a byte. JPEG: a block of 64 takes a bit or more.
DENSITY = {"png": 1032 * 8, "jpeg": 64 * 8}


class _Layout(NamedTuple):
    """One packed encoding: channels of `depth` bytes, and the OpenCV conversion to RGB (None: already RGB)."""

    channels: int
    depth: int
    conversion: int | None


# OpenCV names a Bayer pattern after its second row, ROS after its first: RGGB here is "BG" there.
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
}
_PACKED = {
    "rgb8": _Layout(3, 1, None),
    "bgr8": _Layout(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout(1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Layout(3, 2, None),
    "bgr16": _Layout(3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": _Layout(4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": _Layout(4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": _Layout(1, 2, cv2.COLOR_GRAY2RGB),
    # The untyped OpenCV encodings say nothing of colour; OpenCV's own order is BGR.
    "8UC1": _Layout(1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": _Layout(3, 1, cv2.COLOR_BGR2RGB),
    "8UC4": _Layout(4, 1, cv2.COLOR_BGRA2RGB),
    "16UC1": _Layout(1, 2, cv2.COLOR_GRAY2RGB),
    "yuv422": _Layout(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Layout(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Layout(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Layout(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    **{f"{name}{bits}": _Layout(1, bits // 8, code) for name, code in _BAYER.items() for bits in (8, 16)},
}
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_HALF_WIDTH = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")  # two pixels share one pair of colour bytes

SUPPORTED_ENCODINGS = tuple(_PACKED) + tuple(_PLANAR)


def _rows(data: np.ndarray, rows: int, row_bytes: int, step: int, what: str) -> np.ndarray:
    """(rows, row_bytes) uint8 view of a padded buffer; raises `ImageError` unless its length fits exactly."""
    if step < row_bytes:
        raise ImageError(f"{what}: step {step} is less than the {row_bytes} bytes of a row")
    needed = step * (rows - 1) + row_bytes  # the padding of the last row may be left out
    if not needed <= data.size <= step * rows:
        raise ImageError(f"{what}: {data.size} bytes of data, {step * rows} expected ({rows} rows of step {step})")
    if step == row_bytes:
        return data.reshape(rows, row_bytes)
    return np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1), writeable=False)


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    """Full-range 16 bit to 8 bit, rounded: 65535 / 257 = 255 exactly."""
    return cv2.convertScaleAbs(image, alpha=1.0 / 257.0)


def _as_bytes(data: Any) -> np.ndarray:
    """(n,) uint8 view of any contiguous buffer."""
    view = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data
    if view.dtype != np.uint8 or view.ndim != 1:
        raise ImageError(f"image data must be one row of uint8, not {view.dtype} of shape {view.shape}")
    return np.ascontiguousarray(view)


def decode_image(
    data: Any, height: int, width: int, step: int, encoding: str, is_bigendian: bool = False
) -> np.ndarray:
    """The pixels of a raw camera image.

    data: (n,) uint8 array or any buffer of bytes; step: bytes from one row to the next, padding included.
    16-bit grey and colour are scaled from full range (0..65535) to 0..255; `8UC3`, `8UC4` are taken as BGR(A).
    `nv12`/`nv21` hold `height` rows of luma, then `height / 2` of colour, all of `step` bytes.
    Returns (H, W, 3) uint8 RGB, contiguous and writable; it may share memory with `data`.
    Raises `ImageError` with the numbers (unknown encoding, wrong step or length, odd size where even is needed).
    """
    if encoding not in _PACKED and encoding not in _PLANAR:
        raise ImageError(f"encoding '{encoding[:40]}' is not supported; supported: {' '.join(SUPPORTED_ENCODINGS)}")
    what = f"{encoding} image {height}x{width}"
    if height < 1 or width < 1:
        raise ImageError(f"{what}: no pixels")
    buffer = _as_bytes(data)
    if encoding in _PLANAR:
        if height % 2 or width % 2:
            raise ImageError(f"{what}: height and width must be even")
        planes = np.ascontiguousarray(_rows(buffer, height * 3 // 2, width, step, what))
        return cv2.cvtColor(planes, _PLANAR[encoding])
    if encoding in _HALF_WIDTH and width % 2:
        raise ImageError(f"{what}: width must be even")
    if encoding.startswith("bayer") and (height < 4 or width < 4):
        raise ImageError(f"{what}: too small to interpolate colours, 4x4 is the least")
    layout = _PACKED[encoding]
    rows = _rows(buffer, height, width * layout.channels * layout.depth, step, what)
    pixels = np.ascontiguousarray(rows).view(np.uint8 if layout.depth == 1 else ">u2" if is_bigendian else "<u2")
    pixels = pixels.reshape((height, width, layout.channels) if layout.channels > 1 else (height, width))
    if layout.depth == 2:
        pixels = _to_8_bit(pixels.astype(np.uint16, copy=False))
    if layout.conversion is not None:
        return cv2.cvtColor(pixels, layout.conversion)
    return pixels if pixels.flags.writeable else pixels.copy()  # PyTorch wants writable memory


class ImageHeader(NamedTuple):
    """What the first bytes of a compressed image announce."""

    kind: str  # "png" or "jpeg"
    height: int
    width: int


def _jpeg_header(data: bytes) -> tuple[ImageHeader, int]:
    """The size announced by the start-of-frame segment, and the offset just after it."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame, not tables
            if length < 8 or position + 9 > len(data):
                break
            height, width = struct.unpack_from(">HH", data, position + 5)
            return ImageHeader("jpeg", height, width), position + 2 + length
        if length < 2 or marker == 0xDA:
            break
        position += 2 + length
    raise ImageError(f"JPEG of {len(data)} bytes without a frame header")


def read_header(data: bytes) -> ImageHeader:
    """Size of a PNG or JPEG from its header alone: nothing is decoded. Raises `ImageError` for anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        if len(data) < 26 or data[12:16] != b"IHDR":
            raise ImageError(f"PNG of {len(data)} bytes without a header")
        width, height = struct.unpack_from(">II", data, 16)
        return ImageHeader("png", height, width)
    if data[:2] == b"\xff\xd8":
        return _jpeg_header(data)[0]
    raise ImageError(f"neither PNG nor JPEG: {len(data)} bytes starting {data[:8].hex() or '(nothing)'}")


def ends_early(data: bytes) -> bool:
    """Whether a PNG or JPEG was cut off: decoders fill what is missing of a JPEG with grey.

    Whatever follows the end of the image is nobody's business: cameras add padding, previews and whole videos. Of a
    preview before the image (EXIF) the end does not count.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data.rfind(b"IEND") < 0
    if data[:2] != b"\xff\xd8":
        return False
    try:
        start = _jpeg_header(data)[1]
    except ImageError:  # a decoder may know better
        start = 2
    return data.find(b"\xff\xd9", start) < 0


def decode_compressed(data: Any, format: str = "", max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """The pixels of a PNG or JPEG, as in `sensor_msgs/CompressedImage`.

    data: buffer of bytes. format: as published ("jpeg", "rgb8; png compressed bgr8"); only depth formats are refused
    by it, the bytes themselves say what they are. An image whose header announces more than `max_pixels`, or which ends
    before its last row, is refused before it is decoded. Returns (H, W, 3) uint8 RGB. Raises `ImageError`.
    """
    if "compressedDepth" in format:
        raise ImageError(f"format '{format[:60]}' is a depth image, a colour image is needed")
    raw = bytes(data)
    header = read_header(raw)
    what = f"{header.kind.upper()} {header.height}x{header.width}"
    if header.height < 1 or header.width < 1 or header.height * header.width > max_pixels:
        raise ImageError(f"{what}: between 1 and {max_pixels} pixels are accepted")
    if header.height * header.width > DENSITY[header.kind] * len(raw):
        raise ImageError(f"{what}: {len(raw)} bytes cannot hold that many pixels")
    if ends_early(raw):
        raise ImageError(f"{what}: {len(raw)} bytes end before the image does")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded: {error}") from error
    if image is None or image.shape[:2] != (header.height, header.width):
        raise ImageError(f"{what} of {len(raw)} bytes cannot be decoded")
    return cv2.cvtColor(_to_8_bit(image) if image.dtype == np.uint16 else image, cv2.COLOR_BGR2RGB)
