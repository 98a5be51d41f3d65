"""The encoders with folded batch norms, channels last; on processors around an object only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from model.encoder import Features, ResNetEncoder, VGGEncoder
from model.fast.cpu.around_object import AroundObject
from model.fast.derived import Derives, compute_dtype
from model.fast.steps import Step, resnet_steps, run, vgg_steps
from model.layers import align, size_of


class FoldedEncoder(Derives):
    """An encoder that can be written as ``steps``."""

    steps: Callable[[torch.dtype], list[Step]]

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        steps = self._derived_steps(image)
        image = image.contiguous(memory_format=torch.channels_last)
        return super().forward(image) if steps is None else _features(run([image], steps))

    def around(self, image: Tensor, mask: Tensor) -> Features:
        """The same for one picture [1, 3, H, W] on a processor, zero where mask [1, H, W] is."""
        steps, dtype = self._derived_steps(image), compute_dtype(image)
        if steps is None:
            return self(image)
        encode = self.derived(("around", dtype), lambda: AroundObject(steps, dtype))
        image = image.contiguous(memory_format=torch.channels_last)
        return _features(encode(image, mask))

    def _derived_steps(self, image: Tensor) -> list[Step] | None:
        dtype = compute_dtype(image)
        return self.derived(dtype, partial(self.steps, dtype))


class FoldedResNet(FoldedEncoder, ResNetEncoder):
    """See :class:`FoldedEncoder`."""

    steps = resnet_steps


class FoldedVGG(FoldedEncoder, VGGEncoder):
    """See :class:`FoldedEncoder`."""

    steps = vgg_steps


def _features(taps: list[Tensor]) -> Features:
    f2, f3, f4 = taps
    return Features(align(f2, size_of(f3)), f3, f4)


FORMS = {ResNetEncoder: FoldedResNet, VGGEncoder: FoldedVGG}
