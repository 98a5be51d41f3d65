"""The models. They know tensors only: no files, data sets, process groups or printing."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from model.hdmnet import HDMNet
from model.hsnet import HSNet
from model.pspnet import PSPNet

ARCHITECTURES = {"HDMNet": HDMNet, "HSNet": HSNet, "PSPNet": PSPNet}

try:
    from model.fast.hdmnet import FastHDMNet
    from model.fast.hsnet import FastHSNet

    FASTER = {HDMNet: FastHDMNet, HSNet: FastHSNet}
except ModuleNotFoundError as error:
    if error.name != "model.fast":
        raise
    FASTER = None


def build_model(cfg: Any) -> nn.Module:
    """Model named by ``arch``, with fresh weights; reads no file.

    ``compute``: 'textbook' for the equations as written, 'fast' for the same results with less work
    where a method has such a form. Raises ValueError for an unknown name or options that do not go
    together.
    """
    if cfg.arch not in ARCHITECTURES:
        raise ValueError(f"arch {cfg.arch!r} is not one of {', '.join(ARCHITECTURES)}")
    if cfg.compute not in ("fast", "textbook"):
        raise ValueError(f"compute {cfg.compute!r} is not one of fast, textbook")
    method = ARCHITECTURES[cfg.arch]
    if cfg.compute == "fast":
        if FASTER is None:
            warnings.warn("model/fast is missing: the textbook form is computed", stacklevel=1)
        else:
            method = FASTER.get(method, method)
    return method.from_config(cfg)
