"""What /diagnostics says and when it warns: on counters that are filled by hand."""

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import torch
from builtin_interfaces.msg import Time

from ausm_ros.counts import DROPS, USELESS, WINDOW, CameraCounts, Rolling
from ausm_ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    CameraView,
    camera_statuses,
    memory_status,
    model_status,
    to_array,
)
from ausm_ros.memory import resident_bytes
from ausm_ros.parameters import SPECS, make_settings
from ausm_ros.prompts import ObjectPrompt
from ausm_ros.session import Session
from bench.scripted_stream import ScriptedStream


def view(enabled: bool = True) -> CameraView:
    made: Any = ScriptedStream(capacity=1)
    session = Session(lambda: made)
    session.new_epoch()
    return CameraView("front", "/front/image", "reliable", enabled, CameraCounts(), session.snapshot)


def statuses(of: CameraView, **parameters: Any) -> tuple[Any, Any, Any]:
    values = {spec.name: spec.default for spec in SPECS} | parameters
    stream, inference, objects = camera_statuses(of, make_settings(values))
    return stream, inference, objects


def feed(counts: CameraCounts, number: int, ago: float = 0.0) -> None:
    for _ in range(number):
        counts.receive("rgb8")
    counts.last_received = time.monotonic() - ago


def test_images_of_which_none_is_processed_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, now = view(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    feed(fed.counts, 3)
    fed.counts.processed.add(0.1)
    fed.counts.tell_error("encoding 'weird'")
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.5)
    feed(fed.counts, 1)
    monkeypatch.setattr(time, "monotonic", lambda: now + USELESS - 1)
    feed(fed.counts, 1)
    assert statuses(fed)[0].level == OK and fed.counts.last_image() == "the last image came 0.0 s ago"
    monkeypatch.setattr(time, "monotonic", lambda: now + USELESS + 1)
    feed(fed.counts, 1)
    stream = statuses(fed)[0]
    assert stream.level == ERROR and "none processed for 5 s: encoding 'weird'" in stream.message
    assert fed.counts.last_image().endswith("none is processed: encoding 'weird'")
    assert {pair.key: pair.value for pair in stream.values}["last_error_age_s"] == "6.000"
    fed.counts.processed.add(0.1)
    assert statuses(fed)[0].level == OK
    assert CameraCounts().last_image() == "no image yet"


def test_a_camera_that_stopped_was_not_useless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image was processed, then none came: nothing is to be said of processing."""
    fed, now = view(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    feed(fed.counts, 3)
    fed.counts.processed.add(0.1)
    monkeypatch.setattr(time, "monotonic", lambda: now + USELESS + 1)
    assert not fed.counts.useless() and fed.counts.last_image() == "the last image came 6.0 s ago"


def test_a_low_rate_of_processing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_rate 0.05 Hz of a camera of 10 Hz: one image in 20 s is processed, and the rate is told."""
    fed, start = view(), time.monotonic()
    for tick in range(900):
        now = start + tick / 10
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        feed(fed.counts, 1)
        if tick % 200:
            fed.counts.drop("rate_limited")
        if tick % 200 == 3:
            fed.counts.processed.add(0.3)
        if tick % 7:  # to look is slow
            continue
        stream = statuses(fed, max_rate=0.05)[0]
        assert stream.level == OK, (tick, stream.message)
        if tick > 203:
            assert {pair.key: pair.value for pair in stream.values}["rate_processed_hz"] == "0.050", tick
            assert stream.message == "10.0 Hz in, 0.05 Hz processed"
    for tick in range(900, 1400):  # now it fails
        now = start + tick / 10
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        feed(fed.counts, 1)
        fed.counts.drop("rate_limited" if tick % 200 else "unreadable")
    stream = statuses(fed, max_rate=0.05)[0]
    assert stream.level == ERROR and "none processed for 5 s" in stream.message
    assert {pair.key: pair.value for pair in stream.values}["rate_processed_hz"] == "0.000"


def test_images_of_a_disabled_camera_are_not_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, start = view(), time.monotonic()
    for tick in range(100):
        now = start + tick / 10
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        feed(fed.counts, 1)
        fed.counts.drop("disabled")
    feed(fed.counts, 1)  # enabled again
    assert statuses(fed)[0].level == OK


def test_an_incompatible_publisher_is_named_where_no_image_comes() -> None:
    deaf = view()
    deaf.counts.count("incompatible_qos")
    stream = statuses(deaf)[0]
    assert stream.level == ERROR and stream.message == "no image yet: a publisher offers an incompatible QoS"
    feed(deaf.counts, 1)  # another publisher, or the subscription has followed
    assert statuses(deaf)[0].level == OK
    stopped = view()
    feed(stopped.counts, 3, ago=30.0)
    assert "QoS" not in statuses(stopped)[0].message
    stopped.counts.count("incompatible_qos")  # the driver came back with other settings
    assert statuses(stopped)[0].message.endswith("s: a publisher offers an incompatible QoS")


