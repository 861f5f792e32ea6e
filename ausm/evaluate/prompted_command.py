"""`ausm eval mose` and `ausm eval youtube-vos`: submission zip, and J and F where the annotations are local."""

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments
from ausm.checks import check_out_folder
from ausm.errors import AusmError
from ausm.evaluate.manifest import Manifest, data_settings
from ausm.evaluate.prompted import PromptedVideo, mose_videos, run_prompted, youtube_vos_videos
from ausm.masks import read_palette_png, write_palette_png
from ausm.metrics.davis import ObjectScore, SequenceScorer, make_score, mean_statistics
from ausm.metrics.youtube_vos import LateObjectScorer

FOLDER = {"mose": "", "youtube-vos": "Annotations/"}  # what the servers expect around <video>/<frame>.png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both commands; `benchmark` is set by the dispatcher."""
    parser.add_argument("--root", metavar="DIR", type=Path, required=True, help="a split: JPEGImages/ and Annotations/")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for masks, submission.zip, manifest")
    parser.add_argument("--all-frames", metavar="DIR", type=Path, help="YouTube-VOS: JPEGImages at the full rate")
    parser.add_argument("--videos", metavar="LIST", help="only these, names with commas (no zip is written)")
    add_model_arguments(parser)


def select(names: list[str], wanted: str | None) -> list[str]:
    """The names asked for. Raises AusmError for one that does not exist."""
    if wanted is None:
        return names
    chosen = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen:
        raise AusmError(f"no video {unknown or [wanted]} among the {len(names)} of this split")
    return chosen


def _run_video(stream: Any, video: PromptedVideo, out: Path, benchmark: str) -> list[ObjectScore]:
    """Writes the wanted frames; returns the scores where the truth is local."""
    scorer = SequenceScorer() if benchmark == "mose" else LateObjectScorer()
    out.mkdir(parents=True, exist_ok=True)
    for name, labels in run_prompted(stream, video):
        if name not in video.wanted:
            continue
        write_palette_png(out / f"{name}.png", labels)
        if video.truths:
            scorer.feed(labels, read_palette_png(video.truths[name]))
    return list(scorer.finish()) if video.truths else []


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished, packs the submission, prints one JSON object (J, F, JF in percent or null)."""
    check_out_folder(args.out)
    benchmark: str = args.benchmark
    if args.all_frames is not None and benchmark != "youtube-vos":
        raise AusmError(f"--all-frames has no meaning for {benchmark}")
    videos = mose_videos(args.root) if benchmark == "mose" else youtube_vos_videos(args.root, args.all_frames)
    by_name = {video.name: video for video in videos}
    names = select(list(by_name), args.videos)
    digest = weights.sha256(weights.resolve(args.checkpoint))
    settings = {"benchmark": benchmark, "checkpoint_sha256": digest, "short_side": args.short_side, "seed": args.seed}
    listed = args.root / "meta.json" if benchmark == "youtube-vos" else None
    settings |= data_settings(listed, root=args.root, all_frames=args.all_frames)
    manifest = Manifest(args.out / "manifest.json", settings)
    model = ausm.load(args.checkpoint, device=args.device)
    config = ausm.StreamConfig(discover=False, short_side=args.short_side)
    scores: list[ObjectScore] = []
    for name in tqdm(names, unit="video", file=sys.stderr):
        video, entry = by_name[name], manifest.get("", name)
        if entry is None or not all((args.out / "masks" / name / f"{frame}.png").is_file() for frame in video.wanted):
            stream = ausm.Stream(model, discover=False, seed=args.seed, config=config)
            found = _run_video(stream, video, args.out / "masks" / name, benchmark)
            entry = [{"id": score.object_id, "j": score.j, "f": score.f} for score in found]
            manifest.put("", name, entry)
        scores += [make_score(row["id"], row["j"], row["f"]) for row in entry]
    figures: dict[str, Any] = {"J": None, "F": None, "JF": None, "objects": len(scores), "videos": len(names)}
    if scores:
        j, f = (100 * mean_statistics(getattr(s, m) for s in scores).mean for m in ("J", "F"))
        figures |= {"J": j, "F": f, "JF": (j + f) / 2}
        print(f"J&F {(j + f) / 2:.1f}  J {j:.1f}  F {f:.1f}  ({len(scores)} objects of {len(names)} videos)")
    else:
        print(f"{len(names)} videos; their annotations are not local: the server of the benchmark gives the score")
    if len(names) == len(by_name):
        archive = args.out / "submission.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:  # PNG files are compressed already
            for name in names:
                for frame in by_name[name].wanted:
                    pack.write(args.out / "masks" / name / f"{frame}.png", f"{FOLDER[benchmark]}{name}/{frame}.png")
        print(f"submission: {archive}")
    print(json.dumps(figures | {"checkpoint_sha256": digest}))
    return 0
