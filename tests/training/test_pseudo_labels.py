"""A model's own labels: what is added, what is not, and that the reader takes the table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from layouts import box, write_coco

from ausm.errors import InputError, SizeError
from ausm.evaluate.images import Detections
from training import pseudo_labels
from training.pseudo_labels import add_labels, covered, main
from training.readers import get_object
from training.readers_coco import CocoReader

NEW = box(12, 16, 24, 36)
FOUND = [
    (box(0, 0, 24, 9), 0.9),  # labelled on photo 500
    (NEW, 0.8),
    (box(0, 20, 10, 40), 0.2),  # not sure
    (box(0, 30, 5, 35), 0.7),  # tiny
]


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Detections([m for m, _ in FOUND], np.array([s for _, s in FOUND]), np.zeros(len(FOUND), int))
    monkeypatch.setattr(pseudo_labels, "detect", lambda model, showings, short_side, dedupe: everything)


def test_what_no_label_covers_is_added(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    before = json.loads(path.read_text())
    table, added = add_labels(None, path, tmp_path / "images")
    assert table["annotations"][: len(before["annotations"])] == before["annotations"]
    assert table["images"] == before["images"] and table["categories"] == before["categories"]
    rows = table["annotations"][len(before["annotations"]) :]
    assert added == len(rows)
    assert len({row["id"] for row in table["annotations"]}) == len(table["annotations"])
    of_500 = [(row["score"], row["area"], row["category_id"]) for row in rows if row["image_id"] == 500]
    assert of_500 == [(0.8, 240, 1)]
    assert [row["area"] for row in rows if row["image_id"] == 501] == [240]  # a crowd region is a label, too
    assert [row["area"] for row in rows if row["image_id"] == 502] == [216, 240]  # nothing is labelled there
    more = tmp_path / "more.json"
    more.write_text(json.dumps(table))
    reader = CocoReader(more, tmp_path / "images", exhaustive=False, classes=False)
    names = [reader.item_name(item) for item in range(len(reader))]
    bits = reader.load(names.index(f"{502:012d}"), [0]).bits[0]
    assert any(np.array_equal(get_object(bits, k), NEW) for k in range(2))
    assert f"{9:012d}" not in names  # a held-out photo stays one


def test_covered_is_measured_on_the_smaller_mask() -> None:
    large, small, beside = box(0, 0, 24, 20), box(4, 4, 8, 8), box(0, 15, 24, 40)
    assert covered(small, [large]) and covered(large, [small])
    assert not covered(beside, [large])  # 120 of 480 pixels
    assert covered(box(0, 13, 24, 40), [large]) and not covered(large, [])


def test_labels_are_checked_against_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = Detections([NEW, box(12, 18, 24, 38)], np.array([0.8, 0.7]), np.zeros(2, int))
    asked = []
    monkeypatch.setattr(
        pseudo_labels, "detect", lambda model, showings, *how, **parts: asked.append((how, parts)) or twice
    )
    rows = add_labels(None, write_coco(tmp_path), tmp_path / "images", short_side=384)[0]["annotations"]
    assert asked and all(call == ((384,), {"dedupe": True}) for call in asked)
    assert [row["score"] for row in rows if row["image_id"] == 502 and "score" in row] == [0.8]


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    with pytest.raises(InputError, match=r"least 0\.0"):
        add_labels(None, path, tmp_path / "images", least=0.0)
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"categories": [], "annotations": []}))
    with pytest.raises(InputError, match="lists no category"):
        add_labels(None, path, tmp_path / "images")
    table["images"][0]["height"] = 25
    path.write_text(json.dumps(table))
    with pytest.raises(SizeError, match=r"9\.jpg 24x40, annotation 25x40"):
        add_labels(None, path, tmp_path / "images")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pseudo_labels.weights, "load", lambda name, device: name)
    path = write_coco(tmp_path)
    words = ["x", "--weights", "nano", "--annotations", str(path), "--images", str(tmp_path / "images")]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "more.json"), "--least", "0.85"])
    assert main() == 0
    added = [row for row in json.loads((tmp_path / "more.json").read_text())["annotations"] if "score" in row]
    assert [row["area"] for row in added] == [216] and "1 of them added" in capsys.readouterr().out
    for same in (path, tmp_path / "images" / ".." / path.name):
        monkeypatch.setattr(sys, "argv", [*words, "--out", str(same)])
        assert main() == 2 and "would overwrite" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path)])
    assert main() == 2 and "is a folder, a file is needed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(path / "more.json")])
    assert main() == 2 and "is a file, a folder is needed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words[:4], str(tmp_path / "none.json"), *words[5:], "--out", "unused"])
    assert main() == 2 and "none.json" in capsys.readouterr().err
