"""`ausm eval davis`: table, results.csv and PNG files; resumes where an earlier run of the same model stopped."""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import ausm
from ausm import weights
from ausm.arguments import add_model_arguments
from ausm.checks import check_out_folder
from ausm.errors import InputError
from ausm.evaluate.manifest import Manifest, data_settings
from ausm.evaluate.semi_supervised import CONTROLS, DavisResult, SequenceResult, davis, find_sequence, list_sequences
from ausm.io import sequence_names
from ausm.masks import write_palette_png
from ausm.metrics.davis import Statistics, make_score

COLUMNS = ["sequence", "object", "J&F", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ausm eval davis`."""
    parser.add_argument("--root", metavar="DIR", type=Path, required=True, help="JPEGImages/ and Annotations/")
    parser.add_argument(
        "--sequences", metavar="FILE_OR_LIST", help="a file with a name per line, or names with commas (all annotated)"
    )
    parser.add_argument("--multi", action="store_true", help="several objects per sequence (DAVIS 2017)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for PNG files, results.csv, manifest")
    add_model_arguments(parser)
    parser.add_argument(
        "--controls", action="store_true", help=f"also run what shows where a score comes from: {', '.join(CONTROLS)}"
    )


def read_sequences(argument: str | None, root: Path) -> list[str]:
    """Names of a file (a name or an image path per line) or of a list with commas; None: all that are annotated."""
    if argument is None:
        return list_sequences(root)
    if os.path.isfile(argument):  # Path.is_file raises OSError for a list longer than a file name may be
        names = sequence_names(Path(argument).read_text())
    else:
        names = [name.strip() for name in argument.split(",") if name.strip()]
    if not names:
        raise InputError(f"no sequence in {argument!r}")
    return list(dict.fromkeys(names))


def _to_entry(result: SequenceResult) -> dict[str, Any]:
    """A result as JSON, with its curves to the last digit."""
    objects = {str(score.object_id): {"j": score.j, "f": score.f} for score in result.objects}
    return {"objects": objects, "frames": result.frames, "seconds": result.seconds}


def _from_entry(name: str, entry: dict[str, Any]) -> SequenceResult:
    """The inverse of `_to_entry`."""
    objects = tuple(make_score(int(i), curves["j"], curves["f"]) for i, curves in entry["objects"].items())
    return SequenceResult(name, objects, entry["frames"], entry["seconds"])


def _cells(j: Statistics, f: Statistics, scale: float) -> list[str]:
    values = [(j.mean + f.mean) / 2, *j, *f]
    return [f"{scale * value:.1f}" for value in values]


def _table(result: DavisResult) -> list[list[str]]:
    """Header, global row and a row per object; in percent."""
    rows = [COLUMNS, ["global", "", *_cells(result.j_statistics, result.f_statistics, 1)]]
    for sequence in result.sequences:
        for score in sequence.objects:
            rows.append([sequence.name, str(score.object_id), *_cells(score.J, score.F, 100)])
    return rows


def _by_sequence(results: dict[str, DavisResult]) -> dict[str, dict[str, float]]:
    """J&F of every sequence under every row: whether wiping the state costs anything shows on the long ones."""
    return {
        row or "prediction": {sequence.name: DavisResult((sequence,)).JF for sequence in result.sequences}
        for row, result in results.items()
    }


def format_table(rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _figures(result: DavisResult) -> dict[str, float]:
    j, f = result.j_statistics, result.f_statistics
    return {
        "J": j.mean,
        "F": f.mean,
        "JF": result.JF,
        "J_recall": j.recall,
        "J_decay": j.decay,
        "F_recall": f.recall,
        "F_decay": f.decay,
    }


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished, then prints the table and one JSON object (J, F, JF in percent)."""
    check_out_folder(args.out)
    names = read_sequences(args.sequences, args.root)
    frames = {name: [path.stem for path in find_sequence(args.root, name).images] for name in names}
    digest = weights.sha256(weights.resolve(args.checkpoint))
    settings = {"checkpoint_sha256": digest, "multi": args.multi, "short_side": args.short_side, "seed": args.seed}
    settings |= data_settings(root=args.root)
    manifest = Manifest(args.out / "manifest.json", settings)
    model = ausm.load(args.checkpoint, device=args.device)

    def write(sequence: str, frame: str, labels: np.ndarray) -> None:
        (args.out / sequence).mkdir(exist_ok=True)
        write_palette_png(args.out / sequence / f"{frame}.png", labels)

    rows = ["", *(CONTROLS if args.controls else ())]
    results: dict[str, DavisResult] = {}
    with tqdm(total=len(rows) * len(names), unit="sequence", file=sys.stderr) as bar:
        for row in rows:
            done = []
            for name in names:
                bar.set_postfix_str(f"{row} {name}".strip())
                entry = manifest.get(row, name)
                stored = None if entry is None else _from_entry(name, entry)
                if stored and not row and not all((args.out / name / f"{f}.png").is_file() for f in frames[name]):
                    stored = None
                if stored is None:
                    options = {"multi": args.multi, "control": row, "seed": args.seed}
                    on_frame = None if row else write
                    found = davis(model, args.root, [name], args.short_side, on_frame=on_frame, **options)
                    stored = found.sequences[0]
                    manifest.put(row, name, _to_entry(stored))
                done.append(stored)
                bar.update()
            results[row] = DavisResult(tuple(done))
    result = results[""]
    table = _table(result)
    with (args.out / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    print(format_table(table))
    if args.controls:
        lines = [["control", "", *COLUMNS[2:]]]
        for row, other in results.items():
            lines.append([row or "prediction", "", *_cells(other.j_statistics, other.f_statistics, 1)])
        print("\n" + format_table(lines))
        by_sequence = _by_sequence(results)
        lines = [["J&F", "frames", *by_sequence]]
        for sequence in result.sequences:
            scores = [f"{found[sequence.name]:.1f}" for found in by_sequence.values()]
            lines.append([sequence.name, str(sequence.frames), *scores])
        print("\n" + format_table(lines))
    figures: dict[str, Any] = _figures(result) | {
        "sequences": len(names),
        "frames_per_second": result.frames_per_second,
    }
    if args.controls:
        figures["controls"] = {row: _figures(results[row]) for row in CONTROLS}
        figures["JF_by_sequence"] = by_sequence
    print(json.dumps(figures | {"checkpoint_sha256": digest}))
    return 0
