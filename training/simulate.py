"""`ausm simulate`: a simulated robot camera with exact instance masks, as one bag or as a set of training clips.

Two uses: `--out BAG` writes one rosbag2 (for tests, demos, evaluation); `--frames N --out DIR` writes N frames as
clips for training, in worker processes, and goes on where it was stopped with `--resume`.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from ausm.checks import check_out_folder
from ausm.errors import AusmError, InputError, SizeError
from training.sim_clip import SCENARIOS, Settings, as_record, filming, make_clip, scout, stock_of, write_numbered_clip
from training.sim_occlusion import SCENARIO_WAYS
from training.sim_store import clip_path
from training.sim_world import import_pybullet

MANIFEST = "simulation.json"
SMALLEST, LARGEST = 32, 4096  # px, of either side
CLIPS_PER_WORKER = 40  # then new workers take over: PyBullet never frees all of a closed scene


def parse_size(text: str) -> tuple[int, int]:
    """ "480x640" -> (480, 640), height first. SizeError when it is no such size, odd or out of range."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise SizeError(f"size {text!r} is not HEIGHTxWIDTH, for example 480x640")
    height, width = int(match[1]), int(match[2])
    if not all(SMALLEST <= side <= LARGEST and side % 2 == 0 for side in (height, width)):
        raise SizeError(f"size {height}x{width}: both sides must be even and within {SMALLEST} to {LARGEST} pixels")
    return height, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm simulate`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the bag, or with --frames the folder of clips, to be made")
    add("--seconds", type=float, default=10.0, help="length of the bag (default 10)")
    add("--seed", type=int, default=0, help="same seed, same frames")
    add("--rate", type=float, help="frames per second (default: 15 in a bag, 8 to 30 by chance in clips)")
    add("--size", help="HEIGHTxWIDTH (default: 480x640 in a bag, 256x448 in clips)")
    add("--scenario", choices=SCENARIOS, default="mixed", help="kind of scene, see docs/simulator.md")
    add("--storage", choices=("sqlite3", "mcap"), default="sqlite3", help="storage of the bag")
    add("--frames", type=int, help="write training clips instead: how many frames in all")
    add("--clip-length", type=int, default=16, help="frames per clip (default 16)")
    add("--workers", type=int, default=1, help="processes that render clips (default 1)")
    add("--backgrounds", type=Path, nargs="+", default=[], help="folders of photos to cut textures from")
    add("--held-out", action="store_true", help="for judging: meshes and photos that scenes otherwise never show")
    add("--force", action="store_true", help="replace what an earlier run left at --out")
    add("--resume", action="store_true", help="with --frames: make the clips that are still missing")


def _settings(args: argparse.Namespace, frames: int, rate: float, size: str) -> Settings:
    if args.seed < 0:
        raise InputError(f"seed {args.seed} is negative")
    height, width = parse_size(args.size or size)
    folders = tuple(str(folder.resolve()) for folder in args.backgrounds)
    rate = rate if args.rate is None else args.rate
    if rate < 0 or rate > 240 or (args.rate is not None and rate == 0):
        raise InputError(f"rate {rate} Hz is not within 0 (exclusive) to 240")
    return Settings(args.seed, height, width, frames, rate, args.scenario, folders, args.held_out)


def _clear(path: Path, mark: str, force: bool) -> None:
    """Make room at `path`; only what an earlier run wrote (it holds `mark`) is ever removed."""
    if not path.exists():
        return
    ours = path.is_dir() and ((path / mark).is_file() or not any(path.iterdir()))
    if not force:
        more = ", or --resume to go on" if mark == MANIFEST and ours else ""
        raise InputError(f"{path} exists; choose another --out, or --force to replace it{more}")
    if not ours:
        raise InputError(f"{path} exists and holds no {mark}: --force replaces only what this command wrote")
    shutil.rmtree(path)


def _bag(args: argparse.Namespace) -> None:
    try:
        from training.sim_bag import write_bag
    except ImportError as error:
        raise InputError(f"writing a bag needs rosbags ({error}): pip install rosbags") from error
    draft = _settings(args, 1, 15.0, "480x640")
    frames = round(args.seconds * draft.rate)
    if not 1 <= frames <= 1_000_000:
        raise InputError(f"{args.seconds} s at {draft.rate} Hz are {frames} frames; a bag has 1 to 1,000,000")
    settings = _settings(args, frames, 15.0, "480x640")
    stock_of(settings)  # complains about missing folders before anything is written
    _clear(args.out, "metadata.yaml", args.force)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if settings.scenario in SCENARIO_WAYS:  # must be judged whole before it is written
            clip = make_clip(settings, 0)
            count = write_bag(args.out, clip.frames, clip.classes, clip.lens, clip.rate, args.storage)
            classes = clip.classes
        else:
            with filming(settings, 0, scout(settings, 0)) as film:
                count = write_bag(args.out, film.frames, film.classes, film.lens, film.rate, args.storage)
                classes = film.classes
    except BaseException:
        shutil.rmtree(args.out, ignore_errors=True)  # no half-written bag is left behind
        raise
    size = f"{settings.height}x{settings.width}"
    print(f"{args.out}: {count} frames of {size} at {settings.rate:g} Hz, {len(classes)} objects")


def _render(settings: Settings, root: Path, numbers: Sequence[int], workers: int) -> Iterator[int]:
    """Make these clips in new processes; yields the bytes of each as it is done.

    The processes end with the call. `max_tasks_per_child` would spare that, but can hang (Python 3.11, gh-115634).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), mp_context=context) as pool:
        jobs = [pool.submit(write_numbered_clip, settings, root, k) for k in numbers]
        try:
            for job in as_completed(jobs):
                yield job.result()[1]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def clip_settings(args: argparse.Namespace) -> Settings:
    """What decides the clips of a set (with --frames)."""
    return _settings(args, args.clip_length, 0.0, "256x448")


def _clips(args: argparse.Namespace) -> None:
    if args.frames < 1 or args.clip_length < 1 or args.workers < 1:
        raise InputError(
            f"--frames {args.frames}, --clip-length {args.clip_length} and --workers {args.workers} must be 1 or more"
        )
    settings = clip_settings(args)
    stock_of(settings)
    record = as_record(settings)
    root: Path = args.out
    manifest = root / MANIFEST
    if args.resume and manifest.is_file():
        found = json.loads(manifest.read_text())
        if found != record:
            changed = {k: (found.get(k), v) for k, v in record.items() if found.get(k) != v}
            raise InputError(f"{root} was made with other settings, (then, now): {changed}; resume with the same ones")
    else:
        _clear(root, MANIFEST, args.force)
    root.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(record))
    for left in root.glob("*.part"):
        left.unlink()
    total = -(-args.frames // args.clip_length)
    missing = [k for k in range(total) if not clip_path(root, k).exists()]
    size = 0
    done = total - len(missing)
    step = args.workers * CLIPS_PER_WORKER
    for start in range(0, len(missing), step):
        for made in _render(settings, root, missing[start : start + step], args.workers):
            size += made
            done += 1
            if done % 20 == 0 or done == total:
                print(f"\rclip {done}/{total}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{root}: {total} clips of {args.clip_length} frames, {len(missing)} made now ({size / 1e6:.1f} MB)")


def make(args: argparse.Namespace) -> None:
    """Write what the options ask for. Raises AusmError when they are refused or PyBullet is missing."""
    check_out_folder(args.out.parent if args.frames is None else args.out)
    import_pybullet()
    if args.frames is None:
        _bag(args)
    else:
        _clips(args)


def run(args: argparse.Namespace) -> int:
    """Carry out `ausm simulate`; 0 on success, 2 with one clear line on stderr when it is refused."""
    try:
        make(args)
    except (AusmError, OSError) as error:
        print(f"ausm simulate: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="ausm simulate", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
