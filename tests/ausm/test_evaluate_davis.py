"""`ausm eval davis` on a small tree in the DAVIS layout, with a stream whose masks are known."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from vos_benchmark.benchmark import benchmark

import ausm
from ausm import cli, weights
from ausm.errors import AusmError, InputError, SizeError
from ausm.evaluate import davis, davis_command, semi_supervised
from ausm.masks import read_palette_png, write_palette_png
from tests.ausm.fake_stream import FakeStream, squares

FRAMES = 6


class DriftingStream(FakeStream):
    """Loses one row of its first object per frame, unless it is told the truth again."""

    @property
    def current(self):
        output = super().current
        told = max([index for index, _ in self.prompts], default=-1)
        lost = max(0, self.index - max(told, 0))
        if output.tracks and lost:
            mask = output.tracks[0].mask
            rows = np.flatnonzero(mask.any(axis=1))[:lost]
            mask[rows] = False
        return output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences: `one` with object 1, `two` with objects 1 and 2, in 480p folders."""
    root = tmp_path / "davis"
    for name, values in (("one", (200,)), ("two", (200, 120))):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for i in range(FRAMES):
            image = squares({v: 4 + 2 * i + 3 * k for k, v in enumerate(values)})
            # lossless pixels under the name DAVIS uses: the stream knows objects by their exact value
            Image.fromarray(image).save(root / f"JPEGImages/480p/{name}/{i:05d}.jpg", format="PNG")
            labels = sum((k + 1) * (image[..., 0] == v) for k, v in enumerate(values))
            write_palette_png(root / f"Annotations/480p/{name}/{i:05d}.png", labels)
    return root


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[DriftingStream]:
    made: list[DriftingStream] = []

    def make(model, discover, seed, config) -> DriftingStream:
        assert not discover and not config["discover"]
        made.append(DriftingStream())
        return made[-1]

    monkeypatch.setattr(ausm, "StreamConfig", dict, raising=False)
    monkeypatch.setattr(ausm, "Stream", make, raising=False)
    monkeypatch.setattr(ausm, "load", lambda name, device: name, raising=False)
    return made


def test_scores_without_disk(root: Path, streams) -> None:
    before = sorted(root.rglob("*"))
    result = davis("model", root, ["one"])
    # 8 rows, one less per frame; frames 1 to 4 count
    assert result.sequences[0].objects[0].j == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8])
    assert pytest.approx(100 * (7 + 6 + 5 + 4) / 32) == result.J
    assert result.j_statistics.recall == 75.0  # one half does not count as more than one half
    assert pytest.approx((result.J + result.F) / 2) == result.JF
    assert result.sequences[0].frames == FRAMES and result.frames_per_second > 0
    assert sorted(root.rglob("*")) == before


def test_one_or_several_objects(root: Path, streams) -> None:
    single, multi = davis("model", root, ["two"]), davis("model", root, ["two"], multi=True)
    assert [s.object_id for s in single.sequences[0].objects] == [1]
    assert [s.object_id for s in multi.sequences[0].objects] == [1, 2]
    assert multi.sequences[0].objects[1].J.mean == 1.0


def test_controls(root: Path, streams) -> None:
    truth = davis("model", root, ["one"], control="true history")
    assert truth.sequences[0].objects[0].j == pytest.approx([7 / 8] * 4)  # told the truth after every frame
    davis("model", root, ["one"], control="state wiped")
    assert streams[1].wiped == FRAMES - 1
    flow = davis("model", root, ["one"], control="optical flow")
    still = np.mean(
        [(8 - 2 * t) / (8 + 2 * t) if t < 4 else 0 for t in range(1, 5)]
    )  # J of the first mask left in place
    assert len(streams) == 2  # no model in it
    assert still < flow.J / 100
    with pytest.raises(InputError, match="no control 'magic'"):
        davis("model", root, ["one"], control="magic")


def test_true_history_where_the_object_is_absent(root: Path, streams) -> None:
    write_palette_png(root / "Annotations/480p/one/00002.png", np.zeros((32, 48), np.uint8))
    result = davis("model", root, ["one"], control="true history")
    assert [index for index, _ in streams[0].prompts] == [-1, 1, 3, 4, 5]
    assert result.sequences[0].objects[0].j[1] == 0.0


