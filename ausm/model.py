"""AUSM: the parallel form (Alg. 2) and the two halves of the recurrent step (Alg. 1), over the same modules."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausm.backbone import Backbone
from ausm.compressor import CompressorLayer, HistoryCompressor
from ausm.config import AusmConfig
from ausm.decoder import DecoderLayer, HistoryDecoder
from ausm.marker import mark
from ausm.neck import build_neck
from ausm.norm import LayerNorm
from ausm.pixel_decoder import PixelDecoder, PixelLayer, Predictions
from ausm.state import StreamState, new_state


class Features(NamedTuple):
    """Frame-independent features of B' frames."""

    X: Tensor  # (B', N, D) tokens at stride 8
    c2: Tensor  # (B', C, H/4, W/4) backbone level for the mask features
    size: tuple[int, int]  # (h, w), N = h * w

    def unflatten(self, B: int) -> Tensor:
        """X as (B, T, N, D)."""
        return self.X.unflatten(0, (B, -1))


class AUSM(nn.Module):
    """Autoregressive Universal Video Segmentation Model (arXiv 2508.19242)."""

    mean: Tensor  # (1, 3, 1, 1) of pixels in 0..1
    std: Tensor

    def __init__(self, config: AusmConfig, pretrained_backbone: bool = False) -> None:
        super().__init__()
        self.config = config
        D = config.D
        self.backbone = Backbone(config.backbone, pretrained_backbone)
        self.neck = build_neck(self.backbone.channels, config)
        self.norm_x = LayerNorm(D)
        self.X_0 = nn.Parameter(nn.init.trunc_normal_(torch.empty(D), std=0.02))
        self.B = nn.Parameter(nn.init.orthogonal_(torch.empty(config.N_id, D)) * D**0.5)  # rows of norm sqrt(D)
        self.compressor = HistoryCompressor(D, config.compressor)
        self.decoder = HistoryDecoder(D, config.decoder)
        self.pixel_decoder = PixelDecoder(
            D, self.backbone.channels[0], config.N_det, config.heads, config.pixel_decoder
        )
        self.register_buffer("mean", torch.tensor(config.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.backbone.std).view(1, 3, 1, 1), persistent=False)
        if config.retrieval_init:
            self._init_retrieval()

    def _init_retrieval(self) -> None:
        """Residual branches start small and cross-attention starts as a lookup, so ids survive from the first step."""
        with torch.no_grad():
            for m in self.modules():
                small: list[nn.Linear] = []
                if isinstance(m, DecoderLayer):
                    m.cross_attn.init_lookup()
                    small = [m.ffn.linear2]
                elif isinstance(m, CompressorLayer):
                    small = [m.mamba.out_proj, m.attn.out_proj, m.ffn.linear2]
                elif isinstance(m, PixelLayer):
                    small = [m.cross_attn.out_proj, m.self_attn.out_proj, m.ffn.linear2]
                for layer in small:
                    layer.weight.mul_(0.1)

    def encode(self, images: Tensor) -> Features:
        """uint8 RGB images (B', H, W, 3) -> features."""
        return self.features(self.maps(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """uint8 RGB images (B', H, W, 3) -> backbone maps."""
        return self.backbone(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB images (B', H, W, 3) -> what the backbone takes, padded right and bottom to the size divisor."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be (B, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
        x = images.permute(0, 3, 1, 2).float().div_(255)
        x = (x - self.mean) / self.std
        d = self.config.size_divisor
        H, W = x.shape[-2:]
        return F.pad(x, (0, -W % d, 0, -H % d)).contiguous(memory_format=torch.channels_last)

    def features(self, maps: list[Tensor]) -> Features:
        """Backbone maps at strides 4..32 -> X_t and the stride-4 level."""
        X = self.neck(maps)
        size = (X.shape[-2], X.shape[-1])
        return Features(self.norm_x(X.flatten(2).transpose(1, 2)), maps[0], size)

    # --- parallel form ------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        M: Tensor,
        active: Tensor,
        every_layer: bool = False,
    ) -> list[Predictions]:
        """All T frames at once, histories given (Alg. 2 l. 4-7).

        images (B, T, H, W, 3) uint8; ids (B, K) rows of B; M (B, T, K, h, w) bool: M[:, t] is the history M_{t-1} that
        frame t reads; active (B, T, K) bool: whether id k belongs to A_{t-1}. Predictions have B' = B * T frames.
        """
        B = len(images)
        features = self.encode(images.flatten(0, 1))
        return self.decode_clip(features, B, ids, M, active, every_layer)

    def decode_clip(
        self, features: Features, B: int, ids: Tensor, M: Tensor, active: Tensor, every_layer: bool = False
    ) -> list[Predictions]:
        """The temporal half of `forward`, on features that may be computed once and used twice."""
        X = features.unflatten(B)  # (B, T, N, D)
        T = X.shape[1]
        A = self.B[ids].to(X.dtype)  # (B, K, D)
        A_t = A[:, None].expand(-1, T, -1, -1)
        start = self.X_0.to(X.dtype).expand(B, 1, X.shape[2], -1)
        X_before = torch.cat((start, X[:, :-1]), 1)  # X_{t-1}
        E = X_before + mark(A_t, (M & active[..., None, None]).flatten(3))  # Alg. 2 l. 4
        F_t = self.compressor(E, features.size)  # l. 5
        G = self.decoder(features.X, F_t.flatten(0, 1), features.size)  # l. 6
        return self.pixel_decoder(  # l. 7
            A_t.flatten(0, 1), G, features.c2, features.size, active.flatten(0, 1), every_layer
        )

    # --- recurrent form -----------------------------------------------------------------------------------------

    def new_state(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> StreamState:
        """State for inner frames of height x width pixels (before padding)."""
        d = self.config.size_divisor
        return new_state(self.config, (-(-height // d) * d // 8, -(-width // d) * d // 8), self.X_0, dtype)

    def absorb(self, state: StreamState, ids: Tensor, M: Tensor) -> None:
        """Marker and compressor (Alg. 1 l. 11-12): take M_{t-1} of the last frame into the state.

        ids (K,) rows of B in use; M (K, h, w) bool. Off the latency path: it needs nothing of the next frame.
        """
        E = state.X + mark(self.B[ids].to(state.X.dtype), M.flatten(1))
        state.F.copy_(self.compressor.step(E[None], state.conv, state.ssm, state.size)[0])
        state.absorbed = True

    def predict(self, state: StreamState, image: Tensor, ids: Tensor, active: Tensor | None = None) -> Predictions:
        """History Decoder and Pixel Decoder on a new frame (Alg. 1 l. 13-14); needs `absorb` first.

        image (H, W, 3) uint8 at the inner size -> predictions of one frame (B' = 1) for K ids and N_det queries.
        active (1, K) bool: which ids are in use, None = all.
        """
        return self.predict_together([state], image[None], ids[None], active)

    def predict_together(
        self, states: Sequence[StreamState], images: Tensor, ids: Tensor, active: Tensor | None = None
    ) -> Predictions:
        """`predict` for one frame of each of B streams: images (B, H, W, 3), ids (B, K), active (B, K) bool."""
        return self.decode_frame(states, self.encode(images.to(self.X_0.device)), ids, active)

    def decode_frame(
        self, states: Sequence[StreamState], features: Features, ids: Tensor, active: Tensor | None = None
    ) -> Predictions:
        """The temporal half of `predict_together`: features of a frame of each of B streams, ids and active (B, K)."""
        if not all(state.absorbed for state in states):
            raise RuntimeError("predict before absorb: the last frame's masks are not in the state")
        for state in states:
            if features.size != state.size:
                raise ValueError(f"frame has grid {features.size}, the state {state.size}")
        history = states[0].F[None] if len(states) == 1 else torch.stack([state.F for state in states])
        G = self.decoder(features.X, history.to(features.X.dtype), features.size)
        A = self.B[ids].to(features.X.dtype)
        out = self.pixel_decoder(A, G, features.c2, features.size, active)[-1]
        for state, X in zip(states, features.X, strict=True):
            state.X.copy_(X)
            state.absorbed = False
        return out
