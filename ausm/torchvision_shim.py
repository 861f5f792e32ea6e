"""Lets timm import where only torchvision's Python half works (its CUDA build beside a CPU build of torch).

`import torchvision` registers fake kernels for operators that its C++ library would have defined; when that library
does not load, the schemas are missing and the import fails. Defining the schemas is enough: AUSM calls no torchvision
operator. Active only when torchvision's own operators fail to load.
"""

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this object


def import_torchvision() -> None:
    """Make `import torchvision` succeed, by itself or with the two missing schemas defined first."""
    global _library
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _library is not None:
            raise
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported modules would be found again
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    importlib.import_module("torchvision")
