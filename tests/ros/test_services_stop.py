"""A request that was checked before the worker stopped and queued after: nobody would ever carry it out."""

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from ausm_ros.msg import Prompt
from ausm_ros.srv import AddObjects, RemoveObjects, Reset
from builtin_interfaces.msg import Duration
from sensor_msgs.msg import RegionOfInterest

from bench.fuzz_rig import Rig
from bench.scripted_stream import ScriptedStream

BOX = RegionOfInterest(width=20, height=20)
REQUESTS = {
    "add_objects": (
        AddObjects.Request(prompts=[Prompt(type=Prompt.BOX, box=BOX)], wait=Duration(sec=50)),
        AddObjects.Response,
    ),
    "queued": (AddObjects.Request(prompts=[Prompt(type=Prompt.BOX, box=BOX)]), AddObjects.Response),
    "remove_objects": (RemoveObjects.Request(track_ids=[1]), RemoveObjects.Response),
    "reset": (Reset.Request(), Reset.Response),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_is_refused_at_once(name: str) -> None:
    rig = Rig(ScriptedStream())
    rig.task.session.see(64, 96, 1)
    rig.task.session.step(np.zeros((64, 96, 3), np.uint8), 1)
    post, post_prompts = rig.task.post, rig.task.post_prompts

    def stopped_before(queue: Any) -> Any:
        def late(item: Any) -> Any:
            rig.runtime.active = False
            rig.worker.stop()
            return queue(item)

        return late

    rig.task.post, rig.task.post_prompts = stopped_before(post), stopped_before(post_prompts)  # type: ignore[method-assign]
    request, make = REQUESTS[name]
    name = "add_objects" if name == "queued" else name
    start = time.monotonic()
    answer = rig.answers[name](request, make())
    assert not answer.success and "NOT_ACTIVE" in answer.message and "deactivated" in answer.message, answer
    assert time.monotonic() - start < 10  # it used to wait for 20 s
    assert not rig.errors, rig.errors
