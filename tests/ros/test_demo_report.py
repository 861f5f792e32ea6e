"""The demo's figures and pictures, from recordings made by hand."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from ausm_ros.msg import Instance, InstanceArray
from harness import to_rle, to_time

from ausm.io import open_frames
from ausm_ros.demo import tell
from ausm_ros.demo_recorder import StoredImage
from ausm_ros.demo_report import Recording, draw, make_report, overlays, percentiles, rate
from ausm_ros.instance_bag import Received
from ausm_ros.messages import to_duration

MS = 10**6
PERIOD = 40 * MS  # 25 Hz
SIZE = (240, 320)


def square(x: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[150:210, x : x + 60] = True
    return mask


def instance(track_id: int, state: int = Instance.STATE_TRACKED, source: int = Instance.SOURCE_DISCOVERED) -> Instance:
    message = Instance(track_id=track_id, state=state, source=source, score=0.75)
    if state == Instance.STATE_TRACKED:
        message.mask = to_rle(square(50 * track_id))
    return message


def result(stamp: int, instances: list[Instance], delay_ms: int = 30) -> Received:
    """Published and received `delay_ms` after the stamp, 5 ms of it in the queue."""
    message = InstanceArray(height=SIZE[0], width=SIZE[1], instances=instances)
    message.header.stamp = to_time(stamp)
    message.queue_time, message.inference_time = to_duration(0.005), to_duration(0.02)
    message.processing_time = to_duration(delay_ms / 1e3)
    return Received("/perception/camera/instances", stamp + delay_ms * MS, message)


def recording(results: list[Received], frames: int, prompt: dict[str, object] | None = None) -> Recording:
    stamps = [10**9 + k * PERIOD for k in range(frames)]
    return Recording(
        stamps=stamps, frames=list(range(100, 100 + frames)), pause_s=0.0, prompt=prompt, received=results,
        images=[], diagnostics=[], rss=[],
    )  # fmt: skip


def prompt_log(stamp: int, track_id: int) -> dict[str, object]:
    answer = [{"code": 0, "message": "", "track_id": track_id}]
    log = {
        "frame": 100,
        "stamp_ns": stamp,
        "applied_stamp_ns": stamp,
        "success": True,
        "message": "",
        "results": answer,
    }
    return dict(log)


def stamps_of(frames: int) -> list[int]:
    return [10**9 + k * PERIOD for k in range(frames)]


def test_rates_leave_out_the_hold_at_the_prompt() -> None:
    assert rate([0, 10**9, 2 * 10**9]) == 1.0
    assert rate([0, 10**9, 3 * 10**9], pause_s=1.0) == 1.0
    assert rate([5]) == 0.0
    assert rate([]) == 0.0


def test_percentiles_are_of_the_values() -> None:
    assert percentiles([3.0]) == (3.0, 3.0, 3.0, 3.0)
    assert percentiles(list(range(101))) == (50.0, 95.0, 99.0, 100.0)


def test_frames_latencies_and_drops() -> None:
    stamps = stamps_of(10)
    results = [result(stamps[k], [instance(1)], delay_ms=100 if k else 30) for k in (0, 1, 4, 7)]
    results[2].message.dropped, results[3].message.dropped = 2, 2
    made = recording(results, 10)
    status = {"perception: ausm: camera stream": {"replaced": "4", "failed": "0", "received": "10"}}
    report = make_report(made._replace(diagnostics=[{"stamp_ns": 0, "status": status}]), {"path": "x"})
    assert (report["frames_in"], report["frames_out"]) == (10, 4)
    assert report["fps"]["in"] == 25.0
    assert report["fps"]["out"] == round(3 / (7 * 0.04), 2)
    assert report["latency_ms"]["image_stamp_to_subscriber"] == {"p50": 100.0, "p95": 100.0, "p99": 100.0, "max": 100.0}
    assert report["latency_ms"]["queue"]["p50"] == 5.0
    assert report["latency_ms"]["inference"]["max"] == 20.0
    assert report["dropped"]["total"] == 6
    assert report["dropped"]["by_the_node"] == 4
    assert report["dropped"]["overwritten"] == 2
    assert report["dropped"]["counters"] == {"replaced": 4}
    assert "100 ms" in report["dropped"]["why"]
    assert "every 40 ms" in report["dropped"]["why"]


def test_no_drops_need_no_reason() -> None:
    report = make_report(recording([result(s, []) for s in stamps_of(3)], 3), {})
    none = {"total": 0, "by_the_node": 0, "overwritten": 0, "counters": {}, "why": "none"}
    assert report["dropped"] == none
    assert report["prompt"] is None
    assert report["tracks"] == {"prompted": 0, "discovered": 0, "list": []}


def test_tracks_are_counted_by_source_and_followed() -> None:
    stamps = stamps_of(4)
    prompted = [instance(2, s, Instance.SOURCE_PROMPT) for s in (1, 2, 2, 1)]  # seen, lost, lost, seen
    results = [
        result(s, [instance(1), p] if k < 2 else [p]) for k, (s, p) in enumerate(zip(stamps, prompted, strict=True))
    ]
    report = make_report(recording(results, 4), {})
    assert (report["tracks"]["prompted"], report["tracks"]["discovered"]) == (1, 1)
    first, second = report["tracks"]["list"]
    assert (first["id"], first["first"], first["last"], first["seen"], first["lost"]) == (1, 0, 1, 2, 0)
    assert (second["id"], second["last"], second["seen"], second["lost"]) == (2, 3, 2, 2)
    assert second["last_state"] == "tracked"


@pytest.mark.parametrize(
    ("states", "alive", "seen"),
    [
        ([1, 1, 1], True, 3),
        ([1, 2, 2], True, 1),  # LOST is alive: it may come back under its id
        ([1, 3, None], False, 1),  # REMOVED, then gone
        ([1, None, 1], False, 2),
    ],
)
def test_a_prompted_track_is_alive_unless_removed(states: list[int | None], alive: bool, seen: int) -> None:
    stamps = stamps_of(4)
    after = [[instance(7, s, Instance.SOURCE_PROMPT)] if s is not None else [] for s in states]
    results = [result(stamp, found) for stamp, found in zip(stamps, [[], *after], strict=True)]
    told = make_report(recording(results, 4, prompt_log(stamps[0], 7)), {})["prompt"]
    assert told["alive_to_the_end"] is alive
    assert told["frames_after"] == 3
    assert told["frames_seen"] == {"7": seen}
    assert told["on_its_own_frame"] is True


def test_what_the_demo_tells() -> None:
    stamps = stamps_of(5)
    results = [result(s, [instance(7, source=Instance.SOURCE_PROMPT)]) for s in (*stamps[:2], stamps[4])]
    report = make_report(recording(results, 5, prompt_log(stamps[0], 7)), {"speed": 1.0})
    told = tell(report, Path("out"))
    assert "track 7 had a mask on 2 of 2 frames after it (whether on the right object: see out/sheet.png)" in told
    assert "dropped  2: the node takes the newest image" in told and 'DEMO_ARGS="--speed 0.1"' in told
    assert "--speed" not in tell(report | {"input": {"speed": 0.1}}, Path("out"))


def test_a_refused_prompt_is_not_alive() -> None:
    stamps = stamps_of(2)
    refused = [{"code": 6, "message": "0 pixels", "track_id": 0}]
    log = prompt_log(stamps[0], 0) | {"success": False, "applied_stamp_ns": 0, "results": refused}
    told = make_report(recording([result(s, []) for s in stamps], 2, log), {})["prompt"]
    assert told["alive_to_the_end"] is False
    assert told["results"] == refused


def test_memory_is_taken_from_half_of_the_results_on() -> None:
    stamps = stamps_of(4)
    made = recording([result(s, []) for s in stamps], 4)
    rss = [(0, 900), (stamps[1], 500), (stamps[2] + 35 * MS, 600), (stamps[3] + 35 * MS, 610)]
    values = {"perception: ausm: memory": {"state_bytes": "47", "rss_bytes": "1"}}
    report = make_report(made._replace(rss=rss, diagnostics=[{"stamp_ns": 0, "status": values}]), {})
    assert report["memory"] == {"state_bytes": 47, "node_rss_bytes": {"middle": 600, "end": 610, "peak": 900}}


def _stored(folder: Path, stamps: list[int]) -> tuple[Path, list[StoredImage]]:
    """Grey images, each a little brighter than the one before."""
    images, offset = [], 0
    with (folder / "images.bin").open("wb") as file:
        for k, stamp in enumerate(stamps):
            _, jpeg = cv2.imencode(".jpg", np.full((*SIZE, 3), 40 + 10 * k, np.uint8))
            file.write(jpeg.tobytes())
            images.append(StoredImage(stamp, offset, len(jpeg)))
            offset += len(jpeg)
    return folder / "images.bin", images


def test_pictures_without_a_result_repeat_the_newest_one_that_has(tmp_path: Path) -> None:
    stamps = stamps_of(5)
    path, images = _stored(tmp_path, stamps)
    results = [result(stamps[1], [instance(3)]), result(stamps[3], [])]
    pictures = list(overlays(recording(results, 5)._replace(images=images), path))
    assert [fresh for fresh, _ in pictures] == [False, True, False, True, False]
    assert np.array_equal(pictures[2][1], pictures[1][1])
    assert np.array_equal(pictures[4][1], pictures[3][1])
    inside = pictures[1][1][160:200, 160:200].reshape(-1, 3)
    assert np.ptp(inside.mean(axis=0)) > 20, "the mask of track 3 is in colour"
    assert np.ptp(pictures[3][1][160:200, 160:200].reshape(-1, 3).mean(axis=0)) < 2, (
        "no mask is left on a frame without"
    )
    assert abs(float(pictures[3][1][100:, :].mean()) - 70) < 2, "frame 3 itself is under its masks"


def test_video_and_sheet_hold_what_was_received(tmp_path: Path) -> None:
    stamps = stamps_of(12)
    path, images = _stored(tmp_path, stamps)
    results = [result(s, [instance(1)]) for s in stamps[:10]]
    made = recording(results, 12, prompt_log(stamps[0], 1))._replace(images=images)
    codec = draw(made, path, tmp_path, 25.0)
    assert codec in ("h264", "mp4v")
    video = open_frames(tmp_path / "overlay.mp4")
    assert sum(1 for _ in video) == 12
    assert math.isclose(video.rate or 0, 25.0, abs_tol=0.1)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[1] > 2 * 640, "two columns"
    assert sheet.shape[0] > 4 * 480, "four rows of 640x480"
