"""The recurrent step with fixed shapes, as CUDA graphs: some thousand kernel launches become one each for both halves.

A graph wants the same shapes and addresses every time. The number of ids is rounded up to a power of two, at most N_id:
padded ids have empty masks, so that the marker ignores them, and no query may look at theirs. Not the default, because
it has never run on a GPU (docs/benchmarks.md): `Stream(..., cuda_graph=True)` asks for it. On a CPU nothing is recorded
and the padded step simply runs, which is how tests compare it with the plain one.
"""

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ausm.model import AUSM
from ausm.padding import PaddedStep, unpad
from ausm.pixel_decoder import Predictions
from ausm.state import StreamState

LOG = logging.getLogger("ausm")
WARM = 3  # runs before recording: PyTorch allocates and chooses kernels in them
HOST_FRAMES = 2  # one is being filled while the other is on its way to the GPU
TOLERANCE = 0.05  # of a replay, relative to the plain step in the same 16 bits


def stepper(model: AUSM, packed: bool, graph: bool) -> "AUSM | PaddedStep | GraphedStep":
    """What a stream should call `absorb` and `predict` of: the model, or a step of few shapes where shapes cost.

    packed: the model is one of `ausm.inference`, whose kernels are compiled for their shapes. graph: wants CUDA graphs,
    as `AUSM_CUDA_GRAPH=1` does; nothing to a model on a CPU.
    """
    if packed:
        return PaddedStep(model)
    wanted = graph or os.environ.get("AUSM_CUDA_GRAPH") == "1"
    return GraphedStep(model) if wanted and model.X_0.device.type == "cuda" and not model.training else model


def padded_size(K: int, N_id: int) -> int:
    """Ids that a graph for K of them holds: the next power of two, at least 1, at most N_id."""
    return min(1 << max(K - 1, 0).bit_length(), N_id)


class Inputs(NamedTuple):
    """Tensors that the graphs of one padded size P read, on the device."""

    image: Tensor  # (H, W, 3) uint8
    ids: Tensor  # (P,) rows of B; 0 where padded
    M: Tensor  # (P, h, w) bool; empty where padded
    active: Tensor  # (1, P) bool; not padded


class HostFrames:
    """A ring of page-locked host frames: a copy to the GPU from one does not wait, and none is written too early."""

    def __init__(self, shape: tuple[int, ...], count: int = HOST_FRAMES) -> None:
        pinned = torch.cuda.is_available()
        self._frames = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)]
        self._sent: list[torch.cuda.Event | None] = [None] * count
        self._next = 0

    def send(self, image: Tensor, to: Tensor) -> None:
        """Copy a host image (H, W, 3) uint8 into the tensor `to`, by way of the next frame of the ring."""
        at, self._next = self._next, (self._next + 1) % len(self._frames)
        sent = self._sent[at]
        if sent is not None:
            sent.synchronize()
        self._frames[at].copy_(image)
        to.copy_(self._frames[at], non_blocking=True)
        if to.is_cuda:
            event = torch.cuda.Event()
            event.record()
            self._sent[at] = event


