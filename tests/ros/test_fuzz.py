"""Random service requests and image messages through everything but DDS: only typed results, and the stream goes on.

AUSM_FUZZ sets the number: 4,000 in every run of the tests; 100,000 for a release take some minutes.
"""

import array
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Prompt, Rle
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
from builtin_interfaces.msg import Duration, Time
from scripted_stream import ScriptedStream
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_srvs.srv import SetBool

from ausm.image_encodings import SUPPORTED_ENCODINGS
from ausm_ros.camera import Camera
from ausm_ros.counts import DROPS, CameraCounts
from ausm_ros.messages import rgb_of, to_instance_array, to_ns, to_png, to_rle, to_time
from ausm_ros.parameters import SPECS, CameraSettings, make_settings
from ausm_ros.prompts import Code
from ausm_ros.runtime import CameraParts, Runtime
from ausm_ros.services import Services
from ausm_ros.session import Session
from ausm_ros.worker import CameraTask, Worker

NUMBER = int(os.environ.get("AUSM_FUZZ", "4000"))
H, W = 24, 32
SECOND = 10**9


class Rig:
    """A node without ROS: services, camera callback and worker as they are, on a scripted stream."""

    def __init__(self) -> None:
        self.settings = make_settings({spec.name: spec.default for spec in SPECS})
        self.errors: Counter[str] = Counter()
        self.published = 0
        self.fatal: list[str] = []
        self.answers: dict[str, Callable[[Any, Any], Any]] = {}
        self.stream: Any = ScriptedStream(discover=True, capacity=100)
        session = Session(lambda: self.stream)
        session.new_epoch()
        self.counts = CameraCounts()
        node: Any = SimpleNamespace(
            create_service=lambda _, name, answer, **__: self.answers.setdefault(name[2:], answer),
            get_logger=lambda: SimpleNamespace(error=lambda text: self.errors.update([text])),
            get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=0)),
        )
        self.task = CameraTask("camera", session, "latest", rgb_of, self._publish, self._log, self.counts)
        self.worker = Worker([self.task], self.fatal.append)
        camera = CameraSettings("camera", "raw", "auto")
        self.camera = Camera(
            node, camera, self.task.mailbox, self.counts, self.worker.notify, lambda: self.settings, self._log
        )
        runtime: Any = Runtime.__new__(Runtime)  # what it loads and publishes is not under test here
        runtime.settings, runtime.active, runtime.worker = self.settings, True, self.worker
        runtime.cameras = {"camera": CameraParts(self.camera, self.task, SimpleNamespace(), self.counts)}  # type: ignore
        Services(node, lambda: runtime, lambda _: "")

    def _publish(self, report: Any) -> None:
        message = to_instance_array(report, "camera", 0.0)
        assert (message.height, message.width) == report.image.shape[:2]
        self.published += 1

    def _log(self, kind: str, text: str) -> None:
        self.errors[kind] += 1


