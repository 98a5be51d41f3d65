"""The models. They know tensors only: no files, data sets, process groups or printing."""

from __future__ import annotations

import pkgutil
import warnings
from typing import TYPE_CHECKING

from model.registry import ARCHITECTURES, method

if TYPE_CHECKING:
    from torch import nn

    from util.config import Config

FASTER = {"HDMNet": "model.fast.hdmnet:FastHDMNet", "HSNet": "model.fast.hsnet:FastHSNet"}


def build_model(cfg: Config) -> nn.Module:
    """Model named by ``arch``, with fresh weights; reads no file.

    ``compute``: 'textbook' for the equations as written, 'fast' for the same results with less work
    where a method has such a form. Raises ValueError for an unknown name or options that do not go
    together.
    """
    if cfg.arch not in ARCHITECTURES:
        raise ValueError(f"arch {cfg.arch!r} is not one of {', '.join(ARCHITECTURES)}")
    if cfg.compute not in ("fast", "textbook"):
        raise ValueError(f"compute {cfg.compute!r} is not one of fast, textbook")
    form = method(cfg.arch)
    if cfg.compute == "fast" and cfg.arch in FASTER:
        try:
            form = pkgutil.resolve_name(FASTER[cfg.arch])
        except ModuleNotFoundError as error:
            if error.name != "model.fast":
                raise
            warnings.warn("model/fast is missing: the textbook form is computed", stacklevel=1)
    model = form.from_config(cfg)
    model.object_above = cfg.object_above
    return model
