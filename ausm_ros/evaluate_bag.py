"""Runs a recording through the code of the node, image by image and in order, and reports what came out.

Reads a rosbag2 (sqlite3 or mcap, raw or compressed images). Nothing is dropped and no clock is involved: the same bag,
checkpoint, seed, precision and device give the same masks to the bit, and the hash that is printed says so. With true
masks in the bag (`ausm simulate` writes them) the results are scored. DIR gets instances/ (a rosbag2 of InstanceArray
messages with the stamps of the images), report.json and report.html, one file to open in a browser. --live adds what
the running node does with the same recording in real time.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from rclpy.serialization import serialize_message
from std_msgs.msg import Header
from tqdm import tqdm

from ausm.bag_masks import TruthReader, find_truth
from ausm.errors import AusmError, InputError
from ausm.io import Frame, FrameSource, open_frames
from ausm.stream import PRECISIONS
from ausm.tracks import StepOutput
from ausm_ros.bag_figures import BAG, HTML, REPORT, FrameRow, Run, make_report, table
from ausm_ros.bag_hash import MaskHash
from ausm_ros.bag_live import make_plan, run_live
from ausm_ros.bag_page import write_page
from ausm_ros.bag_scores import BagScorer
from ausm_ros.instance_bag import InstanceBagWriter
from ausm_ros.messages import label_value, to_instance_array, to_time
from ausm_ros.parameters import (
    SPECS,
    BadParameter,
    Settings,
    camera_specs,
    make_camera_settings,
    make_settings,
    unknown,
)
from ausm_ros.params_file import read_params_file
from ausm_ros.prompts import Code, ObjectPrompt
from ausm_ros.runtime import load_model, stream_maker
from ausm_ros.session import Session
from ausm_ros.worker import Report

CAMERA = "camera"
TOPIC = f"/perception/{CAMERA}/instances"  # as the node would publish them
# settings that decide the masks, beside those of the model
DECISIVE = (
    "discovery", "score_threshold", "prompt_threshold", "capacity", "birth_hits", "max_missed", "dedupe_iou",
    "part_gap", "seed",
)  # fmt: skip
MIN_PROMPT = 16  # pixels: a sliver at the image's edge shows no object


class Evaluation(NamedTuple):
    """The parts of one run."""

    source: FrameSource
    session: Session
    truth: TruthReader | None
    prompt_truth: bool
    max_frames: int | None

    @property
    def frames(self) -> int:
        """Announced number of frames to process."""
        return min(len(self.source), self.max_frames or len(self.source))


def prepare(out: Path, bag: Path) -> None:
    """An output folder without the results of an earlier run; nothing else in it is touched. Raises InputError."""
    target = out / BAG
    if bag.resolve() == target.resolve() or target.resolve() in bag.resolve().parents:
        raise InputError(f"{bag}: is where the results would be written, choose another --out")
    if target.exists() and not (out / REPORT).exists():
        raise InputError(f"{target}: exists already and is not of an earlier evaluation")
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    for name in (REPORT, HTML):
        (out / name).unlink(missing_ok=True)


class _Starter:
    """Prompts every true object by its first mask, as a client of the node would."""

    def __init__(self, scorer: BagScorer, run: Run) -> None:
        self._scorer, self._run = scorer, run
        self._tried: set[int] = set()

    def start(self, session: Session, frame: int, truth: dict[int, np.ndarray]) -> None:
        """truth: of the image that was just processed."""
        new = [i for i, m in truth.items() if i not in self._tried and np.count_nonzero(m) >= MIN_PROMPT]
        if not new:
            return
        self._tried.update(new)
        prompts = [ObjectPrompt(truth[i], name=f"truth {i}") for i in new]
        for truth_id, outcome in zip(new, session.prompt(prompts, atomic=False), strict=True):
            if outcome.code == Code.OK:
                self._scorer.started(truth_id, outcome.track_id, frame)
            else:
                self._run.notes.append(f"frame {frame}: prompt of object {truth_id} refused: {outcome.message}")


def _report_of(frame: Frame, output: StepOutput, session: Session, started: float, seconds: float) -> Report:
    """What the node's worker would hand to its publisher."""
    message = SimpleNamespace(header=Header(stamp=to_time(frame.stamp_ns), frame_id=frame.frame_id))
    return Report(message, frame.image, output, session.snapshot, 0, started, 0.0, seconds)