class GraphedStep:
    """`AUSM.absorb` and `AUSM.predict` of one stream. Results agree with theirs to rounding."""

    def __init__(self, model: AUSM) -> None:
        self.model = model
        self._bound: tuple[object, ...] = ()  # state and image that the graphs were recorded for
        self._inputs: dict[int, Inputs] = {}  # by padded size
        self._runs: dict[tuple[str, int], Callable[[], Predictions | None]] = {}
        self._host: HostFrames | None = None
        self._plain = False  # a recording failed or disagreed

    def absorb(self, state: StreamState, ids: Tensor, M: Tensor) -> None:
        """As `AUSM.absorb`."""
        P = padded_size(len(ids), self.model.config.N_id)
        if self._plain or (inputs := self._inputs.get(P)) is None or self._key(state, inputs.image) != self._bound:
            return self.model.absorb(state, ids, M)  # before the first image its size is not known
        self._fill(inputs, ids)
        inputs.M.zero_()
        inputs.M[: len(ids)] = M

        def work() -> None:
            self.model.absorb(state, inputs.ids, inputs.M)

        self._run(("absorb", P), work, state)
        state.absorbed = True

    def predict(self, state: StreamState, image: Tensor, ids: Tensor) -> Predictions:
        """As `AUSM.predict`; the image (H, W, 3) uint8 may be on the host."""
        K, P = len(ids), padded_size(len(ids), self.model.config.N_id)
        if self._plain or not state.absorbed:
            return self.model.predict(state, image, ids)
        if self._bound != self._key(state, image):
            self._bind(state, image)
        if P not in self._inputs:
            self._inputs[P] = self._new_inputs(P, image, state)
        inputs = self._inputs[P]
        self._fill(inputs, ids)
        if image.is_cuda or self._host is None:
            inputs.image.copy_(image)
        else:
            self._host.send(image, inputs.image)

        def work() -> Predictions:
            return self.model.predict(state, inputs.image, inputs.ids, inputs.active)

        out = self._run(("predict", P), work, state)
        state.absorbed = False
        assert out is not None
        return unpad(out, K, P)

    def _key(self, state: StreamState, image: Tensor) -> tuple[object, ...]:
        addresses = (t.data_ptr() for t in (state.X, state.F, state.conv, state.ssm))
        return (*addresses, state.size, state.ssm.dtype, *image.shape)

    def _bind(self, state: StreamState, image: Tensor) -> None:
        """Another stream state or image size: nothing recorded is of use any more."""
        self._bound = self._key(state, image)
        self._inputs.clear()
        self._runs.clear()
        self._host = HostFrames(tuple(image.shape))

    def _new_inputs(self, P: int, image: Tensor, state: StreamState) -> Inputs:
        device = self.model.X_0.device
        flags = torch.zeros(1, P, dtype=torch.bool, device=device)
        M = torch.zeros(P, *state.size, dtype=torch.bool, device=device)
        return Inputs(torch.zeros_like(image, device=device), torch.zeros(P, dtype=torch.long, device=device), M, flags)

    @staticmethod
    def _fill(inputs: Inputs, ids: Tensor) -> None:
        inputs.ids.zero_()
        inputs.ids[: len(ids)] = ids
        inputs.active.zero_()
        inputs.active[:, : len(ids)] = True

    def _run(
        self, key: tuple[str, int], work: Callable[[], Predictions | None], state: StreamState
    ) -> Predictions | None:
        """Do the work: from its graph if there is one, else record it for the next time."""
        if key not in self._runs:
            self._runs[key] = self._record(work, state) if self.model.X_0.device.type == "cuda" else work
        return self._runs[key]() if not self._plain else work()

    def _record(self, work: Callable[[], Predictions | None], state: StreamState) -> Callable[[], Predictions | None]:
        """A function that replays `work`; the state is as before. Falls back to `work` for good if replays differ."""
        before, flag = state.clone(), state.absorbed

        def restore() -> None:
            state.copy_from(before)
            state.absorbed = flag

        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        try:
            # cached casts of weights would be freed at the end of the block while the graph still reads them
            with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    for _ in range(WARM):
                        restore()
                        expected = work()
                    reference = state.clone()
                torch.cuda.current_stream().wait_stream(aside)
                restore()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other cameras go on
                    out = work()
            restore()
            graph.replay()
            pairs = [(state.X, reference.X), (state.F, reference.F), (state.ssm, reference.ssm)]
            if out is not None and expected is not None:
                pairs.append((out.masks, expected.masks))
            error = max(float((a - b).float().norm() / b.float().norm().clamp(min=1e-6)) for a, b in pairs)
            if not error < TOLERANCE:
                raise RuntimeError(f"a replay differs from the plain step by {error:.1e}")
        except RuntimeError as exception:
            LOG.warning("no CUDA graph for the step, it runs as it is written: %s", exception)
            self._plain = True
            return work
        finally:
            restore()

        def replay() -> Predictions | None:
            graph.replay()
            return out

        return replay
