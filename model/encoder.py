"""Encoders as feature pyramids: ResNet with dilated last stages, VGG-16 with batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import ConvNorm, align
from model.winograd import NONE, Spare


class Features(NamedTuple):
    """f2, f3, f4 [B, C, h, w] of encoder stages 2, 3, 4 (f2 resized to f3 where they differ)."""

    f2: Tensor
    f3: Tensor
    f4: Tensor


class Step(NamedTuple):
    """A layer, or several, of a network whose state is a stack of maps.

    ``run`` takes the uppermost ``takes`` maps, which are of one size, and gives those that replace
    them; below them lie shortcuts. Cell i of what it gives depends on cells i · stride - reach …
    i · stride + reach of what it takes and on nothing else. Without gradient it may overwrite what
    it takes. ``tap``: it gives one of f2, f3, f4. ``spares``: ``run`` also takes ``spare``.
    """

    run: Callable[..., tuple[Tensor, ...]]
    stride: int = 1
    reach: int = 0
    takes: int = 1
    tap: bool = False
    spares: bool = False

    def inner(self, maps: Sequence[Tensor], spare: Spare) -> tuple[Tensor, ...]:
        """What ``run`` gives, without ``spare``."""
        if self.spares:
            return self.run(*maps, spare=spare)
        return tuple(map(spare.cut_off, self.run(*maps)))


class Encoder(nn.Module):
    """Steps one after the other.

    ``block_relu``: False gives f2, f3, f4 as they are before the ReLU; the next stage starts from
    their ReLU all the same.
    """

    block_relu = True

    def steps(self) -> list[Step]:
        """From the picture to f4; three of them are taps. No later step overwrites these: the next
        stage begins with a copy, be it ReLU, pool or downsampled shortcut.
        """
        raise TypeError(f"{type(self).__name__} must define steps")

    def features(self, taps: Sequence[Tensor]) -> Features:
        """What the network calls f2, f3, f4, of the outputs of the taps."""
        return Features(*taps)

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        return self.features(run([image], self.steps()))


def run(stack: list[Tensor], steps: Iterable[Step]) -> list[Tensor]:
    """What those of ``steps`` that are taps give; uses up the stack."""
    taps = []
    for step in steps:
        made = step.run(*[stack.pop() for _ in range(step.takes)][::-1])
        stack += made
        if step.tap:
            taps += made
    return taps


def convolve(conv: ConvNorm) -> Step:
    """A convolution with ReLU."""

    def run(x: Tensor, spare: Spare = NONE) -> tuple[Tensor]:
        return (conv(x, rectify=True, spare=spare),)

    return Step(run, *extent([conv]), spares=True)


def extent(convs: Iterable[ConvNorm]) -> tuple[int, int]:
    """Stride and reach (see :class:`Step`) of convolutions one after the other."""
    stride, reach = 1, 0
    for conv in (layer.conv for layer in convs):
        reach += stride * conv.dilation[0] * (conv.kernel_size[0] // 2)
        stride *= conv.stride[0]
    return stride, reach


class Block(nn.Module):
    """Convolutions beside a shortcut: the identity, or ``downsample`` where it is not None.

    Without gradient the input may be overwritten.
    """

    expansion: int
    downsample: ConvNorm | None

    def path(self) -> list[ConvNorm]:
        """The convolutions beside the shortcut, in their order."""
        raise TypeError(f"{type(self).__name__} must define path")

    def forward(self, x: Tensor, rectify: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w'], before the block's last ReLU or with it."""
        first, *inner, last = self.path()
        shortcut, x = self._open(first, x)
        for conv in inner:
            x = conv(x, rectify=True)
        return last(x, shortcut, rectify)

    def steps(self, rectify: bool) -> list[Step]:
        """The same; a block that changes the size is one step."""
        first, *inner, last = self.path()
        stride, reach = extent(self.path())
        if stride > 1:
            return [Step(lambda x: (self(x, rectify),), stride, reach)]
        return [
            Step(partial(self._open, first), *extent([first])),
            *map(convolve, inner),
            Step(lambda shortcut, x: (last(x, shortcut, rectify),), *extent([last]), takes=2),
        ]

    def _open(self, first: ConvNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = x if self.downsample is None else self.downsample(x)
        return shortcut, first(x, rectify=True)


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
    """ResNet whose stages 3 and 4 keep stride 1 and dilate by 2 and 4: output stride 8.

    ``stem``: 'deep' (three 3×3 convolutions) or '7x7'. ``width``: channels of the first stage (64
    as published).
    """

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
            self.stem = nn.ModuleList(
                [
                    ConvNorm(3, width, 3, stride=2, padding=1),
                    ConvNorm(width, width, 3, padding=1),
                    ConvNorm(width, 2 * width, 3, padding=1),
                ]
            )
            inputs = 2 * width
        else:
            self.stem = nn.ModuleList([ConvNorm(3, width, 7, stride=2, padding=3)])
            inputs = width
        stages = []
        for stage, (depth, stride, dilation) in enumerate(
            zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        ):
            blocks = []
            for index in range(depth):
                blocks.append(block(inputs, width << stage, stride if index == 0 else 1, dilation))
                inputs = (width << stage) * block.expansion
            stages.append(nn.ModuleList(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple((width << stage) * block.expansion for stage in (1, 2, 3))
        self.head_width = 8 * width

    @staticmethod
    def output_size(size: int) -> int:
        """Rows (columns) of f2, f3, f4 for an input of ``size`` rows (columns)."""
        for _ in range(3):
            size = (size - 1) // 2 + 1
        return size

    def steps(self) -> list[Step]:
        """The stem, a 3×3 pool, the blocks."""
        found = [*map(convolve, self.stem), Step(_pool3, 2, 1)]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if found[-1].tap and not self.block_relu:
                found.append(Step(lambda x: (F.relu(x),)))
            for block in stage[:-1]:
                found += block.steps(rectify=True)
            tap = stage is not self.layer1
            found += stage[-1].steps(rectify=self.block_relu or not tap)
            found[-1] = found[-1]._replace(tap=tap)
        return found


def _pool3(x: Tensor) -> tuple[Tensor]:
    return (F.max_pool2d(x, 3, stride=2, padding=1),)


# Convolutions of each part of VGG-16; the parts but the last end with a 2×2 pool in ceil mode.
VGG16_PARTS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGGEncoder(Encoder):
    """VGG-16 with batch norm, cut into five parts; output stride 16, no pool after the last part.

    f2 (part 3, stride 8) is resized with align_corners=True to the size of f3.
    """

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
            parts.append(nn.ModuleList(convs))
        self.parts = nn.ModuleList(parts)
        self.channels = (4 * width, 8 * width, 8 * width)
        self.head_width = 8 * width

    @staticmethod
    def output_size(size: int) -> int:
        """Rows (columns) of f3 and f4 for an input of ``size`` rows (columns)."""
        for _ in range(4):
            size = (size + 1) // 2
        return size

    def steps(self) -> list[Step]:
        """The parts and their pools; f2, f3, f4 are the outputs of the last three."""
        found = []
        for number, convs in enumerate(self.parts, 1):
            found += map(convolve, convs)
            if number < len(self.parts):
                found.append(Step(_pool2, 2, 1))
            found[-1] = found[-1]._replace(tap=number > 2)
        return found

    def features(self, taps: Sequence[Tensor]) -> Features:
        """f2 is resized to f3."""
        f2, f3, f4 = taps
        return Features(align(f2, tuple(f3.shape[-2:])), f3, f4)


def _pool2(x: Tensor) -> tuple[Tensor]:
    return (F.max_pool2d(x, 2, stride=2, ceil_mode=True),)


def _resnet(block: type, depths: tuple[int, int, int, int]):
    def build(stem: str, width: int, block_relu: bool) -> ResNetEncoder:
        return ResNetEncoder(block, depths, stem, width, block_relu)

    return build


def _vgg(stem: str, width: int, block_relu: bool) -> VGGEncoder:
    if not block_relu:
        raise ValueError("block_relu: False needs residual blocks; VGG-16 has none")
    return VGGEncoder(width)


ENCODERS = {
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _resnet(Bottleneck, (3, 8, 36, 3)),
    "vgg16": _vgg,
}


def build_encoder(cfg: Any) -> ResNetEncoder | VGGEncoder:
    """Encoder named by ``backbone``, with ``stem``, ``width`` and ``block_relu``."""
    if cfg.backbone not in ENCODERS:
        raise ValueError(f"backbone {cfg.backbone!r} is not one of {', '.join(ENCODERS)}")
    return ENCODERS[cfg.backbone](cfg.stem, cfg.width, cfg.block_relu)
