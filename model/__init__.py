"""The models. They know tensors only: no files, data sets, process groups or printing."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.hdmnet import HDMNet
from model.hsnet import HSNet
from model.pspnet import PSPNet

ARCHITECTURES = {"HDMNet": HDMNet, "HSNet": HSNet, "PSPNet": PSPNet}


def build_model(cfg: Any) -> nn.Module:
    """Model named by ``arch``, with fresh weights; reads no file.

    Raises ValueError for an unknown name or options that do not go together.
    """
    if cfg.arch not in ARCHITECTURES:
        raise ValueError(f"arch {cfg.arch!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[cfg.arch].from_config(cfg)
