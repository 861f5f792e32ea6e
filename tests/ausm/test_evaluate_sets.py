"""MOSE, YouTube-VOS, YouTube-VIS and OVIS on small trees in their layouts, with a stream whose masks are known."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ausm
from ausm import cli
from ausm.class_names import CLASS_NAMES
from ausm.config import nano
from ausm.errors import AusmError, InputError, SizeError
from ausm.evaluate import prompted_command
from ausm.evaluate.discovered import load_video_set, run_discovered
from ausm.evaluate.discovered_command import choose_head
from ausm.evaluate.prompted import mose_videos, run_prompted, youtube_vos_videos
from ausm.masks import read_palette_png, write_palette_png
from ausm.metrics.tubes import encode_segmentation
from tests.ausm.fake_stream import FakeStream, squares

FRAMES = 5
STEMS = [f"{5 * i:05d}" for i in range(FRAMES)]  # every fifth frame, as YouTube-VOS names them


def scene(i: int) -> np.ndarray:
    """Grey 200 from the start, grey 120 from frame 2 on."""
    return squares({200: 4 + 2 * i, 120: 20 + 2 * i} if i >= 2 else {200: 4 + 2 * i})


def annotation(i: int, *values: int) -> np.ndarray:
    return sum(((k + 1) * (scene(i)[..., 0] == v) for k, v in enumerate((200, 120)) if v in values), np.zeros((32, 48)))


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, stem in enumerate(STEMS):
        Image.fromarray(scene(i)).save(folder / f"{stem}.jpg", format="PNG")  # exact values for the stream


def write_truth(folder: Path, frames: dict[int, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, values in frames.items():
        write_palette_png(folder / f"{STEMS[i]}.png", annotation(i, *values).astype(np.uint8))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    made: list[FakeStream] = []

    class Model:
        config = nano()

    def make(model, discover=True, seed=0, config=None) -> FakeStream:
        made.append(FakeStream(discover and config.get("discover", True)))
        made[-1].config = config
        return made[-1]

    monkeypatch.setattr(ausm, "StreamConfig", dict)
    monkeypatch.setattr(ausm, "Stream", make)
    monkeypatch.setattr(ausm, "load", lambda name, device: Model())
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    return tmp_path / "a.safetensors"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as pack:
        return sorted(pack.namelist())


# --- YouTube-VOS ----------------------------------------------------------------------------------------------------


@pytest.fixture
def youtube_vos(tmp_path: Path) -> Path:
    """A validation split: object 2 enters at the third frame, whose annotation shows object 1 too."""
    root = tmp_path / "yt"
    write_images(root / "JPEGImages/v")
    write_truth(root / "Annotations/v", {0: (200,), 2: (200, 120)})
    objects = {"1": {"category": "cat", "frames": STEMS[:4]}, "2": {"category": "dog", "frames": STEMS[2:4]}}
    (root / "meta.json").write_text(json.dumps({"videos": {"v": {"objects": objects}}}))
    return root


def test_late_objects_enter_at_their_own_frame(youtube_vos: Path) -> None:
    (video,) = youtube_vos_videos(youtube_vos)
    assert video.given == {STEMS[0]: [1], STEMS[2]: [1, 2]} and not video.truths
    stream = FakeStream()
    found = dict(run_prompted(stream, video))
    assert stream.prompts == [(-1, [1]), (2, [2]), (2, [1])]  # before the first frame; new; given again
    for i, stem in enumerate(STEMS):
        assert np.array_equal(found[stem], annotation(i, 200, 120))


def test_youtube_vos_submission(youtube_vos: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    command = ["eval", "youtube-vos", "--root", str(youtube_vos), "--out", str(tmp_path / "o")]
    command += ["--checkpoint", str(checkpoint)]
    assert cli.main(command) == 0
    assert last_line(capsys)["J"] is None
    # the frames of meta.json only, in the folder that the server expects
    assert names_in(tmp_path / "o/submission.zip") == [f"Annotations/v/{stem}.png" for stem in STEMS[:4]]
    assert set(np.unique(read_palette_png(tmp_path / f"o/masks/v/{STEMS[3]}.png"))) == {0, 1, 2}
    assert cli.main(command) == 0 and len(streams) == 1  # nothing is done twice
    (tmp_path / f"o/masks/v/{STEMS[1]}.png").unlink()
    assert cli.main(command) == 0 and len(streams) == 2


def test_local_annotations_are_scored_and_only_first_masks_are_given(
    youtube_vos: Path, tmp_path: Path, streams, checkpoint, capsys
) -> None:
    write_truth(youtube_vos / "Annotations/v", {1: (200,), 3: (200,)})  # truth without object 2 on the last frame
    (video,) = youtube_vos_videos(youtube_vos)
    assert video.given == {STEMS[0]: [1], STEMS[2]: [2]}
    command = ["eval", "youtube-vos", "--root", str(youtube_vos), "--out", str(tmp_path / "o")]
    assert cli.main([*command, "--checkpoint", str(checkpoint)]) == 0
    figures = last_line(capsys)
    # object 1 is right on three frames, object 2 is shown on the one frame on which the truth has it no more
    assert figures["objects"] == 2 and figures["J"] == pytest.approx(50.0) and figures["F"] == pytest.approx(50.0)


def test_results_of_other_youtube_vos_data_are_not_taken(
    youtube_vos: Path, tmp_path: Path, streams, checkpoint, capsys
):
    command = ["eval", "youtube-vos", "--out", str(tmp_path / "o"), "--checkpoint", str(checkpoint)]
    assert cli.main([*command, "--root", str(youtube_vos)]) == 0 and len(streams) == 1
    assert cli.main([*command, "--root", f"{youtube_vos}/../yt"]) == 0 and len(streams) == 1  # the same folder
    shutil.copytree(youtube_vos, tmp_path / "2019")
    assert cli.main([*command, "--root", str(tmp_path / "2019")]) == 2
    assert f"root {youtube_vos} there, {tmp_path / '2019'} now" in capsys.readouterr().err
    full, fuller = (str(shutil.copytree(youtube_vos / "JPEGImages", tmp_path / name)) for name in ("full", "fuller"))
    for other in (full, fuller):
        assert cli.main([*command, "--root", str(youtube_vos), "--all-frames", other]) == 2
        assert f"all_frames None there, {other} now" in capsys.readouterr().err
    meta = json.loads((youtube_vos / "meta.json").read_text())
    meta["videos"]["v"]["objects"]["1"]["frames"].pop()
    (youtube_vos / "meta.json").write_text(json.dumps(meta))
    assert cli.main([*command, "--root", str(youtube_vos)]) == 2
    assert "list_sha256" in capsys.readouterr().err and len(streams) == 1


def test_youtube_vos_faults(youtube_vos: Path) -> None:
    (youtube_vos / f"Annotations/v/{STEMS[2]}.png").unlink()
    with pytest.raises(InputError, match="first mask of object 2 is missing"):
        youtube_vos_videos(youtube_vos)
    (youtube_vos / f"JPEGImages/v/{STEMS[3]}.jpg").unlink()
    with pytest.raises(InputError, match=f"v: .*first {STEMS[3]}"):
        youtube_vos_videos(youtube_vos)
    with pytest.raises(InputError, match=r"full/v: no such folder"):
        youtube_vos_videos(youtube_vos, youtube_vos / "full")
    (youtube_vos / "meta.json").write_text("[]")
    with pytest.raises(InputError, match=r"meta\.json: not a YouTube-VOS list"):
        youtube_vos_videos(youtube_vos)


# --- MOSE -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mose(tmp_path: Path) -> Path:
    root = tmp_path / "mose"
    for name in ("a", "b"):
        write_images(root / "JPEGImages" / name)
        write_truth(root / "Annotations" / name, {0: (200,)})
    write_truth(root / "Annotations/b", dict.fromkeys(range(FRAMES), (200,)))
    return root


def test_mose_submission_and_local_score(mose: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    assert [bool(v.truths) for v in mose_videos(mose)] == [False, True]
    command = ["eval", "mose", "--root", str(mose), "--out", str(tmp_path / "o"), "--checkpoint", str(checkpoint)]
    assert cli.main([*command, "--videos", "b"]) == 0
    assert last_line(capsys)["J"] == 100.0 and not (tmp_path / "o/submission.zip").exists()
    assert cli.main(command) == 0 and len(streams) == 2  # `b` was finished
    figures = last_line(capsys)
    assert (figures["JF"], figures["objects"], figures["videos"]) == (100.0, 1, 2)
    assert names_in(tmp_path / "o/submission.zip") == [f"{v}/{stem}.png" for v in "ab" for stem in STEMS]
    checkpoint.write_bytes(b"others")
    assert cli.main(command) == 2 and "results of another run" in capsys.readouterr().err


def test_mose_faults(mose: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    command = ["eval", "mose", "--root", str(mose), "--out", str(tmp_path / "o"), "--checkpoint", str(checkpoint)]
    assert cli.main([*command, "--videos", "a,z"]) == 2
    assert "no video ['z'] among the 2" in capsys.readouterr().err
    assert cli.main([*command, "--all-frames", str(mose)]) == 2
    write_palette_png(mose / f"Annotations/a/{STEMS[0]}.png", np.ones((4, 5), np.uint8))
    with pytest.raises(SizeError, match=f"a: annotation {STEMS[0]} is 4x5, its image 32x48"):
        list(run_prompted(FakeStream(), mose_videos(mose)[0]))
    (mose / f"Annotations/a/{STEMS[0]}.png").unlink()
    with pytest.raises(InputError, match="first frame are missing"):
        mose_videos(mose)
    with pytest.raises(InputError, match="no video"):
        mose_videos(tmp_path / "nothing")


# --- YouTube-VIS and OVIS -------------------------------------------------------------------------------------------


@pytest.fixture
def vis(tmp_path: Path) -> Path:
    """One video of two objects, the second of which enters at the third frame; true classes 1 and 2."""
    root = tmp_path / "vis"
    write_images(root / "valid/JPEGImages/v")
    rows = []
    for i, (value, category) in enumerate(((200, 1), (120, 2)), 1):
        masks = [scene(t)[..., 0] == value for t in range(FRAMES)]
        row = {"id": i, "video_id": 7, "category_id": category, "iscrowd": 0}
        rows.append(row | {"segmentations": [encode_segmentation(m) for m in masks]})
    video = {"id": 7, "height": 32, "width": 48, "length": FRAMES, "file_names": [f"v/{stem}.jpg" for stem in STEMS]}
    table = {"videos": [video], "categories": [{"id": c, "name": str(c)} for c in (2, 1)], "annotations": rows}
    (root / "valid/instances.json").write_text(json.dumps(table))
    return root


def test_results_file_and_local_ap(vis: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    command = ["eval", "youtube-vis", "--root", str(vis), "--out", str(tmp_path / "o")]
    command += ["--checkpoint", str(checkpoint), "--class-agnostic"]
    assert cli.main(command) == 0
    figures = last_line(capsys)
    assert figures["AP"] == pytest.approx(100.0) and figures["AR1"] == pytest.approx(50.0) and figures["tracks"] == 2
    with zipfile.ZipFile(tmp_path / "o/submission.zip") as pack:
        rows = json.loads(pack.read("results.json"))
    assert all(set(row) == {"video_id", "category_id", "score", "segmentations"} for row in rows)
    assert [[s is not None for s in row["segmentations"]] for row in rows] == [[True] * 5, [False] * 2 + [True] * 3]
    assert rows[0]["segmentations"][0] == encode_segmentation(scene(0)[..., 0] == 200)
    assert cli.main(command) == 0 and len(streams) == 1  # resumed
    assert last_line(capsys) == figures
    assert cli.main([*command, "--part-gap", "0"]) == 2  # other settings than those of the results
    assert "part_gap 8 there, 0 now" in capsys.readouterr().err
    command[command.index("--out") + 1] = str(tmp_path / "whole")
    assert cli.main([*command, "--part-gap", "0"]) == 0
    assert [stream.config["part_gap"] for stream in streams] == [8, 0]


def test_results_of_another_split_are_not_taken(vis: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    command = ["eval", "youtube-vis", "--root", str(vis), "--out", str(tmp_path / "o"), "--class-agnostic"]
    command += ["--checkpoint", str(checkpoint)]
    assert cli.main(command) == 0
    shutil.copytree(vis / "valid", vis / "train")  # its videos have the same ids
    assert cli.main([*command, "--split", "train"]) == 2
    assert "split valid there, train now" in capsys.readouterr().err
    assert cli.main([*command, "--images", str(vis / "train/JPEGImages")]) == 2
    assert f"images {vis / 'valid/JPEGImages'} there" in capsys.readouterr().err
    table = json.loads((vis / "valid/instances.json").read_text())
    (vis / "valid/instances.json").write_text(json.dumps(table | {"info": "corrected"}))
    assert cli.main(command) == 2
    assert "list_sha256" in capsys.readouterr().err and len(streams) == 1


def test_best_objects_of_each_frame(vis: Path) -> None:
    video = load_video_set(vis).videos[7]
    one = run_discovered(FakeStream(discover=True), video, per_frame=1)
    assert len(one) == 1 and all(one[0]["segmentations"])  # grey 200 scores higher
    assert len(run_discovered(FakeStream(discover=True), video, per_frame=2)) == 2


def test_repeat_keeps_the_last_pass(vis: Path) -> None:
    video = load_video_set(vis).videos[7]
    stream = FakeStream(discover=True)
    twice = run_discovered(stream, video, 10, repeat=True)
    assert stream.index + 1 == 3 * FRAMES - 2
    assert [r["segmentations"] for r in twice] == [
        r["segmentations"] for r in run_discovered(FakeStream(discover=True), video, 10)
    ]


def test_ovis_layout_and_class_head(vis: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    root = tmp_path / "ovis"
    root.mkdir()
    table = json.loads((vis / "valid/instances.json").read_text())
    del table["annotations"]
    (root / "annotations_valid.json").write_text(json.dumps(table))
    (vis / "valid/JPEGImages").rename(root / "valid")
    command = ["eval", "ovis", "--root", str(root), "--out", str(tmp_path / "o"), "--checkpoint", str(checkpoint)]
    assert cli.main(command) == 2
    assert "2 categories, no head ovis of that size" in capsys.readouterr().err
    assert cli.main([*command, "--class-agnostic"]) == 0
    assert last_line(capsys)["AP"] is None  # no labels
    assert choose_head({"ovis": 25, "coco": 80}, None, "ovis", [""] * 25) == "ovis"
    with pytest.raises(AusmError, match="no head coco"):
        choose_head({"coco": 80}, "coco", "ovis", [""] * 25)


def test_the_head_of_an_edition_is_known_by_the_names_of_its_categories() -> None:
    heads, unknown = {"ytvis19": 40, "ytvis21": 40}, [f"thing {i}" for i in range(40)]
    for head in heads:
        names = [name.replace(" ", "_") for name in CLASS_NAMES[head]]  # as in the files
        assert len(set(names)) == 40 and choose_head(heads, None, "youtube-vis", names) == head
    assert choose_head(heads, "ytvis21", "youtube-vis", unknown) == "ytvis21"
    assert choose_head({"ytvis21": 40}, None, "youtube-vis", unknown) == "ytvis21"
    with pytest.raises(AusmError, match=r"40 categories .* heads ytvis19 and ytvis21: choose one with --head"):
        choose_head(heads, None, "youtube-vis", unknown)
    with pytest.raises(AusmError, match=r"40 categories, no head ytvis21 of that size among \{'ytvis19': 40\}"):
        choose_head({"ytvis19": 40}, None, "youtube-vis", CLASS_NAMES["ytvis21"])


def test_names_of_categories_are_in_the_order_of_their_ids(vis: Path) -> None:
    path = vis / "valid/instances.json"
    table = json.loads(path.read_text())
    table["categories"] = [{"id": 9, "name": "giant_panda"}, {"id": 3}]
    path.write_text(json.dumps(table))
    videos = load_video_set(vis)
    assert videos.categories == [3, 9] and videos.names == ["", "giant_panda"]


def test_vis_faults(vis: Path) -> None:
    with pytest.raises(InputError, match=r"no annotation file, tried instances\.json, test\.json"):
        load_video_set(vis, "test")
    path = vis / "valid/instances.json"
    table = json.loads(path.read_text())
    wrong = table["videos"][0] | {"width": 50}
    path.write_text(json.dumps(table | {"videos": [wrong]}))
    with pytest.raises(SizeError, match="is 32x48, listed as 32x50"):
        run_discovered(FakeStream(discover=True), load_video_set(vis).videos[7], 10)
    path.write_text(json.dumps(table | {"videos": []}))
    with pytest.raises(InputError, match="lists no video"):
        load_video_set(vis)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a YouTube-VIS file"):
        load_video_set(vis)


def test_videos_named_twice_are_run_and_packed_once(mose: Path, tmp_path: Path, streams, checkpoint, capsys) -> None:
    names = sorted(path.name for path in (mose / "JPEGImages").iterdir())
    assert prompted_command.select(["a", "b"], "a, a") == ["a"]
    command = ["eval", "mose", "--root", str(mose), "--out", str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    cli.main([*command, "--videos", ",".join([names[0]] * len(names))])
    assert last_line(capsys)["videos"] == 1
    assert (tmp_path / "out/submission.zip").exists() is (len(names) == 1)


def test_numbers_without_a_meaning_are_refused(vis: Path, tmp_path: Path, capsys) -> None:
    for top in ("0", "-1"):
        assert cli.main(["eval", "ovis", "--root", str(vis), "--out", str(tmp_path / "o"), "--top", top]) == 2
        assert f"--top {top}: at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "ovis", "--root", str(vis), "--out", str(tmp_path / "o"), "--seed", "-1"])
    assert "'-1' is not a whole number >= 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
