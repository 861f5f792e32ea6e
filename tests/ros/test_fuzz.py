"""The short form of `bench.fuzz`: random requests and images get typed results, bombs are refused before they unpack.

`python -m bench.fuzz --requests 100000` is the long one, with a part over DDS.
"""

import time
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Prompt
from builtin_interfaces.msg import Time

from ausm.errors import ImageError
from ausm.image_encodings import decode_compressed
from ausm_ros.executor import CREDIT, SHARE, Ration
from ausm_ros.messages import to_ns
from ausm_ros.prompts import Code, ObjectPrompt, Refusal, Scene, check_prompts
from bench.fuzz import in_process
from bench.fuzz_dice import jpeg_of_size, png_bombs, png_file, rle_bombs

H, W = 24, 32


def test_random_requests_and_images() -> None:
    part = in_process(3000, seed=1, real=False)
    expected = {
        Code.OK, Code.WRONG_SIZE, Code.BAD_ENCODING, Code.EMPTY_MASK, Code.INVALID_MASK, Code.UNKNOWN_ID,
        Code.UNKNOWN_CAMERA, Code.UNSUPPORTED_TYPE, Code.TOO_MANY, Code.STALE_STAMP, Code.DUPLICATE_NAME,
    }  # fmt: skip
    assert {code.name for code in expected} <= set(part["codes"]), part  # the dice did reach what they are for
    assert part["images"] > 50


def test_random_requests_and_images_on_the_model() -> None:
    codes = set[str]()
    for seed in (2, 3, 4):  # few prompts of so few messages are good, and meet an image that has been processed
        part = in_process(150, seed, real=True)
        assert part["images"] > 0, part
        codes |= set(part["codes"])
        if Code.OK.name in codes:
            break
    assert Code.OK.name in codes, codes


def allocated(call: Any) -> int:
    """Bytes at the peak of a call, as NumPy and Python count them."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_in_prompts_are_refused_before_they_unpack() -> None:
    scene, prompts = Scene(H, W, {}, 0, 100), list[Prompt]()
    for rle in rle_bombs(H, W):
        prompts.append(Prompt(type=Prompt.MASK_RLE, rle=rle))
    for data in png_bombs(H, W):
        prompt = Prompt(type=Prompt.MASK_PNG)
        prompt.png.data = data
        prompts.append(prompt)
    for step, height in ((2**32 - 1, 2**32 - 1), (W, 2**31), (0, H), (2**32 - 1, H)):
        prompt = Prompt(type=Prompt.MASK_IMAGE)
        prompt.mask.height, prompt.mask.width, prompt.mask.step, prompt.mask.encoding = height, W, step, "mono8"
        prompt.mask.data = bytes(W * H)
        prompts.append(prompt)
    for prompt in prompts:
        checked: list[ObjectPrompt | Refusal] = []
        peak = allocated(lambda p=prompt, c=checked: c.extend(check_prompts([p], scene)))
        assert peak < 3_000_000, (prompt.type, peak)  # a copy of what came, not what it announces
        refused = isinstance(checked[0], Refusal)
        assert refused or checked[0].mask.shape == (H, W)  # type: ignore[union-attr]


@pytest.mark.parametrize("sides", [(65535, 65535), (8000, 8000), (2000, 2000)])
def test_compressed_images_that_announce_more_than_they_hold(sides: tuple[int, int]) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for data in (jpeg_of_size(jpeg, *sides), png_file(*sides, b"")):
        with pytest.raises(ImageError, match="pixels"):
            decode_compressed(data)


def test_the_densest_real_images_are_read() -> None:
    """What the limit of pixels per byte must let through: blank images pack best."""
    blank = np.zeros((2000, 3000), np.uint8)
    for arguments in ((".png", blank), (".jpg", blank), (".jpg", blank, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])):
        data = cv2.imencode(*arguments)[1].tobytes()
        assert decode_compressed(data).shape == (2000, 3000, 3)
    one_bit = cv2.imencode(".png", blank, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    assert decode_compressed(one_bit).shape == (2000, 3000, 3)


def test_stamps_of_any_kind_convert() -> None:
    assert to_ns(Time(sec=-5, nanosec=2**32 - 1)) < 0 < to_ns(Time(sec=2**31 - 1, nanosec=999_999_999))


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_requests_get_their_share_and_no_more() -> None:
    ration, service = Ration(), object()
    for _ in range(2):  # now and then a request is served at once, whatever it costs
        assert ration.beginning_execution(service)
        assert not ration.can_execute(service) and not ration.beginning_execution(service)  # one at a time
        with ration.waiting():
            assert ration.can_execute(service)  # one that waits holds nobody up
        burn(CREDIT * SHARE / 4)
        ration.ending_execution(service)
        assert ration.can_execute(service)
    assert ration.beginning_execution(service)
    burn(2 * CREDIT * SHARE)
    ration.ending_execution(service)
    assert not ration.can_execute(service)
    time.sleep(2 * CREDIT)
    assert ration.can_execute(service)
