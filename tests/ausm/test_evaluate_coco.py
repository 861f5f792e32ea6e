"""`ausm eval coco` on a small set in COCO's layout: figures, scaling, faults."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import ausm
from ausm import cli, weights
from ausm.config import nano
from ausm.errors import AusmError, InputError, SizeError
from ausm.evaluate import coco, images
from ausm.evaluate.images import Detections, detect
from ausm.metrics.tubes import encode_segmentation
from tests.ausm.scripted_model import ScriptedModel


def rectangle(y: int, x: int, h: int, w: int) -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[y : y + h, x : x + w] = True
    return mask


TRUTH = {5: [(rectangle(4, 4, 20, 30), 7), (rectangle(30, 40, 30, 50), 3)], 2: [(rectangle(8, 50, 40, 40), 7)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    annotations = []
    for image_id, objects in TRUTH.items():
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        for mask, category in objects:
            ys, xs = np.nonzero(mask)
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            shape = {"segmentation": encode_segmentation(mask), "area": int(mask.sum()), "bbox": box}
            annotations.append(row | shape)
    table = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in TRUTH],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, 81)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(table))
    return tmp_path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ausm.load("nano", device="cpu", weights=False)


def run(root: Path, found: dict[str, Detections], monkeypatch: pytest.MonkeyPatch, **options):
    """The figures for detections known by the mean of the image they belong to."""
    files = {int(p.stem): float(cv2.imread(str(p)).mean()) for p in root.glob("*.png")}

    def by_image(_model, showings, _short_side, _head, _dedupe, _part_gap) -> Detections:
        mean = float(showings[-1].mean())
        return found[min(files, key=lambda i: abs(files[i] - mean))]

    monkeypatch.setattr(images, "detect", by_image)

    class Model:
        config = nano()

    return coco(Model(), root, root / "truth.json", **options)[0]


def detections(masks: list[np.ndarray], scores: list[float], classes: list[int]) -> Detections:
    return Detections(masks, np.array(scores, np.float32), np.array(classes))


def test_perfect_detections(root: Path, monkeypatch) -> None:
    found = {i: detections([m for m, _ in o], [0.9] * len(o), [c - 1 for _, c in o]) for i, o in TRUTH.items()}
    assert run(root, found, monkeypatch)[:3] == pytest.approx((100, 100, 100))
    aware = run(root, found, monkeypatch, class_agnostic=False)
    assert aware.AR10 == 100.0 and aware.images == 2 and np.isnan(aware.AP_large)
    wrong = {i: d._replace(classes=np.zeros(len(d.masks), int)) for i, d in found.items()}
    assert run(root, wrong, monkeypatch, class_agnostic=False).AP == 0.0
    assert run(root, wrong, monkeypatch).AR10 == 100.0


def test_nothing_found_and_false_alarms(root: Path, monkeypatch) -> None:
    nothing = dict.fromkeys(TRUTH, detections([], [], []))
    result = run(root, nothing, monkeypatch)
    assert (result.AP, result.AR10) == (0.0, 0.0)
    noisy = {
        i: detections([rectangle(0, 0, 3, 3), *[m for m, _ in o]], [0.99, *[0.5] * len(o)], [0] * (len(o) + 1))
        for i, o in TRUTH.items()
    }
    # two false alarms above three hits: precision 1/3, 2/4, 3/5, and never less than later ones
    assert pytest.approx(60.0) == run(root, noisy, monkeypatch).AP


def test_ten_best_of_many(root: Path, monkeypatch) -> None:
    crowd = [rectangle(0, 3 * i, 2, 2) for i in range(12)]
    found = {i: detections([*crowd, o[0][0]], [*[0.9] * 12, 0.1], [0] * 13) for i, o in TRUTH.items()}
    result = run(root, found, monkeypatch)
    assert result.AR10 == 0.0 and pytest.approx(200 / 3) == result.AR100


def test_limit_takes_the_lowest_ids(root: Path, monkeypatch) -> None:
    found = {2: detections([TRUTH[2][0][0]], [0.9], [6]), 5: detections([], [], [])}
    result = run(root, found, monkeypatch, limit=1)
    assert result.images == 1 and pytest.approx(100.0) == result.AP


def test_queries_of_a_model(model) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    once, again = detect(model, [image], 64), detect(model, [image], 64)
    assert 0 < len(once.masks) <= 100 and all(m.shape == (64, 96) and m.any() for m in once.masks)
    assert (np.diff(once.scores) <= 0).all() and once.scores.max() <= 1 and not once.classes.any()
    assert all(np.array_equal(a, b) for a, b in zip(once.masks, again.masks, strict=True))
    aware = detect(model, [image], 64, "coco")
    assert len(aware.masks) <= 100 and 0 <= aware.classes.min() <= aware.classes.max() < 80
    with pytest.raises(SizeError, match="2 sizes"):
        detect(model, [image, image[:32]], 64)


class OnImages(ScriptedModel):
    """With the state of a model, whose storage is its own choice."""

    def new_state(self, height, width):
        return super().new_state(height, width, torch.float32)


def test_what_overlaps_a_better_mask_ranks_lower_when_asked() -> None:
    world = {"twin": ((8, 8, 40, 40), 2.0), "best": ((8, 8, 40, 40), 4.0), "other": ((8, 48, 40, 80), 1.0)}
    image = np.zeros((64, 96, 3), np.uint8)
    every, ranked = (detect(OnImages([world]), [image], 64, dedupe=dedupe) for dedupe in (False, True))
    assert len(every.masks) == len(ranked.masks) == 3 and np.array_equal(every.masks[0], every.masks[1])
    best, twin, other = every.scores
    assert ranked.scores.tolist() == pytest.approx([best, other, twin * np.exp(-2)])  # IoU 1: exp(-1 / 0.5)
    assert np.array_equal(ranked.masks[1], every.masks[2])


def test_a_mask_is_in_one_place_when_asked() -> None:
    class Model(OnImages):
        def predict(self, state, image, ids, active=None):
            out = super().predict(state, image, ids)
            out.masks[0, 0, 8:, 16:] = 5.0  # a second part of 32 x 32 pixels
            return out

    image = np.zeros((64, 96, 3), np.uint8)
    whole, part = (detect(Model([{"a": (0, 0, 16, 16)}]), [image], 64, dedupe=d).masks[0] for d in (False, True))
    assert whole[:16, :16].any() and whole[40:, 72:].all()
    assert not part[:16, :16].any() and part[40:, 72:].all()
    every = detect(Model([{"a": (0, 0, 16, 16)}]), [image], 64, dedupe=True, part_gap=0)
    assert np.array_equal(every.masks[0], whole)
    for gap, marked in ((8, [False, True]), (0, [True, True])):  # what the next showing takes for the object's marks
        model = Model([{"a": ((0, 0, 16, 16), 4.0)}] * 2)
        detect(model, [image] * 2, 64, dedupe=True, part_gap=gap)
        marks = model.absorbed[1][1][0]
        assert [bool(marks[0, 0]), bool(marks[-2, -2])] == marked


def test_a_track_keeps_the_part_that_it_was_marked_on() -> None:
    """On the second showing the other part is the larger one."""

    class Model(OnImages):
        def predict(self, state, image, ids, active=None):
            out = super().predict(state, image, ids)
            if len(ids):
                out.masks[0, 0, 8:, 16:] = 5.0
            return out

    world = {"a": ((0, 0, 16, 16), 4.0)}
    found = detect(Model([world] * 2), [np.zeros((64, 96, 3), np.uint8)] * 2, 64, dedupe=True)
    assert found.masks[0][:16, :16].any() and not found.masks[0][40:, 72:].any()


def test_decay_by_hand() -> None:
    """Of four columns the masks have 0 and 1, 1 and 2, 0 to 2, and none; the third is the best."""
    masks = torch.zeros(4, 1, 4, dtype=torch.bool)
    masks[0, 0, 0:2] = masks[1, 0, 1:3] = masks[2, 0, 0:3] = True
    factors = images.decay(masks, torch.tensor([0.5, 0.6, 0.9, 0.1]))
    one, two = np.exp(-((2 / 3) ** 2) / 0.5), np.exp(-((1 / 3) ** 2) / 0.5)
    assert factors.tolist() == pytest.approx([one * two, one, 1.0, 1.0])


def test_without_classes_objectness_alone_ranks() -> None:
    """It was taught how good its mask is: how sharp the mask is does not count."""

    class Model(OnImages):
        def predict(self, state, image, ids, active=None):
            out = super().predict(state, image, ids)
            masks = out.masks.clone()
            masks[0, 0] = masks[0, 0] / 10
            return out._replace(masks=masks)

    world = {"soft": ((8, 8, 40, 40), 3.0), "sharp": ((8, 48, 40, 80), 2.0)}
    found = detect(Model([world]), [np.zeros((64, 96, 3), np.uint8)], 64)
    assert found.masks[0][20, 20] and found.masks[1][20, 60]
    assert found.scores == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "unique"), [({}, True), ({"class_agnostic": False}, False), ({"dedupe": False}, False)]
)
def test_duplicates_rank_lower_where_classes_do_not_count(root, model, monkeypatch, options, unique) -> None:
    asked: list[tuple[bool, int]] = []

    def spy(_model, _showings, _short_side, _head, dedupe, part_gap):
        asked.append((dedupe, part_gap))
        return detections([], [], [])

    monkeypatch.setattr(images, "detect", spy)
    coco(model, root, root / "truth.json", part_gap=24, **options)
    assert asked == [(unique, 24)] * 2


def test_a_second_showing_tracks_what_the_first_detected(model, monkeypatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    asked: list[int] = []
    real = model.predict

    def predict(state, frame, ids):
        asked.append(len(ids))
        return real(state, frame, ids)

    monkeypatch.setattr(model, "predict", predict)
    monkeypatch.setattr(images, "TRACK_THRESHOLD", 0.0)
    detect(model, [image] * 3, 64)
    assert asked[0] == 0 and 0 < asked[1] <= asked[2] <= 100
    asked.clear()
    monkeypatch.setattr(images, "TRACK_THRESHOLD", 1.0)
    detect(model, [image] * 3, 64)
    assert asked == [0, 0, 0]


def test_command(root: Path, model, capsys) -> None:
    path = root / "random.safetensors"
    weights.save(path, model, {})
    command = [
        "eval",
        "coco",
        "--images",
        str(root),
        "--annotations",
        str(root / "truth.json"),
        "--checkpoint",
        str(path),
    ]
    assert cli.main([*command, "--class-agnostic", "--short-side", "64", "--out", str(root / "found.json")]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["images"] == 2 and figures["AP_large"] is None and 0 <= figures["AR10"] <= 100
    rows = json.loads((root / "found.json").read_text())
    assert {row["image_id"] for row in rows} <= {2, 5}  # an untrained model may see nothing on one of them
    assert isinstance(rows[0]["segmentation"]["counts"], str)
    agnostic = [*command, "--class-agnostic", "--short-side", "64", "--out", str(root / "all.json")]
    assert cli.main([*agnostic, "--no-dedupe"]) == 0  # overlaps lower scores unless asked not to
    every = json.loads((root / "all.json").read_text())
    assert len(every) == len(rows) and sum(row["score"] for row in every) > sum(row["score"] for row in rows)
    for scaled in (["--repeat", "2"], ["--traversal"]):
        assert cli.main([*command, *scaled, "--short-side", "64", "--limit", "1"]) == 0
    capsys.readouterr()


def test_command_settings(root: Path, model, monkeypatch, capsys) -> None:
    weights.save(root / "random.safetensors", model, {})
    asked: list[int] = []
    real = images.detect

    def spy(*options):
        asked.append(options[-1])
        return real(*options)

    monkeypatch.setattr(images, "detect", spy)
    command = ["eval", "coco", "--images", str(root), "--annotations", str(root / "truth.json"), "--limit", "1"]
    command += ["--checkpoint", str(root / "random.safetensors"), "--short-side", "64", "--out", str(root / "f.json")]
    assert cli.main([*command, "--class-agnostic", "--part-gap", "24"]) == 0 and asked == [24]
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (figures["dedupe"], figures["part_gap"]) == (True, 24)
    (root / "f.json.partial").write_text("of a run that broke off")
    for wrong in (["--part-gap", "-1"], ["--repeat", "0"], ["--limit", "0"], ["--images", str(root / "none")]):
        assert cli.main([*command, *wrong]) == 2
        assert (root / "f.json.partial").read_text() == "of a run that broke off"


def test_faults(root: Path, model) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        coco(model, root, root / "none.json")
    (root / "list.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"list\.json: not a COCO annotation file"):
        coco(model, root, root / "list.json")
    table = json.loads((root / "truth.json").read_text())
    (root / "few.json").write_text(json.dumps(table | {"categories": table["categories"][:9]}))
    with pytest.raises(InputError, match="9 categories, the model's heads"):
        coco(model, root, root / "few.json", class_agnostic=False)
    (root / "empty.json").write_text(json.dumps(table | {"images": []}))
    with pytest.raises(InputError, match="lists no image"):
        coco(model, root, root / "empty.json")
    cv2.imwrite(str(root / "2.png"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(SizeError, match=r"2\.png 10x10, annotation 64x96"):
        coco(model, root, root / "truth.json")
    (root / "2.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images are missing, first 2\.png"):
        coco(model, root, root / "truth.json", progress=lambda _: pytest.fail("started without all images"))
    for limit in (0, -1):
        with pytest.raises(InputError, match=f"limit {limit}: at least 1"):
            coco(model, root, root / "truth.json", limit=limit)
        with pytest.raises(InputError, match=f"repeat {limit}: at least 1"):
            coco(model, root, root / "truth.json", repeat=limit)
    with pytest.raises(AusmError, match="part_gap=-1, must be 0 to 4096"):
        coco(model, root, root / "truth.json", part_gap=-1)
    for side in (-5, 0, 10):
        with pytest.raises(AusmError, match=f"short_side={side}, must be"):
            coco(model, root, root / "truth.json", short_side=side)
        with pytest.raises(AusmError, match=f"short_side={side}, must be"):  # whoever else asks, as pseudo_labels does
            detect(model, [np.zeros((64, 96, 3), np.uint8)], side)


def test_a_bad_photo_or_a_fault_of_the_judge_costs_no_detections(root: Path, model, monkeypatch, capsys) -> None:
    weights.save(root / "random.safetensors", model, {})
    command = ["eval", "coco", "--images", str(root), "--annotations", str(root / "truth.json"), "--class-agnostic"]
    command += ["--checkpoint", str(root / "random.safetensors"), "--out", str(root / "found.json")]
    monkeypatch.setattr(images, "detect", lambda *_: detections([rectangle(1, 1, 9, 9)], [0.5], [0]))
    for limit in ("0", "-1"):
        assert cli.main([*command, "--limit", limit]) == 2
        assert f"--limit {limit}: at least 1" in capsys.readouterr().err
    good = (root / "5.png").read_bytes()
    (root / "5.png").write_bytes(good[:3000])
    assert cli.main(command) == 2
    assert "the detections on the first 1 of 2 images are in" in capsys.readouterr().err
    assert [row["image_id"] for row in json.loads((root / "found.json.partial").read_text())] == [2]
    assert not (root / "found.json").exists()
    (root / "5.png").write_bytes(good)
    monkeypatch.setattr(images, "judge", lambda *_: exec("raise MemoryError"))
    with pytest.raises(MemoryError):
        cli.main(command)
    assert [row["image_id"] for row in json.loads((root / "found.json").read_text())] == [2, 5]
    assert not (root / "found.json.partial").exists()