class Dice:
    """Random messages: mostly one thing wrong with an otherwise good one, sometimes nothing or everything."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.stamp = 1000 * SECOND

    def integer(self, top: int = 2**32 - 1) -> int:
        return self.r.choice([0, 1, top, self.r.randrange(40), self.r.randrange(top + 1)])

    def text(self) -> str:
        letters = [chr(self.r.choice([65, 97, 0x4E2D, 0x1F600, 10, 39])) for _ in range(self.r.choice([0, 3, 400]))]
        return "".join(letters)

    def data(self, length: int) -> bytes:
        return self.r.randbytes(max(0, length + self.r.choice([0, 0, 0, -1, 1, -length, 7])))

    def roi(self) -> RegionOfInterest:
        if self.r.random() < 0.6:
            x, y = self.r.randrange(W), self.r.randrange(H)
            return RegionOfInterest(
                x_offset=x, y_offset=y, width=self.r.randrange(W - x + 1), height=self.r.randrange(H - y + 1)
            )
        return RegionOfInterest(
            x_offset=self.integer(), y_offset=self.integer(), width=self.integer(), height=self.integer()
        )

    def mask(self) -> np.ndarray:
        mask = np.zeros((H, W), np.bool_)
        x, y = self.r.randrange(W), self.r.randrange(H)
        mask[y : y + self.r.randrange(12), x : x + self.r.randrange(12)] = True
        return mask

    def rle(self) -> Rle:
        good = to_rle(self.mask())
        if self.r.random() < 0.5:
            return good
        runs = list(good.runs)
        for _ in range(self.r.randrange(3)):
            runs.insert(self.r.randrange(len(runs) + 1), self.integer())
        return Rle(roi=self.r.choice([good.roi, self.roi()]), runs=array.array("I", runs))

    def png(self) -> CompressedImage:
        message = to_png(self.mask())
        if self.r.random() < 0.6:
            data = bytearray(message.data)
            for _ in range(self.r.randrange(1, 4)):
                data[self.r.randrange(len(data))] = self.r.randrange(256)
            message.data = array.array("B", bytes(data)[: self.r.choice([len(data), self.r.randrange(len(data))])])
        return message

    def image(self, encodings: tuple[str, ...] = SUPPORTED_ENCODINGS) -> Image:
        encoding = self.r.choice(encodings) if self.r.random() < 0.9 else self.text()
        height, width = (H, W) if self.r.random() < 0.8 else (self.integer(), self.integer())
        step = self.r.choice([W, 2 * W, 3 * W, 4 * W, 6 * W, 8 * W]) if self.r.random() < 0.9 else self.integer()
        length = min(step * height, 20_000) if self.r.random() < 0.9 else self.r.randrange(20_000)
        return Image(height=height, width=width, step=step, encoding=encoding, data=self.data(length))

    def camera_image(self) -> Image:
        if self.r.random() < 0.5:
            message = Image(height=H, width=W, step=3 * W, encoding="rgb8", data=self.r.randbytes(3 * W * H))
        else:
            message = self.image()
        self.stamp += self.r.choice([1, 10**7, 10**8, 0, -(10**7), -5 * SECOND, 60 * SECOND])
        message.header.stamp = to_time(max(0, self.stamp) if self.r.random() < 0.97 else 0)
        return message

    def compressed(self) -> CompressedImage:
        pixels = np.frombuffer(self.r.randbytes(3 * H * W), np.uint8).reshape(H, W, 3)
        data = bytearray(cv2.imencode(self.r.choice([".png", ".jpg"]), pixels)[1].tobytes())
        for _ in range(self.r.choice([0, 1, 5])):
            data[self.r.randrange(min(len(data), self.r.choice([30, len(data)])))] = self.r.randrange(256)
        return CompressedImage(format=self.text()[:30], data=array.array("B", bytes(data)))

    def prompt(self) -> Prompt:
        points = self.r.choice([0, 1, 3, 1200])
        prompt = Prompt(
            name=self.text() if self.r.random() < 0.3 else "",
            track_id=self.integer() if self.r.random() < 0.3 else 0,
            type=self.r.choice([0, 1, 2, 3, 4, 4, 5, 255]),
            rle=self.rle(),
            png=self.png(),
            box=self.roi(),
            point_x=[self.r.randrange(W + 2) for _ in range(points)],
            point_y=[self.r.randrange(H + 2) for _ in range(points)],
            point_labels=[self.r.choice([0, 1, 1, 1, -1, 9]) for _ in range(points + self.r.choice([0, 0, 0, 1]))],
        )
        prompt.mask = self.image(("mono8", "8UC1", "rgb8"))
        return prompt

    def request(self) -> tuple[str, Any, Any]:
        """Service, request, empty response."""
        camera = self.r.choice(["", "camera", "camera", self.text()])
        name = self.r.choice(["add_objects"] * 8 + ["remove_objects", "list_objects", "reset", "enable", "discovery"])
        if name == "add_objects":
            stamp = self.r.choice([0, 0, self.stamp, self.stamp - SECOND, self.integer(2**31 * SECOND - 1)])
            number = self.r.choice([0, 1, 1, 1, 2, 4, 200])
            prompts = [self.prompt() for _ in range(number)] if number < 200 else [Prompt()] * number
            wait = Duration(sec=self.r.choice([0, 0, 0, -5]), nanosec=self.r.choice([0, 0, 10**6]))
            atomic = self.r.random() < 0.5
            stamp_message = to_time(max(0, stamp)) if self.r.random() < 0.9 else Time(sec=-5, nanosec=2**32 - 1)
            request: Any = AddObjects.Request(
                camera=camera, stamp=stamp_message, prompts=prompts, all_or_nothing=atomic, wait=wait
            )
            return name, request, AddObjects.Response()
        if name == "remove_objects":
            ids = [self.integer() for _ in range(self.r.choice([0, 1, 5, 5000]))]
            request = RemoveObjects.Request(camera=camera, track_ids=ids, all=self.r.random() < 0.2)
            return name, request, RemoveObjects.Response()
        if name == "list_objects":
            return name, ListObjects.Request(camera=camera), ListObjects.Response()
        if name == "reset":
            return name, Reset.Request(camera=camera), Reset.Response()
        return name, SetBool.Request(data=self.r.random() < 0.9), SetBool.Response()


def check_answer(name: str, request: Any, response: Any, seen: Counter[Code]) -> None:
    """Every result has a known code; numbers and ids fit together."""
    if not hasattr(response, "results"):
        return
    codes = [Code(r.code) for r in response.results]
    seen.update(codes)
    assert Code.INTERNAL_ERROR not in codes, [r.message for r in response.results]
    refused = response.message.startswith(tuple(Code.__members__))
    assert response.success == (all(c == Code.OK for c in codes) and not refused)
    if name == "add_objects":
        assert len(codes) == len(request.prompts)
        for result in response.results:
            assert result.code == Code.OK or (result.track_id == 0 and math.isnan(result.iou_with_prompt))
            assert result.code == Code.OK or result.message


def test_random_requests_and_images() -> None:
    rig, dice, seen = Rig(), Dice(seed=int(os.environ.get("AUSM_FUZZ_SEED", "1"))), Counter[Code]()
    rig.worker.start()
    try:
        for k in range(NUMBER):
            kind = dice.r.random()
            if kind < 0.4:
                rig.camera.receive(dice.camera_image())
            elif kind < 0.45:
                message = dice.compressed()
                message.header.stamp = to_time(max(1, dice.stamp))
                rig.camera.receive(message)
            else:
                name, request, response = dice.request()
                answer = rig.answers[name](request, response)
                assert answer is response
                check_answer(name, request, response, seen)
            if k % 50 == 0:
                rig.camera.enabled = True
        rig.camera.enabled = True
        end = time.monotonic() + 30
        before = rig.published
        while rig.published == before:  # after all that, an ordinary image is processed as ever
            assert time.monotonic() < end, (rig.fatal, rig.errors)
            dice.stamp += SECOND
            message = Image(height=H, width=W, step=3 * W, encoding="rgb8", data=bytes(3 * W * H))
            message.header.stamp = to_time(dice.stamp)
            rig.camera.receive(message)
            time.sleep(0.01)
    finally:
        rig.worker.stop()
    assert not rig.fatal and rig.errors["internal"] == 0 and rig.errors["prompt"] == 0
    assert not [text for text in rig.errors if "failed at" in text], rig.errors
    totals = rig.counts.totals((*DROPS, "received", "processed"))
    assert totals["received"] == totals["processed"] + sum(totals[name] for name in DROPS), totals
    expected = {
        Code.OK, Code.WRONG_SIZE, Code.BAD_ENCODING, Code.EMPTY_MASK, Code.INVALID_MASK, Code.UNKNOWN_ID,
        Code.UNKNOWN_CAMERA, Code.UNSUPPORTED_TYPE, Code.TOO_MANY, Code.STALE_STAMP,
    }  # fmt: skip
    assert expected <= set(seen), seen  # the dice did reach what they are for


def test_stamps_of_any_kind_convert() -> None:
    assert to_ns(Time(sec=-5, nanosec=2**32 - 1)) < 0 < to_ns(Time(sec=2**31 - 1, nanosec=999_999_999))
