"""One frozen tree of sizes per model, in the paper's symbols. Presets: `nano()`, `swin_t()`, `swin_b()`."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ausm.errors import AusmError


@dataclass(frozen=True)
class BackboneConfig:
    """Frame-independent image features at strides 4, 8, 16, 32 (timm)."""

    name: str  # a timm model name
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    drop_path: float = 0.0


@dataclass(frozen=True)
class NeckConfig:
    """Multi-scale neck: backbone levels -> X_t at stride 8."""

    kind: Literal["fpn", "msdeform"]
    layers: int = 6  # msdeform only, Mask2Former
    heads: int = 8
    points: int = 4
    ffn: int = 1024


@dataclass(frozen=True)
class CompressorConfig:
    """History Compressor: temporal Mamba -> spatial self-attention -> FFN (Fig. 2)."""

    layers: int = 6  # App. A
    d_state: int = 16  # Mamba-1 defaults
    d_conv: int = 4
    expand: int = 2
    heads: int = 4
    ffn: int = 1024
    kv_stride: int = 1  # > 1: keys and values average-pooled over kv_stride x kv_stride tokens


@dataclass(frozen=True)
class DecoderConfig:
    """History Decoder: Q = X_t, KV = F_t."""

    layers: int = 6  # App. A
    heads: int = 4
    ffn: int = 1024
    self_attn: bool = True
    kv_stride: int = 1
    # one reach per head, in image heights: cross-attention falls off as a Gaussian of that width; 0 = everywhere.
    # Costs an (N x N / kv_stride^2) table per head, so only for pooled keys (docs/model.md)
    locality: tuple[float, ...] = ()


@dataclass(frozen=True)
class PixelDecoderConfig:
    """Pixel Decoder after Cheng et al. 2022 (Mask2Former): masked attention over [A; V], KV = G_t."""

    layers: int = 9
    heads: int = 8
    ffn: int = 2048
    mask_dim: int = 256
    pools: tuple[int, ...] = (4, 2, 1)  # levels of G_t, coarse first: strides 32, 16, 8
    place: bool = False  # position code in the values and in the mask features (docs/model.md)
    id_skip: bool = False  # mask embeddings and mask features share one projection of ids (docs/model.md)
    objectness_hidden: int = 0  # ReLU units between a query and its objectness (docs/model.md); 0 = a linear layer
    seed_pool: int = 0  # V from the frame, at peaks of a score on G_t pooled so much (docs/model.md); 0 = learned V


@dataclass(frozen=True)
class AusmConfig:
    """The whole model. D: width; N_det detection queries V; N_id ID vectors B."""

    name: str
    backbone: BackboneConfig
    neck: NeckConfig
    compressor: CompressorConfig = CompressorConfig()
    decoder: DecoderConfig = DecoderConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    D: int = 256
    N_det: int = 100  # App. A
    N_id: int = 100  # App. A
    heads: tuple[tuple[str, int], ...] = (("coco", 80), ("ytvis19", 40), ("ytvis21", 40), ("ovis", 25), ("sim", 13))
    short_side: int = 1024  # App. A: inference resolution
    size_divisor: int = 32
    retrieval_init: bool = False  # attention starts as a lookup of ids by appearance (docs/model.md)

    def __post_init__(self) -> None:
        if self.N_id > self.D:
            raise ValueError(f"N_id {self.N_id} > D {self.D}: orthogonal ID vectors do not exist")


def nano() -> AusmConfig:
    """Camera rate on 2 CPU cores: EfficientNet-Lite0, D = 128, two layers each, pooled keys."""
    return AusmConfig(
        name="nano",
        backbone=BackboneConfig("efficientnet_lite0", mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        neck=NeckConfig("fpn"),
        compressor=CompressorConfig(layers=2, d_state=8, expand=1, heads=4, ffn=256, kv_stride=4),
        decoder=DecoderConfig(
            layers=2, heads=4, ffn=256, self_attn=False, kv_stride=2, locality=(0.08, 0.16, 0.32, 0.0)
        ),
        pixel_decoder=PixelDecoderConfig(
            layers=3, heads=4, ffn=512, mask_dim=64, place=True, id_skip=True, objectness_hidden=64, seed_pool=2
        ),
        D=128,
        N_det=50,
        N_id=100,
        heads=(("coco", 80), ("sim", 13)),
        short_side=320,
        retrieval_init=True,
    )


def swin_t() -> AusmConfig:
    """The paper's Swin-T model."""
    return AusmConfig(
        name="swin_t",
        backbone=BackboneConfig("swin_tiny_patch4_window7_224", drop_path=0.3),
        neck=NeckConfig("msdeform"),
    )


