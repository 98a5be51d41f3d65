"""A convolution with its batch norm folded in, computed in the form that is quickest for its input.

Winograd's where that pays. On CPUs otherwise oneDNN's, with weights laid out once the way it reads
them (torch's own call lays them out anew each time, which for small maps takes as long as the
products) and with the sum with a shortcut and the ReLU done while a result is at hand. Else
torch's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fast.cpu.winograd import NONE, Spare, Winograd, pays
from model.layers import ConvNorm

SHAPES = 2  # of inputs, for which laid-out weights are kept
RECENT = 64  # calls by which it is judged which shapes come often
# Of torch.ops.mkldnn; torch's own compiler relies on them, its documentation leaves them out.
OPERATIONS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_reorder_convolution_weight",
    "_is_mkldnn_bf16_supported",
    "_is_mkldnn_fp16_supported",
)


def finish(x: Tensor, shortcut: Tensor | None, rectify: bool) -> Tensor:
    """``x`` plus ``shortcut``, then ReLU, in place."""
    if shortcut is not None:
        x = x.add_(shortcut)
    return F.relu(x, inplace=True) if rectify else x


class Options(NamedTuple):
    """Of a convolution, in torch's order."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Options:
        """Those of ``conv``."""
        assert not isinstance(conv.padding, str)
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups)


def fused(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the equivalent single convolution; gradients flow through them."""
    conv, bn = layer.conv, layer.bn
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    mean = bn.running_mean if conv.bias is None else bn.running_mean - conv.bias
    return conv.weight * scale[:, None, None, None], bn.bias - mean * scale


def fold(layer: ConvNorm, dtype: torch.dtype) -> FoldedConv:
    """The equivalent single convolution in ``dtype``."""
    weight, bias = fused(layer)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return FoldedConv(weight, bias.to(dtype), Options.of(layer.conv))


@dataclass(eq=False)
class FoldedConv:
    """Use it without gradient. weight [O, C, k, k] (channels last), bias [O]."""

    weight: Tensor
    bias: Tensor
    options: Options = Options()
    _layouts: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _asked: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def __call__(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        rectify: bool = False,
        spare: Spare = NONE,
    ) -> Tensor:
        """[B, C, h, w] -> [B, O, h', w'], plus ``shortcut``, which may be overwritten, then ReLU
        with ``rectify``; without ``spare``.
        """
        x = x.to(self.weight.dtype)
        if self._square and pays(x.shape, self.weight, self.options.dilation[0]):
            if shortcut is None:
                return self._winograd(x, rectify, spare)
            return finish(self._winograd(x, spare=spare), spare.cut_off(shortcut), rectify)
        return spare.cut_off(self._whole(x, shortcut, rectify))

    def _whole(self, x: Tensor, shortcut: Tensor | None, rectify: bool) -> Tensor:
        if not packs(x):
            found = F.conv2d(x, self.weight, self.bias, *self.options)
            return finish(found, shortcut, rectify)
        ops, weight, options = torch.ops.mkldnn, self._packed(x), self._options
        after = "relu" if rectify else None
        if shortcut is None:
            run = ops._convolution_pointwise
            return run(x, weight, self.bias, *options, after or "none", [], "")
        add = ops._convolution_pointwise_.binary
        shortcut = shortcut.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return add(shortcut, x, weight, self.bias, *options, "add", 1.0, after, [], "")

    @property
    def _options(self) -> tuple:
        """In oneDNN's order."""
        stride, padding, dilation, groups = self.options
        return padding, stride, dilation, groups

    @cached_property
    def _square(self) -> bool:
        stride, padding, dilation, groups = self.options
        return (
            self.weight.shape[2:] == (3, 3)
            and stride == (1, 1)
            and padding == dilation
            and dilation[0] == dilation[1]
            and groups == 1
        )

    @cached_property
    def _winograd(self) -> Winograd:
        return Winograd(self.weight, self.bias, self.options.dilation[0])

    def _packed(self, x: Tensor) -> Tensor:
        """The weights as oneDNN reads them for inputs of x's shape: those for another shape may be
        far slower. A new shape takes the place of the one that came less often of late: pictures
        have one shape, supports around their objects many.
        """
        shape = tuple(x.shape)
        self._asked[shape] += 1
        if self._asked.total() > RECENT:
            asked = tuple(self._asked.items())
            self._asked = Counter({shape: n // 2 for shape, n in asked if n > 1})
        found = self._layouts.get(shape)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                reorder = torch.ops.mkldnn._reorder_convolution_weight
                found = reorder(self.weight, *self._options, list(shape))
            others = sorted(self._layouts, key=self._asked.__getitem__)[-(SHAPES - 1) :]
            # A new dictionary: other threads may be reading the former one.
            self._layouts = {**{s: self._layouts[s] for s in others}, shape: found}
        return found


def packs(x: Tensor) -> bool:
    """Whether oneDNN's own form is there for ``x`` (and nothing traces what is computed)."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    onednn = torch.backends.mkldnn
    return onednn.is_available() and bool(onednn.enabled) and _packs(x.dtype)


@lru_cache
def _packs(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not all(hasattr(ops, name) for name in OPERATIONS):
        return False
    if dtype == torch.float16:
        return ops._is_mkldnn_fp16_supported()
    if dtype == torch.bfloat16:
        return ops._is_mkldnn_bf16_supported()
    return dtype == torch.float32
