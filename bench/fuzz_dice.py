"""Random messages for `bench.fuzz`: mostly one thing wrong with an otherwise good one, sometimes nothing or everything.

Among them the bombs: few bytes that announce much (run lengths that overflow, headers of huge PNG and JPEG files,
thousands of prompts, sizes the data do not have).
"""

import array
import random
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from ausm_ros.msg import Prompt, Rle
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_srvs.srv import SetBool

from ausm.image_encodings import SUPPORTED_ENCODINGS
from ausm_ros.messages import to_png, to_rle, to_time

SECOND = 10**9
UINT32 = 2**32 - 1


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(height: int, width: int, pixels: bytes, more: bytes = b"") -> bytes:
    """A grey PNG that announces height x width and holds `pixels` (compressed here), whatever their number."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(pixels, 1))
    return b"\x89PNG\r\n\x1a\n" + header + more + body + png_chunk(b"IEND", b"")


def jpeg_of_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose frame header is made to announce another size."""
    at = data.find(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def rle_bombs(height: int, width: int) -> list[Rle]:
    """Runs whose sum is right in 32 or 64 bits, or very many runs, or a box beyond memory."""
    whole = RegionOfInterest(width=width, height=height)
    huge = RegionOfInterest(width=UINT32, height=UINT32)
    area = height * width
    return [
        Rle(roi=whole, runs=array.array("I", [UINT32, 1, area])),  # sums to 2**32 + area
        Rle(roi=whole, runs=array.array("I", [2**31, 2**31, area])),
        Rle(roi=whole, runs=array.array("I", bytes(4 * 20_000))),
        Rle(roi=whole, runs=array.array("I", [1] * 20_000)),
        Rle(roi=huge, runs=array.array("I", [UINT32] * 5)),
        Rle(roi=huge, runs=array.array("I", [1])),
    ]


def png_bombs(height: int, width: int) -> list[bytes]:
    """Headers beyond memory, far more or fewer pixels than announced, a text that unpacks to megabytes."""
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4_000_000), 9))
    return [
        png_file(2**31 - 1, 2**31 - 1, b""),
        png_file(UINT32, UINT32, b""),
        png_file(60_000, 60_000, bytes(1000)),
        png_file(8000, 8000, bytes(1000)),
        png_file(height, width, bytes(2_000_000)),
        png_file(height, width, b""),
        png_file(height, width, bytes((width + 1) * height), text),
        png_file(0, width, b""),
    ]


