"""Drawings and video files."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ausm.errors import AusmError, ImageError, SizeError
from ausm.tracks import Source, Track, TrackState
from ausm.visualize import Drawn, VideoWriter, colour_of, contact_sheet, draw_caption, draw_tracks, name_of

GREY = np.full((96, 128, 3), 100, np.uint8)


def square(y: int = 30, x: int = 40, side: int = 40) -> np.ndarray:
    mask = np.zeros((96, 128), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_mask_is_tinted_with_the_colour_of_its_id() -> None:
    drawn = draw_tracks(GREY, [Drawn(3, square(), "cup", 0.9, Source.DISCOVERED)])
    expected = 0.55 * 100 + 0.45 * np.array(colour_of(3))
    assert np.abs(drawn[50, 60] - expected).max() <= 1  # inside, away from the contour
    assert np.array_equal(drawn[90, 5], GREY[90, 5])  # outside
    assert (GREY == 100).all()  # the input is left untouched
    again = draw_tracks(np.zeros_like(GREY), [Drawn(3, square(5, 5), "", 0.1, Source.PROMPT)])
    assert np.abs(again[30, 30] - 0.45 * np.array(colour_of(3))).max() <= 1  # another frame, the same colour


def test_colours_of_live_ids_differ() -> None:
    colours = {colour_of(i) for i in range(1, 101)}
    assert len(colours) == 100


def test_prompted_and_discovered_look_different() -> None:
    def rim(source: Source) -> np.ndarray:
        return draw_tracks(GREY, [Drawn(1, square(), "", 0.5, source)])[45:65, 38:42].reshape(-1, 3)

    white = (255, 255, 255)
    assert (rim(Source.PROMPT) == white).all(axis=1).any()
    assert not (rim(Source.DISCOVERED) == white).all(axis=1).any()
    solid = (draw_tracks(GREY, [Drawn(1, square(), "", 0.5, Source.PROMPT)])[45:65, 40] == colour_of(1)).all(axis=1)
    dashed = (draw_tracks(GREY, [Drawn(1, square(side=60), "", 0.5, Source.DISCOVERED)]) == colour_of(1)).all(axis=2)
    assert solid.all()
    assert 0.3 < dashed[40:85, 99].mean() <= 1.0  # box line and dashes


def test_tracks_of_a_step_and_lost_ones() -> None:
    empty = np.zeros((96, 128), bool)
    seen = Track(1, square(), 0.9, 3, "cup", 0.8, TrackState.TRACKED, Source.DISCOVERED, "", 0, 0, 1, 0)
    lost = seen._replace(track_id=2, mask=empty, state=TrackState.LOST)
    same = Drawn(1, square(), "cup (0.80)", 0.9, 0)
    assert np.array_equal(draw_tracks(GREY, [seen, lost]), draw_tracks(GREY, [same]))
    assert np.array_equal(draw_tracks(GREY, [lost]), GREY)


@pytest.mark.parametrize("corner", [(0, 0), (0, 88), (56, 0), (56, 88)])
def test_objects_at_the_border_and_odd_names(corner: tuple[int, int]) -> None:
    drawn = draw_tracks(GREY, [Drawn(12345, square(*corner), "très long " * 20, 0.5, Source.PROMPT)])
    assert drawn.shape == GREY.shape and (drawn != GREY).any()


def test_refusals() -> None:
    with pytest.raises(SizeError, match="mask of track 1 4x8, image 96x128"):
        draw_tracks(GREY, [Drawn(1, np.ones((4, 8), bool), "", 0.5, 0)])
    with pytest.raises(ImageError, match="float64"):
        draw_tracks(GREY / 255, [])
    with pytest.raises(ImageError, match="0 images"):
        contact_sheet([])


def test_contact_sheet_places_every_image() -> None:
    images = [np.full((96, 128, 3), 40 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, columns=3, width=64, gap=4)
    assert sheet.shape == (2 * 52 + 4, 3 * 68 + 4, 3)
    centres = [int(sheet[4 + 24 + 52 * (i // 3), 4 + 32 + 68 * (i % 3), 0]) for i in range(5)]
    assert centres == [0, 40, 80, 120, 160]
    assert draw_caption(images[0], "frame 7")[:20].max() == 255


@pytest.mark.parametrize("ffmpeg", [True, False])
def test_video_file_has_every_frame_at_the_rate(tmp_path: Path, ffmpeg: bool) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, rate=12.5, ffmpeg=ffmpeg) as writer:
        for i in range(9):
            writer.write(np.full((65, 81, 3), (25 * i, 200, 30), np.uint8))
        with pytest.raises(SizeError, match="frame 9 is 60x81, the first 65x81"):
            writer.write(np.zeros((60, 81, 3), np.uint8))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 9 and frames[0].shape[:2] == (66, 82)
    assert abs(float(frames[8][:, :, 2].mean()) - 200) < 8  # red, in OpenCV's order


@pytest.mark.parametrize("ffmpeg", [True, False])
def test_video_that_cannot_be_written(tmp_path: Path, ffmpeg: bool) -> None:
    with (
        pytest.raises(AusmError, match="no_folder"),
        VideoWriter(tmp_path / "no_folder/v.mp4", ffmpeg=ffmpeg) as writer,
    ):
        for _ in range(100):
            writer.write(GREY)


def test_what_broke_off_is_not_hidden_by_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "no_folder/v.mp4") as writer:
        writer.write(GREY)
        raise KeyboardInterrupt


def test_ctrl_c_leaves_the_encoder_to_finish(tmp_path: Path) -> None:
    """The terminal sends it to the whole process group."""
    writer = VideoWriter(tmp_path / "v.mp4")
    writer.write(GREY)
    assert writer._process is not None and os.getpgid(writer._process.pid) != os.getpgid(0)
    writer.close()
    assert cv2.VideoCapture(str(tmp_path / "v.mp4")).read()[0]


def test_a_class_is_named_with_its_probability() -> None:
    assert name_of("cup", "person", 0.15) == "cup"  # its own name says more
    assert name_of("", "person", 0.154) == "person (0.15)"
    assert name_of("", "", 0.0) == ""
