"""Every camera encoding against references computed here by hand, and every malformed buffer refused with numbers."""

import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ausm.errors import ImageError
from ausm.image_encodings import SUPPORTED_ENCODINGS, decode_compressed, decode_image, read_header

H, W = 6, 8


def picture(height: int = H, width: int = W) -> np.ndarray:
    """Random (H, W, 3) uint8 RGB, the same every time."""
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def padded(rows: np.ndarray, step: int) -> np.ndarray:
    """(rows, bytes) uint8 -> a flat buffer whose rows are `step` bytes apart, the padding filled with 0xAB."""
    out = np.full((rows.shape[0], step), 0xAB, np.uint8)
    out[:, : rows.shape[1]] = rows
    return out.reshape(-1)


COLOUR_ORDER = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "8UC3": [2, 1, 0],
    "rgba8": [0, 1, 2, 3],
    "bgra8": [2, 1, 0, 3],
    "8UC4": [2, 1, 0, 3],
}


@pytest.mark.parametrize("encoding", COLOUR_ORDER)
@pytest.mark.parametrize("padding", [0, 5])
def test_packed_colours_keep_every_value(encoding: str, padding: int) -> None:
    rgb = picture()
    rgba = np.dstack([rgb, np.full((H, W), 77, np.uint8)])
    rows = rgba[:, :, COLOUR_ORDER[encoding]].reshape(H, -1)
    step = rows.shape[1] + padding
    got = decode_image(padded(rows, step), H, W, step, encoding)
    np.testing.assert_array_equal(got, rgb)
    assert got.flags.writeable and got.flags.c_contiguous


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey(encoding: str) -> None:
    grey = picture()[:, :, 0]
    got = decode_image(padded(grey, W + 3), H, W, W + 3, encoding)
    np.testing.assert_array_equal(got, np.repeat(grey[:, :, None], 3, 2))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_16_bit_grey_is_scaled_from_full_range(encoding: str, big_endian: bool) -> None:
    grey = np.random.default_rng(5).integers(0, 65536, (H, W)).astype(">u2" if big_endian else "<u2")
    grey[0, :4] = [0, 65535, 128, 129]  # the ends, and both sides of a rounding step
    got = decode_image(padded(grey.view(np.uint8), 2 * W + 2), H, W, 2 * W + 2, encoding, big_endian)
    expected = np.round(grey.astype(np.float64) / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(got[:, :, 1], expected)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16"])
def test_16_bit_colour(encoding: str, big_endian: bool) -> None:
    order = COLOUR_ORDER[encoding.replace("16", "8")]
    rgba = np.dstack([picture(), np.full((H, W), 9, np.uint8)]).astype(np.uint16) * 257
    rows = np.ascontiguousarray(rgba[:, :, order].astype(">u2" if big_endian else "<u2"))
    got = decode_image(rows.view(np.uint8).reshape(-1), H, W, W * len(order) * 2, encoding, big_endian)
    np.testing.assert_array_equal(got, picture())


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, video range: the conversion cameras and cv_bridge mean by YUV. All (H, W), 0..255."""
    y, u, v = (1.164383 * (y.astype(float) - 16)).clip(0), u.astype(float) - 128, v.astype(float) - 128
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], -1)
    return rgb.round().clip(0, 255)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
@pytest.mark.parametrize("padding", [0, 6])
def test_yuv_422(encoding: str, padding: int) -> None:
    rng = np.random.default_rng(7)
    y = rng.integers(16, 236, (H, W), np.uint8)
    u, v = rng.integers(90, 166, (2, H, W // 2), np.uint8)
    chroma = np.stack([u, v], -1).reshape(H, W)
    pair = [chroma, y] if encoding in ("yuv422", "uyvy") else [y, chroma]
    rows = np.stack(pair, -1).reshape(H, 2 * W)
    got = decode_image(padded(rows, 2 * W + padding), H, W, 2 * W + padding, encoding)
    expected = yuv_to_rgb(y, u.repeat(2, 1), v.repeat(2, 1))
    assert np.abs(got - expected).max() <= 2  # OpenCV computes in fixed point


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
@pytest.mark.parametrize("padding", [0, 8])
def test_yuv_420(encoding: str, padding: int) -> None:
    rng = np.random.default_rng(8)
    y = rng.integers(16, 236, (H, W), np.uint8)
    u, v = rng.integers(90, 166, (2, H // 2, W // 2), np.uint8)
    chroma = np.stack([u, v] if encoding == "nv12" else [v, u], -1).reshape(H // 2, W)
    got = decode_image(padded(np.vstack([y, chroma]), W + padding), H, W, W + padding, encoding)
    expected = yuv_to_rgb(y, u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1))
    assert np.abs(got - expected).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_flat_colour(pattern: str, bits: int) -> None:
    """A sensor that looks at one colour must give that colour in every inner pixel, whatever the interpolation."""
    colour = {"r": 200, "g": 90, "b": 30}
    mosaic = np.zeros((H, W), np.uint8)
    for k, letter in enumerate(pattern):
        mosaic[k // 2 :: 2, k % 2 :: 2] = colour[letter]
    raw = mosaic if bits == 8 else (mosaic.astype("<u2") * 257).view(np.uint8)
    got = decode_image(raw.reshape(-1), H, W, W * bits // 8, f"bayer_{pattern}{bits}")
    np.testing.assert_array_equal(got[1:-1, 1:-1], np.broadcast_to([200, 90, 30], (H - 2, W - 2, 3)))


def test_reads_what_ros_hands_over() -> None:
    """rclpy gives array.array or bytes; both must do, and a tight rgb8 buffer is not copied."""
    import array

    rgb = picture()
    data = array.array("B", rgb.tobytes())
    got = decode_image(data, H, W, 3 * W, "rgb8")
    np.testing.assert_array_equal(got, rgb)
    assert np.may_share_memory(got, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(decode_image(rgb.tobytes(), H, W, 3 * W, "rgb8"), rgb)


def test_padding_of_the_last_row_may_be_missing() -> None:
    rows = padded(picture()[:, :, 0], W + 4)
    assert decode_image(rows[:-4], H, W, W + 4, "mono8").shape == (H, W, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((H, W, 3 * W, "jpeg"), ["'jpeg'", "supported"]),
        ((H, W, 3 * W, ""), ["''"]),
        ((H, W, 3 * W - 1, "rgb8"), ["step 23", "24 bytes"]),
        ((H, W, 0, "rgb8"), ["step 0"]),
        ((H + 1, W, 3 * W, "rgb8"), ["144 bytes", "168 expected"]),
        ((H - 1, W, 3 * W, "rgb8"), ["144 bytes", "120 expected"]),
        ((0, W, 3 * W, "rgb8"), ["no pixels"]),
        ((H, 0, 3 * W, "rgb8"), ["no pixels"]),
        ((4_000_000_000, 4_000_000_000, 4_000_000_000, "mono8"), ["144 bytes", "16000000000000000000 expected"]),
        ((H, 7, 24, "yuv422"), ["even"]),
        ((5, W, 3 * W, "nv12"), ["even"]),
        ((2, 2, 2, "bayer_rggb8"), ["4x4"]),
        ((H, W, 3 * W, "rgb16"), ["step 24", "48 bytes"]),
    ],
)
def test_malformed_images_are_refused_with_numbers(arguments: tuple, words: list[str]) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(picture().tobytes(), *arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


@settings(max_examples=400, deadline=None)
@given(
    data=st.binary(max_size=200),
    height=st.integers(0, 2**32 - 1) | st.integers(0, 9),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 9),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 40),
    encoding=st.sampled_from(SUPPORTED_ENCODINGS) | st.text(max_size=12),
    big=st.booleans(),
)
def test_any_message_gives_an_image_or_an_image_error(
    data: bytes, height: int, width: int, step: int, encoding: str, big: bool
) -> None:
    try:
        image = decode_image(data, height, width, step, encoding, big)
    except ImageError:
        return
    assert image.shape == (height, width, 3) and image.dtype == np.uint8


def png_bytes(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1] if image.ndim == 3 else image)[1].tobytes()


def test_png_is_exact_and_jpeg_is_close() -> None:
    rgb = cv2.resize(picture(4, 4), (64, 48), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(decode_compressed(png_bytes(rgb), "rgb8; png compressed bgr8"), rgb)
    jpeg = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    difference = np.abs(decode_compressed(jpeg, "rgb8; jpeg compressed bgr8").astype(int) - rgb)
    assert difference.mean() < 4 and decode_compressed(jpeg).shape == (48, 64, 3)


def test_16_bit_and_grey_png() -> None:
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    expected = np.round(grey / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_compressed(png_bytes(grey)), np.repeat(expected[:, :, None], 3, 2))


def announcing_png(height: int, width: int) -> bytes:
    """A well-formed PNG header of any size with no pixels behind it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_headers_that_announce_huge_images_are_refused_unread() -> None:
    with pytest.raises(ImageError, match="2000000000x2000000000"):
        decode_compressed(announcing_png(2_000_000_000, 2_000_000_000))
    jpeg = bytearray(cv2.imencode(".jpg", picture())[1].tobytes())
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, 65500, 65500)
    assert read_header(bytes(jpeg))[1:] == (65500, 65500)
    with pytest.raises(ImageError, match="65500x65500"):
        decode_compressed(bytes(jpeg))


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_truncated_files_are_refused(extension: str) -> None:
    whole = cv2.imencode(extension, picture(48, 64))[1].tobytes()
    for end in (0, 1, 10, 30, len(whole) // 2, len(whole) - 14):
        with pytest.raises(ImageError):
            decode_compressed(whole[:end])
    assert decode_compressed(whole).shape == (48, 64, 3)


def test_depth_format_and_other_files_are_refused() -> None:
    with pytest.raises(ImageError, match="compressedDepth"):
        decode_compressed(png_bytes(picture()), "16UC1; compressedDepth png")
    with pytest.raises(ImageError, match="neither PNG nor JPEG"):
        decode_compressed(b"GIF89a" + bytes(50))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from([".png", ".jpg"]))
def test_any_damage_gives_an_image_or_an_image_error(noise: bytes, at: int, extension: str) -> None:
    whole = bytearray(cv2.imencode(extension, picture())[1].tobytes())
    whole[at : at + len(noise)] = noise
    with contextlib.suppress(ImageError):
        assert decode_compressed(bytes(whole), max_pixels=100_000).dtype == np.uint8