def test_faults(root: Path, streams) -> None:
    with pytest.raises(InputError, match="sequence three"):
        davis("model", root, ["three"])
    with pytest.raises(InputError, match="no folder JPEGImages"):
        davis("model", root / "JPEGImages", ["one"])
    with pytest.raises(InputError, match="absent: no such folder"):
        davis("model", root / "absent", ["one"])
    (root / "Annotations/480p/one/00003.png").unlink()
    with pytest.raises(InputError, match=r"1 of 6 annotations are missing, first 00003\.png"):
        davis("model", root, ["one"])
    write_palette_png(root / "Annotations/480p/one/00003.png", np.ones((9, 9), np.uint8))
    with pytest.raises(SizeError, match=r"annotation 00003 is 9x9, its image 32x48"):
        davis("model", root, ["one"])
    write_palette_png(root / "Annotations/480p/two/00000.png", np.zeros((32, 48), np.uint8))
    with pytest.raises(InputError, match="no object to follow"):
        davis("model", root, ["two"])
    write_palette_png(root / "Annotations/480p/two/00000.png", np.ones((9, 9), np.uint8))
    with pytest.raises(SizeError, match=r"two: image 00000 is 32x48, the first annotation 9x9"):
        davis("model", root, ["two"])
    for i in range(2, FRAMES):
        (root / f"JPEGImages/480p/two/{i:05d}.jpg").unlink()
    with pytest.raises(InputError, match="2 images, the protocol needs at least 3"):
        davis("model", root, ["two"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").write_bytes(b"weights a")
    return tmp_path / "a.safetensors"


def command(root: Path, out: Path, checkpoint: Path, *more: str) -> list[str]:
    return ["eval", "davis", "--root", str(root), "--out", str(out), "--checkpoint", str(checkpoint), *more]


def test_files_agree_with_vos_benchmark(root: Path, tmp_path: Path, streams, checkpoint: Path, capsys) -> None:
    out = tmp_path / "o"
    assert cli.main(command(root, out, checkpoint, "--multi", "--sequences", "one,two")) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    figures = json.loads(printed[-1])
    assert figures["checkpoint_sha256"] == weights.sha256(checkpoint)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["sequence"], r["object"]) for r in rows] == [("global", ""), ("one", "1"), ("two", "1"), ("two", "2")]
    assert float(rows[0]["J"]) == round(figures["J"], 1) and printed[1].startswith("global")
    assert read_palette_png(out / "two/00000.png").max() == 2
    jf, j, f, _ = benchmark([str(root / "Annotations/480p")], [str(out)], num_processes=1, verbose=False)
    assert (figures["JF"], figures["J"], figures["F"]) == pytest.approx((jf[0], j[0], f[0]), abs=1e-9)


def test_resumes_and_refuses_to_mix(root: Path, tmp_path: Path, streams, checkpoint: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "o"
    real, ran = davis_command.davis, []

    def interrupted(model, root, names, *rest, **options):
        ran.append((options["control"], *names))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return real(model, root, names, *rest, **options)

    monkeypatch.setattr(davis_command, "davis", interrupted)
    assert cli.main(command(root, out, checkpoint, "--controls")) == 130
    assert cli.main(command(root, out, checkpoint, "--controls")) == 0
    rows = [("", "one"), ("", "two"), *[(c, n) for c in semi_supervised.CONTROLS for n in ("one", "two")]]
    assert ran == [rows[0], rows[1], *rows[1:]]  # `two` again, `one` not
    first = capsys.readouterr().out
    assert "true history" in first and set(json.loads(first.splitlines()[-1])["controls"]) == set(
        semi_supervised.CONTROLS
    )
    figures = json.loads(first.splitlines()[-1])
    by_sequence = figures["JF_by_sequence"]
    assert set(by_sequence) == {"prediction", *semi_supervised.CONTROLS}
    assert by_sequence["true history"]["one"] > by_sequence["prediction"]["one"] + 10
    assert pytest.approx(np.mean(list(by_sequence["prediction"].values()))) == figures["JF"]  # one object in each
    assert cli.main(command(root, out, checkpoint, "--controls")) == 0 and len(ran) == 9
    assert capsys.readouterr().out == first  # the same figures to the last digit, from the manifest
    (out / "one/00002.png").unlink()
    assert cli.main(command(root, out, checkpoint)) == 0
    assert ran[9:] == [("", "one")] and (out / "one/00002.png").exists()
    assert cli.main(command(root.rename(tmp_path / "other"), out, checkpoint)) == 2
    assert f"results of another run: root {root} there, {tmp_path / 'other'} now" in capsys.readouterr().err
    root = (tmp_path / "other").rename(root)
    checkpoint.write_bytes(b"weights b")
    assert cli.main(command(root, out, checkpoint)) == 2
    assert "results of another run: checkpoint_sha256" in capsys.readouterr().err
    (out / "manifest.json").write_text("[]")
    assert cli.main(command(root, out, checkpoint)) == 2
    assert "not a readable manifest" in capsys.readouterr().err


def test_sequence_lists(root: Path, tmp_path: Path) -> None:
    assert davis_command.read_sequences(None, root) == ["one", "two"]
    assert davis_command.read_sequences("two, one,", root) == ["two", "one"]
    many = [f"sequence-{i}" for i in range(300)]  # longer than the name of a file may be
    assert davis_command.read_sequences(",".join(many), root) == many
    with pytest.raises(InputError, match="does not exist"):
        semi_supervised.find_sequence(root, "one" * 100)
    (tmp_path / "names.txt").write_text("one\n\ntwo\n")
    assert davis_command.read_sequences(str(tmp_path / "names.txt"), root) == ["one", "two"]
    pairs = [f"/JPEGImages/480p/one/{i:05d}.jpg /Annotations/480p/one/{i:05d}.png" for i in range(3)]
    (tmp_path / "val.txt").write_text("\n".join(pairs))
    assert davis_command.read_sequences(str(tmp_path / "val.txt"), root) == ["one"]
    with pytest.raises(AusmError, match="no sequence"):
        davis_command.read_sequences(",", root)


def test_jpeg_truth_is_not_needed_for_images_of_any_suffix(root: Path, streams) -> None:
    for path in (root / "JPEGImages/480p/one").iterdir():
        image = cv2.imread(str(path))
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), image)
    assert davis("model", root, ["one"]).sequences[0].frames == FRAMES