def evaluate(evaluation: Evaluation, out: Path) -> tuple[Run, BagScorer | None]:
    """Processes the recording and writes DIR/instances. Raises AusmError where the bag or its truth cannot be used."""
    source, session, truth = evaluation.source, evaluation.session, evaluation.truth
    height, width = source.height, source.width
    run, digest = Run(), MaskHash()
    scorer = BagScorer(evaluation.prompt_truth, height, width, evaluation.frames) if truth else None
    starter = _Starter(scorer, run) if scorer and evaluation.prompt_truth else None
    session.new_epoch()
    began = time.monotonic()
    with InstanceBagWriter(out / BAG, TOPIC) as bag:
        frames = islice(source, evaluation.max_frames)
        for frame in tqdm(frames, total=evaluation.frames, unit="frame", file=sys.stderr):
            known = truth.at(frame.stamp_ns, height, width) if truth else None
            started = time.monotonic()
            session.see(height, width, frame.stamp_ns)
            session.step(frame.image, frame.stamp_ns)
            if starter and known is not None:
                starter.start(session, frame.index, known)
            seconds = time.monotonic() - started
            output = session.take_output()
            message = to_instance_array(_report_of(frame, output, session, started, seconds), CAMERA, seconds)
            bag.write(serialize_message(message), frame.stamp_ns)
            digest.add(message)
            drawn = [t for t in output.tracks if label_value(t) and t.mask.any()]
            j = float("nan")
            if scorer and known is not None:
                scores = {t.track_id: t.score for t in drawn}
                j = scorer.feed(frame.index, {t.track_id: t.mask for t in drawn}, scores, known)
            ids = tuple(sorted(t.track_id for t in drawn))
            run.add(FrameRow(frame.index, frame.stamp_ns, 1e3 * seconds, ids, j), output.tracks, session.snapshot)
    run.seconds, run.hash = time.monotonic() - began, digest.hexdigest()
    if truth and scorer and not scorer.frames:
        raise InputError(f"{source.path}: no stamp of {source.topic} is also one of {truth.topic}")
    if scorer and scorer.frames < len(run.frames):
        run.notes.append(f"{len(run.frames) - scorer.frames} of {len(run.frames)} frames have no truth: not scored")
    return run, scorer


def make_node_settings(options: argparse.Namespace) -> tuple[Settings, list[str]]:
    """The node's own defaults but for what the parameter file, or else the command line, says; notes on the file.

    What concerns messages and topics has no effect here. Raises AusmError for what the node would refuse.
    """
    values: dict[str, Any] = {spec.name: spec.default for spec in SPECS}
    notes: list[str] = []
    try:
        if options.params_file:
            notes = _take_over(options.params_file, values)
        names = ("checkpoint", "device", "precision", "seed", "threads", "class_head")
        chosen = {name: getattr(options, name) for name in names}
        chosen |= {"input_short_side": options.short_side, "discovery": options.discover}
        values |= {name: value for name, value in chosen.items() if value is not None}
        if options.prompt_truth and options.discover is None:
            values["discovery"] = False
        settings = make_settings(values)
    except BadParameter as error:
        raise AusmError(str(error)) from error
    if not settings.discovery and not options.prompt_truth:
        off = "--no-discover" if options.discover is False else f"{options.params_file}: discovery: false"
        raise AusmError(f"{off} without --prompt-truth: there is nothing to follow")
    return settings, notes


def _take_over(path: Path, values: dict[str, Any]) -> list[str]:
    """Puts those of a file into `values`; returns a note for each name that no parameter has. Raises BadParameter."""
    given, known = read_params_file(path), set(values)
    values |= {name: value for name, value in given.items() if name in values}
    try:
        for camera in make_settings(values).cameras:
            theirs = {spec.name: given.get(spec.name, spec.default) for spec in camera_specs(camera)}
            make_camera_settings(camera, theirs)
            known |= set(theirs)
    except BadParameter as error:
        raise BadParameter(f"{path}: {error}") from error
    return unknown(given, known)


