"""What training starts from: stage 1, or an encoder from ImageNet (a file, torchvision's, none)."""

from __future__ import annotations

import os
from typing import Any
from urllib.error import URLError

import torchvision
from torch import nn

from util.checkpoint import LoadReport, load_weights
from util.errors import FewShotError


def load_pretrained(model: nn.Module, cfg: Any) -> LoadReport | None:
    """Fill the frozen part from stage 1 (``cfg.base_weight``), or the encoder from
    ``cfg.pretrained``: a file, 'torchvision' (downloaded once by torchvision itself), or 'none'
    (None is returned and the weights stay random). FewShotError when there is no such file."""
    if cfg.base_weight:
        if not os.path.exists(cfg.base_weight):
            raise FewShotError(
                f"stage 1's weight file {cfg.base_weight} does not exist: run train_base.py for "
                "this data set, split and backbone first, or set base_weight to another file"
            )
        return load_weights(model, cfg.base_weight)
    if cfg.pretrained == "none":
        return None
    if cfg.pretrained == "torchvision":
        return load_weights(model, _from_torchvision(cfg.backbone, model))
    if not os.path.exists(cfg.pretrained):
        raise FewShotError(
            f"encoder weights {cfg.pretrained} do not exist: put the file there, or set pretrained "
            "to another file, to torchvision (with stem: 7x7, or vgg16), or to none for random"
        )
    return load_weights(model, cfg.pretrained)


def _from_torchvision(backbone: str, model: nn.Module) -> dict[str, Any]:
    name = backbone.replace("resnet", "ResNet").replace("vgg", "VGG")
    layers = getattr(model, "encoder", model).modules()
    if name == "VGG16" and any(isinstance(layer, nn.BatchNorm2d) for layer in layers):
        name = "VGG16_BN"
    weights = torchvision.models.get_weight(f"{name}_Weights.IMAGENET1K_V1")
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise FewShotError(
            f"cannot download torchvision's weights for {backbone} from {weights.url} ({error}); "
            "set pretrained to a file, or to none for random weights"
        ) from error
