"""Frames of several streams in one pass: cameras that share a model and deliver at the same moment."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ausm.cuda_graph import GraphedStep
from ausm.errors import AusmError
from ausm.padding import PaddedStep
from ausm.stream import Stream
from ausm.tracks import StepOutput


def gains_together(streams: Sequence[Stream]) -> bool:
    """Whether `step_together` does more with these streams than to step one after the other."""
    return sum(not isinstance(stream._halves, GraphedStep) for stream in streams) > 1


@torch.inference_mode()
def step_together(streams: Sequence[Stream], images: Sequence[np.ndarray]) -> list[StepOutput]:
    """`stream.step(image)` for different streams, outputs in the same order; results agree to rounding.

    Frames of one inner size go through backbone and decoders as one batch, where the streams share a model and none
    records CUDA graphs; every state is kept and updated for itself. Raises what `Stream.step` raises, and AusmError for
    a stream that is given twice; on an error of an image no stream has changed.
    """
    if len({id(stream) for stream in streams}) != len(streams) or len(streams) != len(images):
        raise AusmError(f"{len(images)} images for {len(streams)} streams, each may be given once")
    for stream, image in zip(streams, images, strict=True):
        stream._check_image(image)
    groups: dict[Hashable, list[tuple[Stream, Tensor]]] = {}
    for stream, image in zip(streams, images, strict=True):
        with stream._autocast():
            inner = stream._begin(image)
        alone = isinstance(stream._halves, GraphedStep)  # its graphs hold its own state
        key = (id(stream if alone else stream.model), stream.precision, inner.shape)
        groups.setdefault(key, []).append((stream, inner))
    outputs = {id(stream): output for group in groups.values() for stream, output in _step_group(group)}
    return [outputs[id(stream)] for stream in streams]


def _step_group(group: Sequence[tuple[Stream, Tensor]]) -> Iterator[tuple[Stream, StepOutput]]:
    """Predictions of streams that have begun a step, and what they make of them."""
    first = group[0][0]
    with first._autocast():
        if len(group) == 1:
            outs = [first._halves.predict(first._running()[0], group[0][1], first._slots())]
        else:
            states, ids = [s._running()[0] for s, _ in group], [s._slots() for s, _ in group]
            images = torch.stack([inner for _, inner in group])
            outs = PaddedStep(first.model).predict_together(states, images, ids)
        for (stream, _), out in zip(group, outs, strict=True):
            yield stream, stream._end(out)
