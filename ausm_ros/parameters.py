"""The nodes' parameters: tables of names, defaults, ranges and reasons, and `perception_node`'s settings made from one.

No ROS import: the nodes declare the tables and hand the values here, so refusals are tested without a node.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

CAMERA_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # a name becomes part of topic and parameter names


class Spec(NamedTuple):
    """One parameter. `low` and `high` bound numbers, `choices` lists the accepted strings."""

    name: str
    default: Any
    description: str
    dynamic: bool = False  # may change while the node is configured
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        return self.name.replace(".", "_")


class BadParameter(ValueError):
    """A value that is refused, with the reason."""


SPECS = (
    Spec(
        "cameras",
        ["camera"],
        "Names of the cameras; each subscribes to <name>/image and has its own objects and history.",
    ),
    Spec("autostart", True, "Configure and activate the node by itself when it starts."),
    Spec(
        "checkpoint",
        "nano",
        "Weights: a released name, a path to a .safetensors file, or random:<preset> (untrained, for tests only).",
    ),
    Spec("device", "auto", "Where the model runs: auto (the first GPU, else the CPU), cuda:N or cpu."),
    Spec(
        "precision",
        "auto",
        "Arithmetic of the model; auto is the best the device has.",
        choices=("auto", "fp32", "bf16", "fp16"),
    ),
    Spec(
        "compile",
        "none",
        "How the step is compiled at warm-up: cuda_graph records it on a GPU; a CPU runs packed kernels either way.",
        choices=("none", "cuda_graph"),
    ),
    Spec("threads", 0, "CPU threads of the model; 0 leaves PyTorch's own choice.", low=0, high=256),
    Spec(
        "input_short_side",
        0,
        "Short side the image is resized to for the model [pixels]; 0 = the checkpoint's own.",
        low=0,
        high=2048,
    ),
    Spec("warmup_frames", 2, "Steps made on a blank image before the node is ACTIVE.", low=0, high=100),
    Spec(
        "warmup_size",
        [480, 640],
        "Height and width of that image [pixels]; give the camera's size for an even first frame.",
    ),
    Spec(
        "seed",
        0,
        "Seed of the choice of ID vectors: same seed, images and device, same masks (several cameras: batch false).",
        low=0,
        high=2**31 - 1,
    ),
    Spec("discovery", True, "Find objects that were not prompted.", dynamic=True),
    Spec(
        "score_threshold",
        0.5,
        "Least objectness of a discovered object; its score is this times the certainty of the mask and may be lower.",
        dynamic=True,
        low=0.0,
        high=1.0,
    ),
    Spec(
        "prompt.threshold",
        0.4,
        "Least objectness at which a prompted object is shown, else it is LOST; 0 = its mask alone decides.",
        dynamic=True,
        low=0.0,
        high=1.0,
    ),
    Spec(
        "class_head",
        "",
        "Class head that names the objects, one that the checkpoint has (nano: coco, sim); empty = no class names.",
    ),
    Spec(
        "capacity",
        100,
        "Most objects of one camera at a time; the model may have room for fewer (the released ones: 100).",
        low=1,
        high=4096,
    ),
    Spec("birth_hits", 1, "Frames an object must be seen in before it is TRACKED.", dynamic=True, low=1, high=1000),
    Spec(
        "max_missed",
        150,
        "Frames a discovered object may be LOST before it is given up [frames].",
        dynamic=True,
        low=1,
        high=1_000_000,
    ),
    Spec(
        "dedupe_iou",
        0.7,
        "A discovery that overlaps a live object this much (IoU) is not a new one; 1 switches this off.",
        dynamic=True,
        low=0.0,
        high=1.0,
    ),
    Spec(
        "part_gap",
        8,
        "Parts of a discovery further apart are not one object [pixels of the inner image, steps of 8]; 0 = they are.",
        dynamic=True,
        low=0,
        high=4096,
    ),
    Spec(
        "policy",
        "latest",
        "latest: always the newest image; every: all images in order, from a queue of 32.",
        choices=("latest", "every"),
    ),
    Spec(
        "batch",
        True,
        "Images of several cameras that wait at the same moment go through the model in one pass. Which ones meet "
        "depends on timing, so that results repeat to rounding only.",
    ),
    Spec(
        "max_rate",
        0.0,
        "Most images processed per second and camera [Hz]; 0 = no limit.",
        dynamic=True,
        low=0.0,
        high=1000.0,
    ),
    Spec(
        "max_image_age",
        0.0,
        "Images older than this on receipt are dropped [s]; 0 = no limit.",
        dynamic=True,
        low=0.0,
        high=3600.0,
    ),
    Spec(
        "on_time_jump",
        "reset",
        "When stamps go back by more than 1 s: reset (new epoch) or continue with the same objects.",
        dynamic=True,
        choices=("reset", "continue"),
    ),
    Spec(
        "on_size_change",
        "reset",
        "When the image size changes: reset (new epoch) or reject images of another size.",
        dynamic=True,
        choices=("reset", "reject"),
    ),
    Spec(
        "prompt.history",
        0.0,
        "Seconds of images and states kept, so that a late prompt is applied at its own stamp [s]; 0 = off.",
        low=0.0,
        high=10.0,
    ),
    Spec(
        "prompt.stale_after",
        2.0,
        "A prompt whose stamp lies further from the newest image is refused as STALE_STAMP [s].",
        dynamic=True,
        low=0.0,
        high=3600.0,
    ),
    Spec("prompt.min_area", 1, "Least area of a prompt mask [pixels].", dynamic=True, low=1, high=1_000_000),
    Spec(
        "overlay.max_rate",
        10.0,
        "Most overlay images per second and camera [Hz]; 0 = no limit.",
        dynamic=True,
        low=0.0,
        high=1000.0,
    ),
    Spec(
        "diagnostics.expected_rate",
        0.0,
        "Images per second a camera should deliver [Hz]; less than 80 % of it is a warning; 0 = not checked.",
        dynamic=True,
        low=0.0,
        high=1000.0,
    ),
    Spec(
        "diagnostics.max_latency_ms",
        0.0,
        "95th percentile of receipt to publication above which to warn [ms]; 0 = not checked.",
        dynamic=True,
        low=0.0,
        high=1e6,
    ),
)
CAMERA_SPECS = (
    Spec(
        "transport",
        "raw",
        "raw: <camera>/image as sensor_msgs/Image; compressed: <camera>/image/compressed as CompressedImage.",
        choices=("raw", "compressed"),
    ),
    Spec(
        "reliability",
        "auto",
        "Reliability of the subscription; auto copies the publisher's own.",
        choices=("auto", "reliable", "best_effort"),
    ),
)

THEIRS = ("use_sim_time", "start_type_description_service")  # which rclpy declares for every node

THEIR_CAMERAS = SPECS[0]._replace(description="Names of the cameras, as perception_node has them.")
OVERLAY_SPECS = (
    THEIR_CAMERAS,
    CAMERA_SPECS[0]._replace(description="How images come; <camera>.transport for one camera, raw or compressed."),
    Spec("max_rate", 10.0, "Most images drawn per second and camera [Hz]; 0 = no limit.", True, 0.0, 1000.0),
)
PROJECT_SPECS = (
    THEIR_CAMERAS,
    Spec("rectified", True, "Whether the images are; else camera_info's distortion holds.", True),
    Spec("max_time_difference", 0.02, "Most between the stamps of instances and depth image [s].", True, 0.0, 10.0),
    Spec("nearest", 0.1, "Depth below which a pixel is left out [m].", True, 0.0, 1000.0),
    Spec("farthest", 10.0, "Depth above which a pixel is left out [m].", True, 0.0, 1000.0),
)


@dataclass(frozen=True)
class CameraSettings:
    """How one camera is subscribed."""

    name: str
    transport: str
    reliability: str

    @property
    def topic(self) -> str:
        return f"{self.name}/image" + ("/compressed" if self.transport == "compressed" else "")


@dataclass(frozen=True)
class Settings:
    """One consistent set of values; fields are the names of `SPECS` with "_" for "."."""

    cameras: tuple[str, ...]
    autostart: bool
    checkpoint: str
    device: str
    precision: str
    compile: str
    threads: int
    input_short_side: int
    warmup_frames: int
    warmup_size: tuple[int, int]
    seed: int
    discovery: bool
    score_threshold: float
    prompt_threshold: float
    class_head: str
    capacity: int
    birth_hits: int
    max_missed: int
    dedupe_iou: float
    part_gap: int
    policy: str
    batch: bool
    max_rate: float
    max_image_age: float
    on_time_jump: str
    on_size_change: str
    prompt_history: float
    prompt_stale_after: float
    prompt_min_area: int
    overlay_max_rate: float
    diagnostics_expected_rate: float
    diagnostics_max_latency_ms: float


def camera_specs(camera: str) -> tuple[Spec, ...]:
    """The parameters of one camera, under its own name."""
    return tuple(spec._replace(name=f"{camera}.{spec.name}") for spec in CAMERA_SPECS)


def check_value(spec: Spec, value: Any) -> Any:
    """The value in the type of the spec (whole numbers do for floats); raises `BadParameter` with the reason."""
    default = spec.default
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list):
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str)
            or any(type(v) is not type(default[0]) for v in value)
        ):
            raise BadParameter(f"{spec.name}: a list of {type(default[0]).__name__} is needed, not {value!r}")
        value = list(value)
    elif type(value) is not type(default):
        raise BadParameter(f"{spec.name}: {type(default).__name__} is needed, not {value!r}")
    if spec.choices and value not in spec.choices:
        raise BadParameter(f"{spec.name}: '{value}' is not one of {', '.join(spec.choices)}")
    if spec.low is not None and not spec.low <= value <= (spec.high if spec.high is not None else value):
        raise BadParameter(f"{spec.name}: {value} is outside {spec.low:g} .. {spec.high:g}")
    if spec.name == "cameras":
        _check_cameras(value)
    if spec.name == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise BadParameter(f"device: '{value}' is not auto, cpu or cuda:N")
    if spec.name == "input_short_side" and 0 < value < 32:
        raise BadParameter(f"input_short_side: {value} is outside 32 .. 2048 (or 0 for the checkpoint's own)")
    if spec.name == "warmup_size" and (len(value) != 2 or not all(16 <= v <= 8192 for v in value)):
        raise BadParameter(f"warmup_size: height and width in 16 .. 8192 are needed, not {value}")
    return value


def _check_cameras(names: Sequence[str]) -> None:
    known = {spec.name.split(".")[0] for spec in SPECS}
    if not names:
        raise BadParameter("cameras: at least one name is needed")
    for name in names:
        if not CAMERA_NAME.fullmatch(name) or "__" in name or name.endswith("_"):
            raise BadParameter(f"cameras: '{name}' cannot be part of a topic name (letters, digits, single _)")
        if name in known or name == "debug":
            raise BadParameter(f"cameras: '{name}' is already the name of a parameter or topic")
    if len(set(names)) != len(names):
        raise BadParameter(f"cameras: a name is given twice in {list(names)}")


def check_change(spec: Spec, value: Any, configured: bool) -> Any:
    """As `check_value`, for a change at run time: parameters that are not dynamic hold still while configured."""
    value = check_value(spec, value)
    if configured and not spec.dynamic:
        raise BadParameter(f"{spec.name} can only change while the node is unconfigured (clean it up first)")
    return value


def check_depths(values: Mapping[str, Any]) -> None:
    """Of `PROJECT_SPECS`; raises `BadParameter` where no depth is left."""
    if values["nearest"] >= values["farthest"]:
        raise BadParameter(f"nearest {values['nearest']:g} m is not below farthest {values['farthest']:g} m")


def unknown(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """One sentence for each name that was given and that no parameter has: a node goes on without them."""
    known = [*known, *THEIRS]
    lines = []
    for name in names:
        if name not in known and not name.startswith("qos_overrides."):
            near = difflib.get_close_matches(name, known, n=1)
            lines.append(f"parameter {name} is not known" + (f"; is {near[0]} meant?" if near else ""))
    return lines


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from parameter name -> value; raises `BadParameter`."""
    checked: dict[str, Any] = {spec.field: check_value(spec, values[spec.name]) for spec in SPECS}
    checked |= {"cameras": tuple(checked["cameras"]), "warmup_size": tuple(checked["warmup_size"])}
    return Settings(**checked)


def make_camera_settings(camera: str, values: Mapping[str, Any]) -> CameraSettings:
    """Settings of one camera; raises `BadParameter`."""
    transport, reliability = (check_value(spec, values[spec.name]) for spec in camera_specs(camera))
    return CameraSettings(camera, transport, reliability)
