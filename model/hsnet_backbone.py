"""Backbones of HSNet: every residual block of three stages (ResNet), or seven layers of VGG-16; of
timm's networks, the last layer of each stride (:mod:`model.timm_encoder`).

Unlike the encoders of ``model/encoder.py`` nothing is dilated (output stride 32), and a feature is
taken after each bottleneck's residual addition, before the ReLU that follows it. The features of a
stage have one size and one number of channels; HSNet stacks them as the channels of its
hypercorrelation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import TIMM, VGG16_PARTS, BasicBlock, Bottleneck
from model.layers import Backbone, ConvNorm, Modules
from model.registry import STRIDES, rounded_up

if TYPE_CHECKING:
    from model.timm_encoder import TimmTaps
    from util.config import Config


class ResNetTaps(Backbone):
    """ResNet with strides 4, 8, 16, 32; taps: all blocks of stages 2 to 4, before their last ReLU.

    ``stem``: '7x7' as published, or 'deep' (three 3×3 convolutions). ``width``: channels of the
    first stage, 64 as published.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        stem: str = "7x7",
        width: int = 64,
    ) -> None:
        super().__init__()
        if stem == "deep":
            shapes = [(3, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)]
        else:
            shapes = [(3, width, 7, 2)]
        self.stem = Modules(
            ConvNorm(a, b, k, stride=stride, padding=k // 2) for a, b, k, stride in shapes
        )
        inputs = shapes[-1][1]
        stages = []
        for stage, depth in enumerate(depths):
            outputs = width << stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, outputs, stride, 1))
                inputs = outputs * block.expansion
            stages.append(Modules(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layers = depths[1:]

    grids = staticmethod(rounded_up)

    def forward(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """image [B, 3, H, W], normalised -> one after another (group 0 to 2, tap [B, C, h, w]).

        A tap belongs to the caller, who may change it in place.
        """
        x = image
        for conv in self.stem:
            x = F.relu(conv(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.layer1:
            x = F.relu(block(x))
        for group, stage in enumerate((self.layer2, self.layer3, self.layer4)):
            for block in stage:
                tap = block(x)
                x = F.relu(tap)
                yield group, tap


class VGGTaps(Backbone):
    """VGG-16 without batch norm; taps: the last two parts' convolutions before their ReLU and the
    part before them, by torchvision's numbering layers 17, 19, 21 | 24, 26, 28 | 30.

    The first two groups lie behind three and four 2×2 pools, the last is the fifth pool's output.
    """

    TAPS = ((17, 19, 21), (24, 26, 28), (30,))

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        inputs = 3
        layers: list[nn.Module] = []
        for part in VGG16_PARTS:
            for channels in part:
                outputs = channels * width // 64
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.ModuleList(layers)
        self.layers = tuple(len(group) for group in self.TAPS)
        self.group_of = {index: group for group, taps in enumerate(self.TAPS) for index in taps}

    @staticmethod
    def grids(size: int) -> tuple[int, ...]:
        """Rows (columns) at strides 8, 16 and 32 for an input of ``size`` rows (columns)."""
        return tuple(size // stride for stride in STRIDES)

    def forward(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """image [B, 3, H, W], normalised -> one after another (group 0 to 2, tap [B, C, h, w])."""
        x = image
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.group_of:
                tap, x = x, F.relu(x)  # the tap stays as it is when the next layer works in place
                yield self.group_of[index], tap


def _resnet(block: type, depths: tuple[int, int, int, int]):
    def build(stem: str, width: int) -> ResNetTaps:
        return ResNetTaps(block, depths, stem, width)

    return build


BACKBONES = {
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _resnet(Bottleneck, (3, 8, 36, 3)),
    "vgg16": lambda stem, width: VGGTaps(width),
}


def build_backbone(cfg: Config) -> ResNetTaps | VGGTaps | TimmTaps:
    """Backbone named by ``backbone``, with ``stem`` and ``width``, which timm's have not."""
    if cfg.backbone.startswith(TIMM):
        from model.timm_encoder import TimmTaps  # its import takes a second

        return TimmTaps(cfg.backbone.removeprefix(TIMM))
    if cfg.backbone not in BACKBONES:
        known = ", ".join([*BACKBONES, f"{TIMM}<name>"])
        raise ValueError(f"backbone {cfg.backbone!r} is not one of {known}")
    return BACKBONES[cfg.backbone](cfg.stem, cfg.width)
