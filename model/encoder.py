"""Encoders as feature pyramids: ResNet with dilated last stages, VGG-16 with batch norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import ConvNorm, Encoder, Features, Modules, align, size_of

if TYPE_CHECKING:
    from util.config import Config


class Block(nn.Module):
    """Convolutions beside a shortcut: the identity, or ``downsample`` where it is not None."""

    expansion: int
    downsample: ConvNorm | None

    def path(self) -> list[ConvNorm]:
        """The convolutions beside the shortcut, in their order."""
        raise TypeError(f"{type(self).__name__} must define path")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w'], before the ReLU that follows the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        *convs, last = self.path()
        for conv in convs:
            x = F.relu(conv(x))
        return last(x) + shortcut


class BasicBlock(Block):
    """Two 3×3 convolutions with a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, 3, stride=stride, padding=dilation, dilation=dilation)
        self.conv2 = ConvNorm(width, width, 3, padding=dilation, dilation=dilation)
        self.downsample = (
            ConvNorm(inputs, width, 1, stride=stride) if stride != 1 or inputs != width else None
        )

    def path(self) -> list[ConvNorm]:
        """Both convolutions."""
        return [self.conv1, self.conv2]


class Bottleneck(Block):
    """1×1, 3×3, 1×1 convolutions with a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = ConvNorm(inputs, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride=stride, padding=dilation, dilation=dilation)
        self.conv3 = ConvNorm(width, outputs, 1)
        self.downsample = (
            ConvNorm(inputs, outputs, 1, stride=stride)
            if stride != 1 or inputs != outputs
            else None
        )

    def path(self) -> list[ConvNorm]:
        """The three convolutions."""
        return [self.conv1, self.conv2, self.conv3]


class ResNetEncoder(Encoder):
    """ResNet whose stages 3 and 4 keep stride 1 and dilate by 2 and 4: reduction 8.

    ``stem``: 'deep' (three 3×3 convolutions) or '7x7'. ``width``: channels of the first stage (64
    as published). ``block_relu``: False gives f2, f3, f4 as they are before the ReLU; the next
    stage starts from their ReLU all the same.
    """

    reduction = 8

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        stem: str = "deep",
        width: int = 64,
        block_relu: bool = True,
    ) -> None:
        super().__init__()
        self.block_relu = block_relu
        if stem == "deep":
            self.stem = Modules(
                [
                    ConvNorm(3, width, 3, stride=2, padding=1),
                    ConvNorm(width, width, 3, padding=1),
                    ConvNorm(width, 2 * width, 3, padding=1),
                ]
            )
            inputs = 2 * width
        else:
            self.stem = Modules([ConvNorm(3, width, 7, stride=2, padding=3)])
            inputs = width
        stages = []
        for stage, (depth, stride, dilation) in enumerate(
            zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        ):
            blocks = []
            for index in range(depth):
                blocks.append(block(inputs, width << stage, stride if index == 0 else 1, dilation))
                inputs = (width << stage) * block.expansion
            stages.append(Modules(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple((width << stage) * block.expansion for stage in (1, 2, 3))
        self.head_width = 8 * width

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        x = image
        for conv in self.stem:
            x = F.relu(conv(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        taps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                tap = block(x)
                x = F.relu(tap)
            taps.append(x if self.block_relu else tap)
        return Features(*taps[1:])


# Convolutions of each part of VGG-16; the parts but the last end with a 2×2 pool in ceil mode.
VGG16_PARTS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGGEncoder(Encoder):
    """VGG-16 with batch norm, cut into five parts; reduction 16, no pool after the last part.

    f2 (part 3, reduction 8) is resized with align_corners=True to the size of f3.
    """

    reduction = 16

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        inputs = 3
        parts = []
        for part in VGG16_PARTS:
            convs = []
            for channels in part:
                outputs = channels * width // 64
                convs.append(ConvNorm(inputs, outputs, 3, padding=1, bias=True))
                inputs = outputs
            parts.append(Modules(convs))
        self.parts = Modules(parts)
        self.channels = (4 * width, 8 * width, 8 * width)
        self.head_width = 8 * width

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        x, taps = image, []
        for number, convs in enumerate(self.parts, 1):
            for conv in convs:
                x = F.relu(conv(x))
            if number < len(self.parts):
                x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
            taps.append(x)
        f2, f3, f4 = taps[2:]
        return Features(align(f2, size_of(f3)), f3, f4)


def _resnet(block: type, depths: tuple[int, int, int, int]):
    def build(stem: str, width: int, block_relu: bool) -> ResNetEncoder:
        return ResNetEncoder(block, depths, stem, width, block_relu)

    return build


def _vgg(stem: str, width: int, block_relu: bool) -> VGGEncoder:
    if not block_relu:
        raise ValueError("block_relu: False needs residual blocks; VGG-16 has none")
    return VGGEncoder(width)


TIMM = "timm/"
ENCODERS = {
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _resnet(Bottleneck, (3, 8, 36, 3)),
    "vgg16": _vgg,
}


def build_encoder(cfg: Config) -> Encoder:
    """Encoder named by ``backbone``, with ``stem``, ``width`` and ``block_relu``; timm's have none
    of these. Raises ValueError for an unknown name or options that do not go together.
    """
    if cfg.backbone.startswith(TIMM):
        from model.timm_encoder import TimmEncoder  # its import takes a second

        if not cfg.block_relu:
            raise ValueError(f"block_relu: False has no meaning for {cfg.backbone}")
        return TimmEncoder(cfg.backbone.removeprefix(TIMM))
    if cfg.backbone not in ENCODERS:
        known = ", ".join([*ENCODERS, f"{TIMM}<name>"])
        raise ValueError(f"backbone {cfg.backbone!r} is not one of {known}")
    return ENCODERS[cfg.backbone](cfg.stem, cfg.width, cfg.block_relu)
