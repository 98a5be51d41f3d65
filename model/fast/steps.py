"""ResNet and VGG-16 as steps over a stack of maps, their batch norms folded.

Written so that a step can be asked for a part of its map only, which ``cpu/around_object.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.encoder import Block, ResNetEncoder, VGGEncoder
from model.fast.cpu.folded_conv import FoldedConv, fold
from model.fast.cpu.winograd import NONE, Spare


class Step(NamedTuple):
    """A layer, or several, of a network whose state is a stack of maps.

    ``run`` takes the uppermost ``takes`` maps, which are of one size, and gives those that replace
    them; below them lie shortcuts. Cell i of what it gives depends on cells i · stride - reach …
    i · stride + reach of what it takes and on nothing else. It may overwrite what it takes.
    ``tap``: it gives one of f2, f3, f4, which no later step overwrites: the next stage begins with
    a copy, be it ReLU, pool or downsampled shortcut. ``spares``: ``run`` also takes ``spare``.
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


def run(stack: list[Tensor], steps: Iterable[Step]) -> list[Tensor]:
    """What those of ``steps`` that are taps give; uses up the stack."""
    taps: list[Tensor] = []
    for step in steps:
        made = step.run(*[stack.pop() for _ in range(step.takes)][::-1])
        stack += made
        if step.tap:
            taps += made
    return taps


def convolve(conv: FoldedConv) -> Step:
    """A convolution with ReLU."""

    def run(x: Tensor, spare: Spare = NONE) -> tuple[Tensor]:
        return (conv(x, rectify=True, spare=spare),)

    return Step(run, *extent([conv]), spares=True)


def extent(convs: Iterable[FoldedConv]) -> tuple[int, int]:
    """Stride and reach (see :class:`Step`) of convolutions one after the other."""
    stride, reach = 1, 0
    for conv in convs:
        reach += stride * conv.options.dilation[0] * (conv.weight.shape[2] // 2)
        stride *= conv.options.stride[0]
    return stride, reach


class FoldedBlock:
    """``block`` without gradient; the input may be overwritten."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.path = [fold(conv, dtype) for conv in block.path()]
        self.downsample = None if block.downsample is None else fold(block.downsample, dtype)

    def __call__(self, x: Tensor, rectify: bool) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w'], before the ReLU that follows or with it."""
        first, *inner, last = self.path
        shortcut, x = self._open(x)
        for conv in inner:
            x = conv(x, rectify=True)
        return last(x, shortcut, rectify)

    def steps(self, rectify: bool) -> list[Step]:
        """The same; a block that changes the size is one step."""
        first, *inner, last = self.path
        stride, reach = extent(self.path)
        if stride > 1:
            return [Step(lambda x: (self(x, rectify),), stride, reach)]
        return [
            Step(self._open, *extent([first])),
            *map(convolve, inner),
            Step(lambda shortcut, x: (last(x, shortcut, rectify),), *extent([last]), takes=2),
        ]

    def _open(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = x if self.downsample is None else self.downsample(x)
        return shortcut, self.path[0](x, rectify=True)


def resnet_steps(encoder: ResNetEncoder, dtype: torch.dtype) -> list[Step]:
    """The stem, a 3×3 pool, the blocks."""
    found = [convolve(fold(conv, dtype)) for conv in encoder.stem]
    found.append(Step(lambda x: (F.max_pool2d(x, 3, stride=2, padding=1),), 2, 1))
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        if found[-1].tap and not encoder.block_relu:
            found.append(Step(lambda x: (F.relu(x),)))
        *blocks, last = (FoldedBlock(block, dtype) for block in stage)
        for block in blocks:
            found += block.steps(rectify=True)
        tap = stage is not encoder.layer1
        found += last.steps(rectify=encoder.block_relu or not tap)
        found[-1] = found[-1]._replace(tap=tap)
    return found


def vgg_steps(encoder: VGGEncoder, dtype: torch.dtype) -> list[Step]:
    """The parts and their pools; f2, f3, f4 are the outputs of the last three."""
    found = []
    for number, convs in enumerate(encoder.parts, 1):
        found += [convolve(fold(conv, dtype)) for conv in convs]
        if number < len(encoder.parts):
            pool = partial(F.max_pool2d, kernel_size=2, stride=2, ceil_mode=True)
            found.append(Step(lambda x, pool=pool: (pool(x),), 2, 1))
        found[-1] = found[-1]._replace(tap=number > 2)
    return found