def swin_b() -> AusmConfig:
    """The paper's Swin-B model."""
    return AusmConfig(
        name="swin_b",
        backbone=BackboneConfig("swin_base_patch4_window12_384", drop_path=0.3),
        neck=NeckConfig("msdeform"),
    )


PRESETS = {"nano": nano, "swin_t": swin_t, "swin_b": swin_b}


def config_to_dict(config: AusmConfig) -> dict[str, Any]:
    """Plain containers for the manifest of a checkpoint; `config_from_dict` is its inverse."""
    return asdict(config)


def config_from_dict(data: dict[str, Any]) -> AusmConfig:
    """Rebuild a config from JSON; unknown or missing keys raise TypeError naming them."""
    parts = {
        "backbone": BackboneConfig,
        "neck": NeckConfig,
        "compressor": CompressorConfig,
        "decoder": DecoderConfig,
        "pixel_decoder": PixelDecoderConfig,
    }

    def build(cls: type, values: dict[str, Any]) -> Any:
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise TypeError(f"{cls.__name__}: unknown fields {unknown}")
        return cls(**{k: _tuples(v) for k, v in values.items()})

    data = dict(data)
    for key, cls in parts.items():
        data[key] = build(cls, data[key])
    config: AusmConfig = build(AusmConfig, data)
    return config


def _tuples(value: Any) -> Any:
    """JSON has lists only; the frozen tree has tuples only."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


RANGES: dict[str, tuple[int, float]] = {  # of the numbers in a StreamConfig
    **dict.fromkeys(("score_threshold", "prompt_threshold", "dedupe_iou"), (0, 1)),
    **dict.fromkeys(("birth_hits", "max_missed", "min_area", "capacity"), (1, math.inf)),
    "short_side": (32, math.inf),
    "part_gap": (0, 4096),
}


@dataclass(frozen=True)
class StreamConfig:
    """How a stream uses the model. Fields after `state_storage` may change while it runs (`Stream.configure`)."""

    short_side: int | None = None  # inner resolution, pixels; None = the model's own
    capacity: int | None = None  # live objects at most; None = N_id
    state_storage: str = "fp32"  # of the scan between frames; "fp16" halves it, arithmetic stays fp32 (docs/ssm.md)
    discover: bool = True
    score_threshold: float = 0.5  # App. A: foreground probability
    prompt_threshold: float = 0.0  # the same for prompted objects; 0 = as in the paper, the mask alone decides (A8)
    birth_hits: int = 1  # frames a discovery must be seen on before it is TRACKED (A12)
    max_missed: int = 150  # frames unseen before a discovered track is retired (A10)
    dedupe_iou: float = 0.7  # a detection overlapping a live track or a better detection by more is dropped (A11)
    part_gap: int = 8  # inner pixels; parts of a discovery further apart are not one object (ausm.parts); 0 = they are
    min_area: int = 16  # pixels of the input image; smaller discoveries are dropped
    head: str | None = None  # class head in use; None = class-agnostic

    def __post_init__(self) -> None:
        bad = []
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bad.append(f"{name}={value}, must be {low} " + ("or more" if high == math.inf else f"to {high}"))
        if self.state_storage not in ("fp32", "fp16"):
            bad.append(f"state_storage={self.state_storage}, must be fp32 or fp16")
        if bad:
            raise AusmError("out of range: " + "; ".join(bad))


DYNAMIC_FIELDS = frozenset(f.name for f in fields(StreamConfig)) - {"short_side", "capacity", "state_storage"}
