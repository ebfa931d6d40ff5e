"""Public packages that bring networks and loops of their own: timm, transformers, lightning."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import torch

os.environ["HF_HUB_OFFLINE"] = "1"

_OPERATORS = (
    "_deform_conv2d_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_roi_align_backward",
    "_roi_pool_backward",
    "deform_conv2d",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "qnms",
    "qroi_align",
    "roi_align",
    "roi_pool",
)
_library: torch.library.Library | None = None


def load(package: str) -> ModuleType:
    """Import one of them.

    They all import torchvision where it is installed, and timm installs it.  The torchvision of PyPI does not
    import beside a CPU-only torch, as its compiled operators are missing; none of them is run here, so a
    declaration is enough.
    """
    global _library
    if _library is None and "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except ImportError:
            pass
        except RuntimeError:
            _library = torch.library.Library("torchvision", "DEF")
            for name in _OPERATORS:
                _library.define(f"{name}(Tensor a) -> Tensor")
    return importlib.import_module(package)
