"""The padded step of `ausm.cuda_graph` against the plain one, on the CPU, where nothing is recorded but all else is."""

from collections.abc import Iterator

import pytest
import torch
from small_models import assert_steps_alike, build, small_nano

from ausm.cuda_graph import GraphedStep, HostFrames, padded_size, stepper
from ausm.model import AUSM

SIZE = (64, 96)


@pytest.fixture(scope="module")
def model() -> AUSM:
    return build(small_nano())


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_sizes_are_powers_of_two_up_to_the_number_of_ids() -> None:
    assert [padded_size(K, 12) for K in (0, 1, 2, 3, 4, 5, 8, 9, 12)] == [1, 1, 2, 4, 4, 8, 8, 12, 12]


def test_padded_step_agrees_with_the_plain_one_while_objects_come_and_go(model: AUSM) -> None:
    graphs = GraphedStep(model)
    assert_steps_alike(model, graphs, SIZE, (0, 1, 3, 3, 5, 2, 12, 0))
    # frame by frame: 1, 1, 4, 4, 8, 2, 12, 1; a size is absorbed with only once its image is known
    assert {P for half, P in graphs._runs if half == "predict"} == {1, 2, 4, 8, 12}
    assert {P for half, P in graphs._runs if half == "absorb"} == {1, 4}


def test_padded_ids_are_not_looked_at(model: AUSM) -> None:
    """Without `active` the same padding changes the result: the comparison above can fail."""
    state, ids = model.new_state(*SIZE), torch.tensor([3, 0])
    image = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = []
    for chosen, active in ((ids[:1], None), (ids, torch.tensor([[True, False]])), (ids, None)):
        model.absorb(state := model.new_state(*SIZE), chosen, torch.zeros(len(chosen), *state.size, dtype=torch.bool))
        masks.append(model.predict(state, image, chosen, active).masks[:, 0])
    torch.testing.assert_close(masks[1], masks[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(masks[2], masks[0], rtol=1e-3, atol=1e-3)


def test_another_state_or_image_size_starts_anew(model: AUSM) -> None:
    graphs, image = GraphedStep(model), torch.zeros(*SIZE, 3, dtype=torch.uint8)
    for state, picture in ((model.new_state(*SIZE), image), (model.new_state(64, 128), image.new_zeros(64, 128, 3))):
        for _ in range(2):
            graphs.absorb(state, torch.tensor([1]), torch.ones(1, *state.size, dtype=torch.bool))
            assert graphs.predict(state, picture, torch.tensor([1])).masks.shape[-1] == picture.shape[1] // 4
        assert set(graphs._runs) == {("absorb", 1), ("predict", 1)}
        assert len(graphs._inputs) == 1


def test_host_frames_take_turns_and_arrive() -> None:
    ring, there = HostFrames((2, 3, 3), count=2), torch.zeros(2, 3, 3, dtype=torch.uint8)
    for value in (1, 2, 3):
        ring.send(torch.full((2, 3, 3), value, dtype=torch.uint8), there)
        assert there.eq(value).all()
    assert [int(frame[0, 0, 0]) for frame in ring._frames] == [3, 2]


def test_a_cpu_stream_runs_the_model_itself(model: AUSM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUSM_CUDA_GRAPH", "1")
    assert stepper(model, packed=False, graph=True) is model
