"""What the tests of the training loop share: a tiny model, a tiny stage, and data of their own making."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ausm import weights
from ausm.config import AusmConfig, nano
from ausm.masks import write_palette_png
from ausm.model import AUSM
from training.clips import ClipConfig
from training.loader import Batch, Source
from training.losses import LossConfig
from training.noise import HistoryNoise
from training.readers import RawClip, channels, set_object
from training.stages import Stage
from training.trainer import RunConfig, Trainer


def tiny_config() -> AusmConfig:
    full = nano()
    return dataclasses.replace(
        full,
        D=32,
        N_det=5,
        N_id=32,
        compressor=dataclasses.replace(full.compressor, layers=1, ffn=32),
        decoder=dataclasses.replace(full.decoder, layers=1, ffn=32),
        pixel_decoder=dataclasses.replace(full.pixel_decoder, layers=2, ffn=32, mask_dim=16, objectness_hidden=0),
    )


STAGE = Stage(
    *("tiny", 3, 5, 2, (32, 64)),
    lr=3e-3,
    backbone_lr_scale=0.0,
    clip_norm=1.0,
    decay_at=(),
    warmup=2,
    ema=0.9,
    self_fed=0.5,
    max_instances=4,
    noise=HistoryNoise(),
    loss=LossConfig(points=64, deep=0.5),
    clips=ClipConfig(max_exhaustive=24),  # fewer than N_id
)


class Squares:
    """Videos of two bright squares that move over noise."""

    name, exhaustive, head = "squares", True, "sim"

    def __len__(self) -> int:
        return 4

    def item_name(self, item: int) -> str:
        return str(item)

    def length(self, item: int) -> int:
        return 6

    def load(self, item: int, frames: Sequence[int]) -> RawClip:
        rng = np.random.default_rng(item)
        noise = rng.integers(0, 60, (48, 96, 3), dtype=np.uint8)
        images, bits = [], []
        for t in frames:
            image, labels = noise.copy(), np.zeros((48, 96, channels(2)), np.int32)
            for k, (y, x) in enumerate(((4 + 2 * t, 6 + 5 * t), (26, 70 - 6 * t))):
                mask = np.zeros((48, 96), bool)
                mask[y : y + 16, x : x + 18] = True
                image[mask] = (250, 120 * k, 40)
                set_object(labels, k, mask)
            images.append(image)
            bits.append(labels)
        return RawClip(images, bits, np.array([1, 2]))


def trainer(out: Path, stage: Stage = STAGE, **run: object) -> Trainer:
    torch.manual_seed(0)
    out.mkdir(exist_ok=True)
    settings = {"tensorboard": False, "validate_every": 0.0, **run}
    config = RunConfig(out, seed=5, workers=0, bf16=False, **settings)  # type: ignore[arg-type]
    return Trainer(AUSM(tiny_config()), stage, [Source(Squares(), 1.0)], config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def batch(items: Sequence[int], frames: int = 3) -> Batch:
    clips = [Squares().load(i, range(frames)) for i in items]
    images = torch.from_numpy(np.stack([np.stack(c.images)[:, :32, :64] for c in clips]))
    bits = np.stack([np.stack(c.bits)[:, :32, :64, 0] for c in clips])  # (B, T, H, W)
    masks = torch.from_numpy(np.stack([(bits & 1) > 0, (bits & 2) > 0], 1))
    names = [f"squares/{i}" for i in items]
    ids = torch.tensor([[1, 2]]).repeat(len(items), 1)
    return Batch(images, masks, torch.ones(len(items), 2, dtype=torch.bool), ids, True, "sim", names)


def write_data(tmp_path: Path) -> Path:
    """A DAVIS-like folder of one video, its configuration, and a checkpoint to start from."""
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / f"davis/{kind}/480p/squares").mkdir(parents=True)
    raw = Squares().load(0, range(6))
    for t, (image, bits) in enumerate(zip(raw.images, raw.bits, strict=True)):
        cv2.imwrite(str(tmp_path / f"davis/JPEGImages/480p/squares/{t:05d}.jpg"), image[..., ::-1])
        labels = bits[..., 0].astype(np.uint8)
        write_palette_png(tmp_path / f"davis/Annotations/480p/squares/{t:05d}.png", np.minimum(labels, 2))
    (tmp_path / "davis/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "davis/ImageSets/2017/train.txt").write_text("squares\n")
    (tmp_path / "data.toml").write_text('[[source]]\nkind = "davis2017"\nroot = "davis"\n')
    torch.manual_seed(0)
    weights.save(tmp_path / "init.safetensors", AUSM(tiny_config()), {})
    return tmp_path