def make_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("evaluate_bag", description=__doc__, formatter_class=form)
    parser.add_argument("bag", metavar="BAG", type=Path, help="rosbag2: its folder, an .mcap or a .db3 file")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    words = "a node's parameters; options here win, and the precision is always that of --precision"
    parser.add_argument("--params-file", metavar="FILE", type=Path, help=words)
    parser.add_argument("--checkpoint", metavar="NAME_OR_PATH", help="model (nano)")
    parser.add_argument("--topic", help="image topic of a bag that holds several")
    parser.add_argument("--truth-topic", help="label map or InstanceArray (the topic with 'truth' in its name)")
    parser.add_argument(
        "--prompt-truth", action="store_true", help="start every true object by its first mask, as a prompt"
    )
    parser.add_argument(
        "--discover",
        action=argparse.BooleanOptionalAction,
        help="find objects that nobody prompted (default: as the parameter file says, not with --prompt-truth)",
    )
    parser.add_argument("--short-side", metavar="PIXELS", type=int, help="size the model works at (the model's own)")
    parser.add_argument("--class-head", metavar="NAME", help="class head that names objects; nano: coco, sim (none)")
    parser.add_argument("--seed", type=int, help="of the choice of ID vectors (0)")
    parser.add_argument("--max-frames", metavar="N", type=int, help="stop after so many frames")
    parser.add_argument(
        "--live", action="store_true", help="then play it to the running node at its real rate: drops, latency, scores"
    )
    parser.add_argument("--device", help="auto, cpu or cuda:N (auto)")
    # not the node's auto: what that chooses on a CPU is timed, and the masks must not depend on how busy a machine was
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="arithmetic of the model, with --live the node's too (%(default)s); the node by itself takes auto",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (0: PyTorch's own choice)")
    return parser


def run_evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """One evaluation with all its files; returns the report. Raises AusmError, OSError."""
    if options.max_frames is not None and options.max_frames < 1:
        raise AusmError(f"--max-frames {options.max_frames}: at least 1")
    if options.live and options.prompt_truth:
        raise AusmError("--live plays without prompts: it does not go with --prompt-truth")
    settings, notes = make_node_settings(options)
    for note in notes:
        print(f"evaluate_bag: {options.params_file}: {note}", file=sys.stderr)
    source = open_frames(options.bag, options.topic)
    if source.kind != "rosbag2":
        raise InputError(f"{options.bag}: is a {source.kind}, not a rosbag2; `ausm track` takes it")
    topic = find_truth(options.bag, options.truth_topic)
    if options.prompt_truth and topic is None:
        raise InputError(f"{options.bag}: --prompt-truth needs true masks, and no topic has 'truth' in its name")
    truth = TruthReader(options.bag, topic) if topic else None
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model, model_values = load_model(settings)
    session = Session(stream_maker(model, settings))
    prepare(options.out, options.bag)  # not before the model is known to be usable: an earlier report would be lost
    model_values["precision"] = session.stream.precision  # what auto has chosen
    settings = replace(settings, precision=session.stream.precision)  # the live node is not to choose again
    for _ in range(settings.warmup_frames):  # as the node does, so that the first frame is no slower than the others
        session.stream.step(np.zeros((source.height, source.width, 3), np.uint8))
    session.stream.reset()
    evaluation = Evaluation(source, session, truth, options.prompt_truth, options.max_frames)
    try:
        run, scorer = evaluate(evaluation, options.out)
    except BaseException:
        shutil.rmtree(options.out / BAG, ignore_errors=True)  # half a result would be taken for a whole one
        raise
    run.notes.extend(notes)
    chosen = {name: getattr(settings, name) for name in DECISIVE} | {
        "prompt_truth": options.prompt_truth,
        "short_side": settings.input_short_side or None,
        "max_frames": options.max_frames,
        "class_head": settings.class_head or None,
        "params_file": str(options.params_file) if options.params_file else None,
    }
    report = make_report(source, truth.topic if truth else None, model_values, chosen, run, scorer)
    failure: AusmError | None = None
    if options.live:
        plan = make_plan(options.bag, options.topic, len(run.frames), (source.height, source.width), settings)
        again = TruthReader(options.bag, truth.topic) if truth else None
        try:
            report["summary"]["live"] = run_live(plan, options.out, again, [row.stamp_ns for row in run.frames])
        except AusmError as error:  # told at the end: what was found so far is kept
            failure = error
            report["notes"].append(str(error))
    (options.out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    write_page(options.out / HTML, report, source, truth and TruthReader(options.bag, truth.topic), options.out / BAG)
    if failure is not None:
        raise failure
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every frame was processed and written; 2 with one line on stderr where the input cannot be used."""
    options = make_parser().parse_args(argv)
    try:
        report = run_evaluation(options)
    except (AusmError, OSError) as error:
        print(f"evaluate_bag: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate_bag: interrupted", file=sys.stderr)
        return 130
    print(table(report))
    print(f"files        {options.out / HTML}, {options.out / REPORT}, {options.out / BAG}")
    print(json.dumps({**report["summary"], "out": str(options.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
