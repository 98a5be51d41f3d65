"""Pictures of one's own: the predictors, and the files that they read and write.

What needs PyTorch is imported when it is asked for: :class:`OnnxPredictor` works without it.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from util.data.masks import binary_mask
from util.data.shapes import box_mask, polygon_mask
from util.predict.base import Prediction

if TYPE_CHECKING:
    from util.predict.onnx import OnnxPredictor
    from util.predict.predictor import FewShotPredictor

__all__ = [
    "FewShotPredictor",
    "OnnxPredictor",
    "Prediction",
    "binary_mask",
    "box_mask",
    "polygon_mask",
]
LATER = {
    "FewShotPredictor": "util.predict.predictor:FewShotPredictor",
    "OnnxPredictor": "util.predict.onnx:OnnxPredictor",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(LATER[name])
