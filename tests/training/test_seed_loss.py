"""The map that detection queries start from: where its loss wants peaks, and what it leaves alone."""

import torch

from ausm.seeds import START, Extent, Seeds
from training.matcher import match
from training.noise import HistoryNoise, add_noise
from training.seed_loss import seed_loss, way_to_seeds


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (2, 2, 64, 64): a ring and a block on frame 0, the block alone on frame 1; and which are visible."""
    masks = torch.zeros(2, 2, 64, 64, dtype=torch.bool)
    masks[0, 0, :32, :32] = True
    masks[0, 0, 8:24, 8:24] = False
    masks[:, 1, 40:56, 32:64] = True
    return masks, masks.flatten(2).any(-1)


def loss(scores: torch.Tensor, wanted: torch.Tensor, exhaustive: bool = True) -> float:
    masks, known = scene()
    return float(seed_loss(scores, masks, wanted, known, exhaustive))


def test_gradient_descent_finds_one_peak_on_every_wanted_object() -> None:
    masks, known = scene()
    scores = torch.full((2, 8, 8), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        seed_loss(scores, masks, known, known, True).backward()
        optimizer.step()
    peaks = (scores > 0).nonzero().tolist()
    assert [p[0] for p in peaks] == [0, 0, 1]
    for frame, y, x in peaks:  # on the object, even if its centroid is in a hole
        assert masks[frame, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].any()


def test_what_is_not_labelled_is_not_taught() -> None:
    _, known = scene()
    nothing = torch.zeros_like(known)
    low = torch.full((2, 8, 8), -4.0)
    empty = low.clone()
    empty[0, 7, 0] = 4.0  # no label there
    assert loss(empty, nothing, exhaustive=False) == loss(low, nothing, exhaustive=False)
    assert loss(empty, nothing, exhaustive=True) > loss(low, nothing, exhaustive=True) + 3
    tracked = low.clone()
    tracked[0, 6, 6] = 4.0  # on an object that an id follows already
    assert loss(tracked, nothing, exhaustive=False) > loss(low, nothing, exhaustive=False) + 3


def test_queries_start_at_the_highest_peaks() -> None:
    torch.manual_seed(0)
    seeds = Seeds(D=16, N_det=4, pool=2)
    with torch.no_grad():
        seeds.context.weight.zero_()
        seeds.context.bias.zero_()
        seeds.context.weight[range(16), range(16), 1, 1] = 1.0
        seeds.score.weight.fill_(1.0)
    G = torch.zeros(1, 12 * 12, 16)
    grid = G.view(1, 12, 12, 16)
    for value, (y, x) in zip((3.0, 2.0, 1.0), ((0, 0), (6, 10), (10, 2)), strict=True):
        grid[0, y : y + 2, x : x + 2] = value
    grid[0, 6:8, 8:10] = 1.9  # the slope of a peak is none
    out = seeds(G, (12, 12))
    best = out.scores[0].flatten().topk(4).indices.tolist()
    assert best == [0, 3 * 6 + 5, 3 * 6 + 4, 5 * 6 + 1]
    expected = seeds.content(torch.tensor([3.0, 2.0, 1.0])[:, None].expand(3, 16))
    assert torch.allclose(out.content[0, :3], expected, atol=1e-5)
    small = seeds(torch.randn(2, 4, 16), (2, 2))
    assert small.content.shape == (2, 4, 16) and torch.equal(small.content[:, 0], small.content[:, 3])


def test_the_way_from_a_seed_is_measured_in_sizes_of_the_object() -> None:
    masks, known = scene()
    block = torch.tensor([48 / 64, 48 / 64])  # its middle, in image heights
    width = (16 * 32 / 64**2) ** 0.5
    centres = torch.stack((block, block + torch.tensor([0.0, width]), torch.tensor([0.1, 0.1])))[None].repeat(2, 1, 1)
    way = way_to_seeds(centres, masks, known, (8, 8))
    assert way.shape == (2, 3, 2)
    assert way[0, 0, 1] < 0.5 and abs(way[0, 1, 1] - way[0, 0, 1] - 1) < 0.5  # the grid is one eighth of the image
    assert way[0, 2, 0] < way[0, 0, 0] and way[0, 2, 1] > 2
    assert not way[1, :, 0].any()  # not there


def test_a_target_goes_to_the_seed_that_lies_on_it() -> None:
    masks, known = scene()
    logits = torch.zeros(2, 3, 10)  # all masks alike: only the way decides
    centres = torch.tensor([[0.9, 0.1], [0.75, 0.75], [0.2, 0.1]])[None].repeat(2, 1, 1)
    way = way_to_seeds(centres, masks, known, (8, 8))
    y = torch.ones(2, 2, 10)
    f, q, k = match(logits, torch.zeros(2, 3), y, known, (2.0, 5.0, 5.0), 5 * way)
    assert sorted(zip(f.tolist(), k.tolist(), q.tolist(), strict=True)) == [(0, 0, 2), (0, 1, 1), (1, 1, 1)]


def test_masks_fall_off_around_their_seed() -> None:
    extent = Extent(D=16)
    centre = torch.tensor([[[0.25, 0.5], [0.75, 1.25]]])
    rows, columns = extent(torch.randn(1, 2, 16), centre, (8, 16))
    assert rows.shape == (1, 2, 8) and columns.shape == (1, 2, 16)
    reach = rows[..., None] + columns[..., None, :]
    for q, (y, x) in enumerate(centre[0].tolist()):
        i, j = (torch.arange(n) + 0.5 for n in (8, 16))
        expected = -START * ((i[:, None] / 8 - y) ** 2 + (j / 8 - x) ** 2)
        assert torch.allclose(reach[0, q], expected, atol=1e-5)


def test_a_clip_without_objects_has_a_history_without_objects() -> None:
    history = torch.zeros(2, 4, 0, 8, 8, dtype=torch.bool)
    active = torch.zeros(2, 4, 0, dtype=torch.bool)
    out = add_noise(history, active, HistoryNoise(), torch.Generator().manual_seed(0))
    assert out.history.shape == history.shape and out.fixed.shape == active.shape
