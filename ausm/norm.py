"""Layer norm with the sums before and after it, which a packed copy computes in one pass (`ausm.inference`)."""

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`, same parameters, with the two ways that residual layers use it. All tensors (..., D)."""

    def pre(self, x: Tensor, y: Tensor | None, place: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-norm: x + y (y None: x), its norm, and the norm plus position codes (place None: the norm)."""
        x = x if y is None else x + y
        normed = self(x)
        return x, normed, normed if place is None else normed + place

    def post(self, x: Tensor, y: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Post-norm: the norm of x + y, and that plus position codes."""
        normed = self(x + y)
        return normed, normed + place
