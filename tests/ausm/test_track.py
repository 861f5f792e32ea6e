"""`ausm track` with a stream whose masks are known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ausm.errors import AusmError, NotFiniteError, SizeError
from ausm.io import open_frames
from ausm.masks import read_palette_png, write_palette_png
from ausm.track import Prompt, read_prompt, track
from ausm.tracks import StepOutput, TrackState
from tests.ausm.fake_stream import FakeStream, squares

VALUES = (200, 120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clip"
    path.mkdir()
    for i in range(4):
        cv2.imwrite(str(path / f"view{i + 8}.png"), squares({200: 4 + 2 * i, 120: 30 - 2 * i}))
    return path


def objects(index: int, *values: int) -> np.ndarray:
    image = squares({200: 4 + 2 * index, 120: 30 - 2 * index})[..., 0]
    return np.stack([image == v for v in values])


def test_prompted_objects_keep_the_values_of_their_png(folder: Path, tmp_path: Path) -> None:
    labels = np.zeros((32, 48), np.uint8)
    labels[objects(0, 120)[0]], labels[objects(0, 200)[0]] = 2, 7
    write_palette_png(tmp_path / "prompt.png", labels)
    source = open_frames(folder)
    result = track(FakeStream(), source, tmp_path / "out", read_prompt(tmp_path / "prompt.png", 0, source))
    assert (result.frames, result.tracks, result.prompted, result.discovered) == (4, 2, 2, 0)
    files = sorted(p.name for p in (tmp_path / "out/masks").iterdir())
    assert files == ["view10.png", "view11.png", "view8.png", "view9.png"]
    for i in range(4):
        found = read_palette_png(tmp_path / f"out/masks/view{i + 8}.png")
        assert np.array_equal(found == 2, objects(i, 120)[0]) and np.array_equal(found == 7, objects(i, 200)[0])
    assert len(list(open_frames(tmp_path / "out/overlay.mp4"))) == 4


def test_prompt_later_does_not_collide_with_discoveries(folder: Path, tmp_path: Path) -> None:
    # id 1 is reserved for the prompt of frame 2, although the stream gives its own id 1 to a discovery on frame 0
    prompt = Prompt(np.zeros((1, 32, 48), bool), [1], 2)
    prompt.masks[0, :3, :3] = True
    result = track(FakeStream(discover=True), open_frames(folder), tmp_path / "out", prompt)
    assert (result.prompted, result.discovered) == (1, 2)
    first, third = (read_palette_png(tmp_path / f"out/masks/view{n}.png") for n in (8, 10))
    assert set(np.unique(first)) == {0, 2, 3}
    assert np.array_equal(third == 1, prompt.masks[0])  # on its frame the mask is the prompt
    table = json.loads((tmp_path / "out/tracks.json").read_text())
    summaries = {t["id"]: t for t in table["tracks"]}
    assert [summaries[i]["source"] for i in (1, 2, 3)] == ["prompt", "discovered", "discovered"]
    assert [summaries[i]["first_frame"] for i in (1, 2, 3)] == [2, 0, 0]
    assert [len(f["tracks"]) for f in table["frames"]] == [2, 2, 3, 3]
    assert table["frames"][0]["name"] == "view8"
    by_hand = {"id": 2, "score": 0.62, "box": [30, 11, 8, 8], "area": 64}
    assert by_hand in table["frames"][0]["tracks"]


class OverlappingStream(FakeStream):
    """Every object also claims the top left corner; lost, tentative and removed ones come along with a mask."""

    def step(self, image: np.ndarray) -> StepOutput:
        super().step(image)
        return self.current

    @property
    def current(self) -> StepOutput:
        output = super().current
        for t in output.tracks:
            t.mask[0, 0] = True
        ghosts = [output.tracks[0]._replace(track_id=90 + s, state=s) for s in TrackState if s != TrackState.TRACKED]
        return output._replace(tracks=(*output.tracks, *ghosts))


def test_overlap_goes_to_prompted_then_to_the_higher_score(folder: Path, tmp_path: Path) -> None:
    track(OverlappingStream(discover=True), open_frames(folder), tmp_path / "out")
    labels = read_palette_png(tmp_path / "out/masks/view9.png")
    assert labels[0, 0] == labels[objects(1, 200)[0]][0] == 2  # grey 200 scores higher
    assert set(np.unique(labels)) == {0, 1, 2}  # no ghosts
    track(OverlappingStream(discover=True), open_frames(folder), tmp_path / "out", Prompt(objects(0, 120), [9], 0))
    assert read_palette_png(tmp_path / "out/masks/view9.png")[0, 0] == 9
    assert read_palette_png(tmp_path / "out/masks/view8.png")[0, 0] == 1  # the prompt frame: exactly the prompt


def test_exactly_255_ids(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., :] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    (tmp_path / "many").mkdir()
    cv2.imwrite(str(tmp_path / "many/a.png"), image)
    reserved = Prompt(image[..., 0][None] == 255, [3], 0)
    result = track(FakeStream(discover=True), open_frames(tmp_path / "many"), tmp_path / "out", reserved)
    assert (result.tracks, result.not_in_png) == (255, 0)
    labels = read_palette_png(tmp_path / "out/masks/a.png")
    assert len(np.unique(labels)) == 256 and labels[15, 15] == 3


def test_ids_above_255_are_counted_and_left_out_of_the_png(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for i in range(2):
        image = np.zeros((16, 16, 3), np.uint8)
        image[..., :] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
        cv2.imwrite(str(tmp_path / f"many/{i}.png"), image)

    class Forgetful(FakeStream):
        def step(self, image: np.ndarray) -> StepOutput:
            self.values = {}  # every frame finds 255 new objects
            return super().step(image)

    result = track(Forgetful(discover=True), open_frames(tmp_path / "many"), tmp_path / "out")
    assert (result.frames, result.tracks, result.not_in_png) == (2, 510, 255)
    assert not read_palette_png(tmp_path / "out/masks/1.png").any()
    assert len(json.loads((tmp_path / "out/tracks.json").read_text())["frames"][1]["tracks"]) == 255


def test_a_second_run_replaces_the_first_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    track(FakeStream(discover=True), open_frames(folder), out)
    (out / "masks/view99.png").write_bytes(b"left over")
    track(FakeStream(discover=True), open_frames(folder), out)
    assert len(list((out / "masks").iterdir())) == 4
    strange = tmp_path / "strange/masks"
    strange.mkdir(parents=True)
    (strange / "mine.png").write_bytes(b"precious")
    with pytest.raises(AusmError, match="1 files that are not of an earlier run"):
        track(FakeStream(discover=True), open_frames(folder), strange.parent)
    assert (strange / "mine.png").read_bytes() == b"precious"
    (tmp_path / "clip").rename(tmp_path / "masks")
    with pytest.raises(AusmError, match="overwrite the input"):
        track(FakeStream(discover=True), open_frames(tmp_path / "masks"), tmp_path)


def test_the_input_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    track(FakeStream(discover=True), open_frames(folder), out)
    video = (out / "overlay.mp4").read_bytes()
    (tmp_path / "link.mp4").symlink_to(out / "overlay.mp4")
    (out / "masks/copy.png").write_bytes(video)  # masks of an earlier run are removed
    for path in (out / "overlay.mp4", tmp_path / "link.mp4", out / "masks/copy.png"):
        with pytest.raises(AusmError, match=f"overwrite the input {path}"):
            track(FakeStream(discover=True), open_frames(path), out)
    assert (out / "overlay.mp4").read_bytes() == (out / "masks/copy.png").read_bytes() == video


def test_a_prompt_behind_the_end_of_a_video_is_refused_before_it_is_run(folder: Path, tmp_path: Path) -> None:
    track(FakeStream(discover=True), open_frames(folder), tmp_path / "out")
    source = open_frames(tmp_path / "out/overlay.mp4")
    write_palette_png(tmp_path / "prompt.png", np.ones((32, 48), np.uint8))
    assert read_prompt(tmp_path / "prompt.png", 5, source).frame == 5  # its header may count two frames too few
    with pytest.raises(AusmError, match=r"prompt frame 6, the input has frames 0\.\.3"):
        read_prompt(tmp_path / "prompt.png", 6, source)


def test_a_prompt_that_is_refused_leaves_no_table(folder: Path, tmp_path: Path) -> None:
    class Full(FakeStream):
        def prompt(self, masks: np.ndarray) -> list[int]:
            raise AusmError("1 object prompted, 0 places")

    write_palette_png(tmp_path / "prompt.png", np.ones((32, 48), np.uint8))
    source = open_frames(folder)
    with pytest.raises(AusmError, match="0 places"):
        track(Full(discover=False), source, tmp_path / "out", read_prompt(tmp_path / "prompt.png", 0, source))
    assert not list((tmp_path / "out").glob("tracks.json*"))


def test_an_output_that_is_not_finite_ends_the_run(folder: Path, tmp_path: Path) -> None:
    class Broken(FakeStream):
        def step(self, image: np.ndarray) -> StepOutput:
            output = super().step(image)
            if self.index < 2:
                return output
            return output._replace(tracks=tuple(t._replace(score=np.nan) for t in output.tracks))

    with pytest.raises(NotFiniteError, match="frame 2: the model's output is not finite"):
        track(Broken(discover=True), open_frames(folder), tmp_path / "out")
    assert len(list((tmp_path / "out/masks").iterdir())) == 2  # what was good is kept
    assert not (tmp_path / "out/tracks.json").exists()
    track(FakeStream(discover=True), open_frames(folder), tmp_path / "out")
    with pytest.raises(NotFiniteError):
        track(Broken(discover=True), open_frames(folder), tmp_path / "out")
    assert not (tmp_path / "out/tracks.json").exists()  # that of the run before is none of these masks'


def test_faults(folder: Path, tmp_path: Path) -> None:
    source = open_frames(folder)
    write_palette_png(tmp_path / "small.png", np.ones((8, 9), np.uint8))
    with pytest.raises(SizeError, match="is 8x9, the input 32x48"):
        read_prompt(tmp_path / "small.png", 0, source)
    write_palette_png(tmp_path / "prompt.png", np.ones((32, 48), np.uint8))
    for frame, words in ((4, r"the input has frames 0\.\.3"), (-1, "frames are counted from 0")):
        with pytest.raises(AusmError, match=f"prompt frame {frame}, {words}"):
            read_prompt(tmp_path / "prompt.png", frame, source)
    (folder / "view11.png").write_bytes(b"\x89PNG broken since the folder was opened")
    with pytest.raises(AusmError, match=r"view11\.png"):
        track(FakeStream(discover=True), source, tmp_path / "out")
    assert not (tmp_path / "out/tracks.json").exists()  # only a finished run has one
    assert (tmp_path / "out/tracks.json.partial").exists()  # masks of some frames are there: they are ours
    cv2.imwrite(str(folder / "view11.png"), squares({}))
    result = track(FakeStream(discover=True), source, tmp_path / "out")  # an unfinished run may be repeated
    assert result.frames == 4
