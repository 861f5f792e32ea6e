"""Streams of packed models run few shapes: ids padded to a few sizes, with the plain step's results."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_models import assert_steps_alike, build, small_nano

import ausm
from ausm import inference
from ausm.cuda_graph import stepper
from ausm.model import AUSM
from ausm.padding import PaddedStep

SIZE = (64, 96)
needs_onednn = pytest.mark.skipif(not inference._has_operators("fp32"), reason="PyTorch without oneDNN")


@pytest.fixture(scope="module")
def model() -> AUSM:
    return build(small_nano())  # 6 detection queries, 12 ids


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Watched:
    """A model that notes how many ids it is given."""

    def __init__(self, model: AUSM) -> None:
        self.model, self.config, self.sizes = model, model.config, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def absorb(self, state: Any, ids: Any, M: Any) -> None:
        assert len(ids) == len(M)
        self.sizes.append(len(ids))
        self.model.absorb(state, ids, M)

    def predict(self, state: Any, image: Any, ids: Any) -> Any:
        self.sizes.append(len(ids))
        return self.model.predict(state, image, ids)

    def predict_together(self, states: Any, images: Any, ids: Any, active: Any) -> Any:
        self.sizes.append(ids.shape[1])
        return self.model.predict_together(states, images, ids, active)


def test_agrees_with_the_plain_step_while_objects_come_and_go(model: AUSM) -> None:
    watched = Watched(model)
    assert_steps_alike(model, PaddedStep(watched), SIZE, (0, 1, 2, 3, 5, 10, 2, 11, 12, 0))  # type: ignore[arg-type]
    # with 6 detection queries: 8, 16, or all 18
    assert watched.sizes == [n for P in (2, 2, 2, 10, 10, 10, 2, 12, 12, 2) for n in (P, P)]


@needs_onednn
def test_a_packed_stream_is_padded_and_another_is_not(model: AUSM) -> None:
    assert ausm.Stream(model)._halves is model
    assert stepper(model, packed=False, graph=True) is model
    constant = inference.mark_constant(build(small_nano()))
    assert isinstance(ausm.Stream(constant)._halves, PaddedStep)


def births(step: Callable[[AUSM], Any], model: AUSM) -> set[int]:
    """How many ids the model is given while a stream goes from no object to twelve."""
    stream = ausm.Stream(model, discover=False, config=ausm.StreamConfig(short_side=64))
    watched = Watched(stream.model)
    stream._halves = step(watched)  # type: ignore[arg-type]
    for k in range(13):
        stream.step(np.full((*SIZE, 3), 20 * k, np.uint8))
        if k < 12:
            mask = np.zeros((1, *SIZE), bool)
            mask[0, 5 * k : 5 * k + 8, 7 * k : 7 * k + 12] = True
            stream.prompt(mask)
    return set(watched.sizes)


def test_the_number_of_shapes_is_bounded(model: AUSM) -> None:
    assert births(lambda m: m, model) == set(range(13))
    assert births(PaddedStep, model) == {2, 10, 12}