def test_a_camera_without_images_is_an_error_and_a_disabled_one_is_not() -> None:
    stream, _, _ = statuses(view())
    assert stream.level == ERROR and stream.message == "no image yet"
    silent = view()
    feed(silent.counts, 3, ago=30.0)
    assert statuses(silent)[0].level == ERROR and "30." in statuses(silent)[0].message
    assert statuses(view(enabled=False))[0].level == OK
    fed = view()
    feed(fed.counts, 3)
    assert statuses(fed)[0].level == OK


def test_slow_camera_warns_where_a_rate_is_expected() -> None:
    slow = view()
    slow.counts.received._events.extend((time.monotonic() - 9 + k, 0.0) for k in range(10))  # one a second
    slow.counts.last_received = time.monotonic()
    slow.counts.processed.add(0.1)
    assert statuses(slow)[0].level == OK
    stream = statuses(slow, **{"diagnostics.expected_rate": 30.0})[0]
    assert stream.level == WARN and "1.0 Hz in, 30.0 Hz expected" in stream.message


def test_late_messages_warn_where_a_limit_is_set() -> None:
    late = view()
    for _ in range(100):
        late.counts.processed.add(0.25)
    assert statuses(late)[1].level == OK
    inference = statuses(late, **{"diagnostics.max_latency_ms": 100.0})[1]
    assert inference.level == WARN and inference.message == "p95 250 ms, more than 100 ms"
    values = {v.key: v.value for v in inference.values}
    assert values["processing_p99_ms"] == "250.000" and values["inference_p50_ms"] == "nan"


def test_an_error_of_the_model_is_an_error_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = view()
    assert statuses(broken)[1].level == OK
    broken.counts.count("model_errors")
    broken.counts.tell_error("scores are not finite")
    inference = statuses(broken)[1]
    assert inference.level == ERROR and "scores are not finite" in inference.message
    later = time.monotonic() + WINDOW + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert statuses(broken)[1].level == OK  # the count stays, in the stream's values
    assert {v.key: v.value for v in statuses(broken)[0].values}["model_errors"] == "1"


def test_full_camera_warns() -> None:
    made: Any = ScriptedStream(capacity=1)
    session = Session(lambda: made)
    session.new_epoch()
    session.see(8, 8, 5)
    session.step(np.zeros((8, 8, 3), np.uint8), 5)
    session.prompt([ObjectPrompt(np.ones((8, 8), np.bool_))], atomic=True)
    full = view()._replace(snapshot=session.snapshot)
    objects = statuses(full)[2]
    assert objects.level == WARN and objects.message == "1 of 1 in use, 0 lost"


def test_every_drop_is_listed_by_its_reason() -> None:
    dropping = view()
    for k, reason in enumerate(DROPS, 1):
        dropping.counts.drop(reason, k)
    values = {v.key: v.value for v in statuses(dropping)[0].values}
    assert [int(values[reason]) for reason in DROPS] == list(range(1, len(DROPS) + 1))
    assert dropping.counts.take_dropped() == sum(range(1, len(DROPS) + 1)) and dropping.counts.take_dropped() == 0


def test_memory_and_model() -> None:
    memory = {v.key: v.value for v in memory_status([view(), view()], torch.device("cpu")).values}
    assert memory == {"state_bytes": "2000", "rss_bytes": memory["rss_bytes"]}
    assert 10**7 < int(memory["rss_bytes"]) <= resident_bytes() * 1.5
    assert model_status({}, "not configured: no file").level == ERROR
    assert model_status({"checkpoint": "nano"}, "").message == "nano"
    array = to_array(Time(sec=3), [model_status({}, "")], "perception")
    assert array.status[0].name == "perception: ausm: model" and array.header.stamp.sec == 3


def test_rates_look_back_a_bounded_time() -> None:
    rolling = Rolling(limit=4)
    for _ in range(10):
        rolling.add(1.0)
    assert len(rolling.values()) == 4
    rolling._events.clear()
    now = time.monotonic()
    rolling._events.extend([(now - WINDOW - 1, 0.0), (now - 1.0, 0.0), (now - 0.5, 0.0), (now, 0.0)])
    assert rolling.rate() == pytest.approx(2.0, rel=0.05)
    rolling._events.clear()
    rolling._events.extend([(now - 8, 0.0), (now - 7, 0.0)])
    assert rolling.rate() == 0.0  # it has stopped
