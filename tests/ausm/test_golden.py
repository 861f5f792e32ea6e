"""A frozen file pins the outputs of every preset's step: refactoring cannot change them silently.

Weights are a formula of their names, so neither the order in which modules are built nor PyTorch's generator matters.
After a change that is meant: `python tests/ausm/test_golden.py` writes the file anew; say why in the commit.
"""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import small_nano, small_swin_t

import ausm
from ausm.config import AusmConfig, StreamConfig, swin_b
from ausm.model import AUSM
from ausm.tracks import Source, TrackState

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4  # processors differ in the order of sums


def small_swin_b() -> AusmConfig:
    return replace(small_swin_t(), name="swin_b", backbone=swin_b().backbone)


PRESETS = {"nano": small_nano, "swin_t": small_swin_t, "swin_b": small_swin_b}


def formula(name: str, shape: torch.Size) -> np.ndarray:
    """Numbers of a sensible size for a parameter or statistic of this name."""
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    last = name.split(".")[-1]
    if last == "A_log":
        return np.log(np.arange(1, shape[-1] + 1)) + 0.1 * n
    if name.endswith("dt_proj.bias"):
        return n - 3
    if last in ("weight", "D", "running_var") and len(shape) == 1:
        return 1 + 0.1 * np.abs(n)
    if last in ("B", "X_0") or "query_" in name:
        return n
    return n / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * n


def model_of(config: AusmConfig) -> AUSM:
    model = AUSM(config).eval()
    if model.backbone.is_swin:
        for i in range(4):
            stage = model.backbone.body[f"layers_{i}"]
            stage.blocks = stage.blocks[:2] if i < 2 else stage.blocks[:1]
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(formula(name, value.shape)))
    return model


def image(t: int, height: int = 56, width: int = 90) -> np.ndarray:
    """Smooth coloured waves that move."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((y + 3 * t) / 5 + c) + np.cos((x - 4 * t) / (7 + c)) for c in range(3)]
    return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


@torch.inference_mode()
def steps(preset: str) -> list[dict[str, Any]]:
    """Three steps of the recurrent form: an id from the start, one from the second frame, absent on the third."""
    model = model_of(PRESETS[preset]())
    state = model.new_state(56, 90)
    h, w = state.size
    M = torch.zeros(2, h, w, dtype=torch.bool)
    M[0, 1:4, 2:6] = M[1, 4:, 7:10] = True
    histories = [(torch.tensor([3]), M[:1]), (torch.tensor([3, 7]), M), (torch.tensor([3, 7]), M & M[:1])]
    frames = []
    for t, (ids, marks) in enumerate(histories):
        model.absorb(state, ids, marks)
        out = model.predict(state, torch.from_numpy(image(t)), ids)
        frames.append(
            {
                "masks": F.adaptive_avg_pool2d(out.masks[0], 2).flatten().tolist(),
                "spread": out.masks[0].flatten(1).std(1).tolist(),
                "objectness": out.objectness[0].tolist(),
                "embeddings": out.embeddings[0].abs().mean(1).tolist(),
                "classes": model.pixel_decoder.classify(out.embeddings[0], "coco").logsumexp(1).tolist(),
                "state": [float(v.abs().mean()) for v in (state.X, state.F, state.conv, state.ssm)],
            }
        )
    return frames


def stream() -> list[list[list[float]]]:
    """Per frame the tracks: id, state, source, share of the image, score. One is found and removed, the next one gets
    lost when two are prompted, and ends."""
    config = StreamConfig(short_side=56, score_threshold=0.4, min_area=1, dedupe_iou=1.0, max_missed=1)
    s = ausm.Stream(model_of(small_nano()), config=config)
    masks = np.zeros((2, 56, 90), bool)
    masks[0, 10:30, 20:50] = masks[1, 35:50, 60:85] = True
    frames = []
    for i in range(7):
        if i == 2:
            s.remove([1])
        if i == 4:
            s.prompt(masks)
        tracks = sorted(s.step(image(i)).tracks, key=lambda t: t.track_id)
        frames.append([[t.track_id, t.state, t.source, float(t.mask.mean()), t.score] for t in tracks])
    return frames


def close(found: Any, golden: Any, tolerance: float, where: str) -> None:
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), where
        for key in golden:
            close(found[key], golden[key], tolerance, f"{where}/{key}")
    else:
        assert np.shape(found) == np.shape(golden), where
        assert np.allclose(found, golden, rtol=tolerance, atol=tolerance), (where, found, golden)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_steps_are_as_they_were(preset: str) -> None:
    golden = json.loads(GOLDEN.read_text())[preset]
    for t, (found, kept) in enumerate(zip(steps(preset), golden, strict=True)):
        close(found, kept, TOLERANCE, f"{preset} frame {t}")


def test_a_stream_is_as_it_was() -> None:
    golden = json.loads(GOLDEN.read_text())["stream"]
    assert sum(map(len, golden)) > 8
    rows = [row for frame in golden for row in frame]
    assert {Source(source) for _, _, source, _, _ in rows} == {Source.DISCOVERED, Source.PROMPT}
    assert {TrackState(state) for _, state, *_ in rows} == {TrackState.TRACKED, TrackState.LOST, TrackState.REMOVED}
    for t, (found, kept) in enumerate(zip(stream(), golden, strict=True)):
        close(found, kept, 2e-3, f"stream frame {t}")  # a pixel at the edge may change sides


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(float(value), 6) if isinstance(value, float) else int(value)


if __name__ == "__main__":
    results = {**{preset: steps(preset) for preset in PRESETS}, "stream": stream()}
    lines = [f'"{name}": {json.dumps(rounded(value))}' for name, value in results.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.write(f"{GOLDEN} written, {GOLDEN.stat().st_size} bytes\n")
