"""Deformable attention under autocast."""

import pytest
import torch

from ausm import msdeform
from ausm.msdeform import MSDeformAttention


def test_positions_stay_exact_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """At width 160 a bfloat16 has steps of a third of a cell near the borders."""
    grids = []
    sample = msdeform.F.grid_sample
    monkeypatch.setattr(
        msdeform.F, "grid_sample", lambda values, grid, **options: grids.append(grid) or sample(values, grid, **options)
    )
    torch.manual_seed(0)
    attention = MSDeformAttention(32, heads=4, points=2, levels=1).eval()
    with torch.no_grad():
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.zero_()  # every query reads just its own place
    x = (torch.arange(160) + 0.5) / 160
    reference = torch.stack((x, torch.full_like(x, 0.5)), -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(1, 160, 32), reference, torch.randn(1, 160, 32), [(1, 160)])
    assert torch.allclose((grids[0][0, :, 0, 0] + 1) / 2, x, atol=1e-6)