class Dice:
    """Throws messages for a camera of `size` (height, width). The same seed throws the same."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.r = random.Random(seed)
        self.height, self.width = size
        self.stamp = 1000 * SECOND
        self._rle_bombs, self._png_bombs = rle_bombs(*size), png_bombs(*size)

    # --- parts --------------------------------------------------------------------------------------------------

    def integer(self, top: int = UINT32) -> int:
        return self.r.choice([0, 1, top, self.r.randrange(40), self.r.randrange(top + 1)])

    def text(self) -> str:
        letters = [chr(self.r.choice([65, 97, 0x4E2D, 0x1F600, 10, 39])) for _ in range(self.r.choice([0, 3, 400]))]
        return "".join(letters)

    def data(self, length: int) -> bytes:
        return self.r.randbytes(max(0, length + self.r.choice([0, 0, 0, -1, 1, -length, 7])))

    def roi(self) -> RegionOfInterest:
        if self.r.random() < 0.6:
            x, y = self.r.randrange(self.width), self.r.randrange(self.height)
            width, height = self.r.randrange(self.width - x + 1), self.r.randrange(self.height - y + 1)
        else:
            x, y, width, height = (self.integer() for _ in range(4))
        return RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)

    def mask(self) -> np.ndarray:
        """(H, W) bool: a rectangle, now and then an empty one."""
        mask = np.zeros((self.height, self.width), np.bool_)
        x, y = self.r.randrange(self.width), self.r.randrange(self.height)
        mask[y : y + self.r.randrange(12), x : x + self.r.randrange(12)] = True
        return mask

    def rle(self) -> Rle:
        kind = self.r.random()
        if kind < 0.1:
            return self.r.choice(self._rle_bombs)
        good = to_rle(self.mask())
        if kind < 0.5:
            return good
        runs = list(good.runs)
        for _ in range(self.r.randrange(3)):
            runs.insert(self.r.randrange(len(runs) + 1), self.integer())
        return Rle(roi=self.r.choice([good.roi, self.roi()]), runs=array.array("I", runs))

    def png(self) -> CompressedImage:
        kind = self.r.random()
        if kind < 0.15:
            return CompressedImage(format="png", data=array.array("B", self.r.choice(self._png_bombs)))
        message = to_png(self.mask())
        if kind < 0.6:
            message.data = array.array("B", self.damaged(bytes(message.data)))
        return message

    def damaged(self, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(self.r.randrange(1, 4)):
            out[self.r.randrange(len(out))] = self.r.randrange(256)
        return bytes(out)[: self.r.choice([len(out), self.r.randrange(len(out))])]

    # --- images -------------------------------------------------------------------------------------------------

    def image(self, encodings: tuple[str, ...] = SUPPORTED_ENCODINGS) -> Image:
        encoding = self.r.choice(encodings) if self.r.random() < 0.9 else self.text()
        height, width = (self.height, self.width) if self.r.random() < 0.8 else (self.integer(), self.integer())
        factor = self.r.choice([1, 2, 3, 4, 6, 8])
        step = factor * self.width if self.r.random() < 0.9 else self.integer()
        length = min(step * height, 20_000) if self.r.random() < 0.9 else self.r.randrange(20_000)
        return Image(height=height, width=width, step=step, encoding=encoding, data=self.data(length))

    def camera_image(self) -> Image:
        """With a stamp that may be the next, the same, zero, or far back or ahead."""
        height, width = self.height, self.width
        if self.r.random() < 0.5:
            data = self.r.randbytes(3 * width * height)
            message = Image(height=height, width=width, step=3 * width, encoding="rgb8", data=data)
        else:
            message = self.image()
        self.stamp += self.r.choice([1, 10**7, 10**8, 0, -(10**7), -5 * SECOND, 60 * SECOND])
        message.header.stamp = to_time(max(0, self.stamp) if self.r.random() < 0.97 else 0)
        return message

    def compressed(self) -> CompressedImage:
        """A PNG or JPEG camera image, as it should be, damaged, or a bomb."""
        pixels = np.frombuffer(self.r.randbytes(3 * self.height * self.width), np.uint8)
        extension = self.r.choice([".png", ".jpg"])
        data = cv2.imencode(extension, pixels.reshape(self.height, self.width, 3))[1].tobytes()
        kind = self.r.random()
        if kind < 0.2:
            sides = self.r.choice([(65535, 65535), (60_000, 60_000), (8000, 8000), (8000, 1), (0, 100)])
            data = jpeg_of_size(data, *sides) if extension == ".jpg" else self.r.choice(self._png_bombs)
        elif kind < 0.6:
            data = self.damaged(data)
        message = CompressedImage(format=self.text()[:30], data=array.array("B", data))
        message.header.stamp = to_time(max(1, self.stamp))
        return message

    def good_image(self) -> Image:
        """An image that must be processed."""
        self.stamp += SECOND
        step = 3 * self.width
        message = Image(
            height=self.height, width=self.width, step=step, encoding="rgb8", data=bytes(step * self.height)
        )
        message.header.stamp = to_time(self.stamp)
        return message

    # --- requests -----------------------------------------------------------------------------------------------

    def prompt(self) -> Prompt:
        points = self.r.choice([0, 1, 3, 1200])
        prompt = Prompt(
            name=self.text() if self.r.random() < 0.3 else "",
            track_id=self.integer() if self.r.random() < 0.3 else 0,
            type=self.r.choice([0, 1, 2, 3, 4, 4, 5, 255]),
            point_x=array.array("I", [self.r.randrange(self.width + 2) for _ in range(points)]),
            point_y=array.array("I", [self.r.randrange(self.height + 2) for _ in range(points)]),
        )
        number = points + self.r.choice([0, 0, 0, 1])
        prompt.point_labels = array.array("b", [self.r.choice([0, 1, 1, 1, -1, 9]) for _ in range(number)])
        if prompt.type == Prompt.MASK_IMAGE:  # the other fields are not read
            prompt.mask = self.image(("mono8", "8UC1", "rgb8"))
        elif prompt.type == Prompt.MASK_RLE:
            prompt.rle = self.rle()
        elif prompt.type == Prompt.MASK_PNG:
            prompt.png = self.png()
        elif prompt.type == Prompt.BOX:
            prompt.box = self.roi()
        return prompt

    def request(self) -> tuple[str, Any, Any]:
        """Service, request, empty response."""
        camera = self.r.choice(["", "camera", "camera", self.text()])
        name = self.r.choice(["add_objects"] * 8 + ["remove_objects", "list_objects", "reset", "enable", "discovery"])
        if name == "add_objects":
            return name, self._add_objects(camera), AddObjects.Response()
        if name == "remove_objects":
            ids = array.array("I", [self.integer() for _ in range(self.r.choice([0, 1, 5, 5000]))])
            request: Any = RemoveObjects.Request(camera=camera, track_ids=ids, all=self.r.random() < 0.2)
            return name, request, RemoveObjects.Response()
        if name == "list_objects":
            return name, ListObjects.Request(camera=camera), ListObjects.Response()
        if name == "reset":
            return name, Reset.Request(camera=camera), Reset.Response()
        return name, SetBool.Request(data=self.r.random() < 0.9), SetBool.Response()

    def _add_objects(self, camera: str) -> Any:
        near = self.stamp - self.r.choice([0, 0, 1, SECOND // 2, SECOND])
        stamp = self.r.choice([0, 0, max(0, near), self.integer(2**31 * SECOND - 1)])
        number = self.r.choice([0, 1, 1, 1, 1, 1, 1, 2, 2, 4, 4])
        if self.r.random() < 0.02:
            number = self.r.choice([200, 200, 200, 4000])
        prompts = [self.prompt() for _ in range(number)] if number < 200 else [Prompt()] * number
        return AddObjects.Request(
            camera=camera,
            stamp=to_time(stamp) if self.r.random() < 0.9 else Time(sec=-5, nanosec=UINT32),
            prompts=prompts,
            all_or_nothing=self.r.random() < 0.5,
            wait=Duration(sec=self.r.choice([0, 0, 0, -5]), nanosec=self.r.choice([0, 0, 10**6])),
        )
