"""Tiny copies of data sets in their official layouts, and the pictures and masks they are made of."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 40)  # (H, W)


def image_of(number: int) -> np.ndarray:
    """A flat picture that says which frame it is, and survives JPEG."""
    return np.full((*SIZE, 3), (10 + 20 * number, 200, 90), np.uint8)


def frame_number(image: np.ndarray) -> int:
    return round((float(image[..., 0].mean()) - 10) / 20)


def write_image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(number)).save(path, quality=95)


def write_palette(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette([v for i in range(256) for v in (i, 255 - i, (7 * i) % 256)])
    picture.save(path)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def runs_of(mask: np.ndarray) -> dict[str, object]:
    """Plain COCO run lengths: column-major, background first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def write_coco(root: Path) -> Path:
    images = []
    for number in (9, 500, 501, 502):  # 9 is in the development set
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": SIZE[0], "width": SIZE[1]})
        write_image(root / "images" / f"{number:012d}.jpg")
    square = [[4, 3, 14, 3, 14, 9, 4, 9]]
    annotations = [
        {"id": 1, "image_id": 500, "category_id": 90, "iscrowd": 0, "area": 60, "segmentation": square},
        {
            "id": 2,
            "image_id": 500,
            "category_id": 1,
            "iscrowd": 0,
            "area": 240,
            "segmentation": runs_of(box(0, 0, 24, 10)),
        },
        {"id": 3, "image_id": 501, "category_id": 1, "iscrowd": 1, "area": 9, "segmentation": runs_of(box(0, 0, 3, 3))},
        {"id": 4, "image_id": 9, "category_id": 1, "iscrowd": 0, "area": 60, "segmentation": square},
    ]
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 7, "name": "train"}]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_sequence(images: Path, labels: Path, video: str, count: int = 4, every: int = 1) -> None:
    for number in range(count):
        write_image(images / video / f"{number:05d}.jpg", number)
        if number % every == 0:
            label = np.where(box(2, number, 8, number + 6), 3, 0) + np.where(box(12, 0, 20, 9), 1, 0)
            label[0] = 255
            write_palette(labels / video / f"{number:05d}.png", label)
