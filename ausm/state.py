"""The state of one stream between two frames: fixed size, whatever the length of the stream."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ausm.config import AusmConfig

STORAGE = {"fp32": torch.float32, "fp16": torch.float16}  # `StreamConfig.state_storage`


@dataclass
class StreamState:
    """Preallocated tensors, updated in place. N = h * w tokens at stride 8, L compressor layers."""

    size: tuple[int, int]  # (h, w) of the padded grid
    X: Tensor  # (N, D) features of the last frame; the start token X_0 before the first
    F: Tensor  # (N, D) compressed history that the next frame reads
    conv: Tensor  # (L, N, d_inner, d_conv - 1)
    ssm: Tensor  # (L, N, d_inner, d_state), fp16 or fp32 storage, fp32 arithmetic
    absorbed: bool = False  # F already contains the last frame's masks

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def clone(self) -> "StreamState":
        return StreamState(self.size, **{k: v.clone() for k, v in self._tensors().items()}, absorbed=self.absorbed)

    def copy_from(self, other: "StreamState") -> None:
        """Overwrite in place; the sizes must agree."""
        for name, tensor in self._tensors().items():
            tensor.copy_(getattr(other, name))
        self.absorbed = other.absorbed


def new_state(
    config: AusmConfig, size: tuple[int, int], X_0: Tensor, dtype: torch.dtype = torch.float32
) -> StreamState:
    """Zero history on the start token. X_0 (D,); `dtype` is the storage of the SSM state."""
    c, N, d_inner = config.compressor, size[0] * size[1], config.compressor.expand * config.D
    device = X_0.device
    return StreamState(
        size=size,
        X=X_0.detach().float().expand(N, -1).clone(),
        F=torch.zeros(N, config.D, device=device),
        conv=torch.zeros(c.layers, N, d_inner, c.d_conv - 1, device=device),
        ssm=torch.zeros(c.layers, N, d_inner, c.d_state, dtype=dtype, device=device),
    )
