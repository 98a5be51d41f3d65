"""Small pieces shared by the models: resizing, conv + batch norm with a folded view."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.folded import FoldedConv, convolve_with, finish
from model.winograd import NONE, Spare


def align(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] with align_corners=True."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def align_rows(x: Tensor, size: tuple[int, int], first: int, end: int) -> Tensor:
    """Rows first … end - 1 of ``align(x, size)``."""
    high = x.shape[2] - 1
    at = torch.arange(first, end, dtype=torch.float64, device=x.device)
    at = at * (high / max(1, size[0] - 1))
    low = at.long().clamp(max=high)
    share = (at - low).to(x.dtype)[:, None]
    rows = torch.lerp(x[:, :, low], x[:, :, (low + 1).clamp(max=high)], share)
    return align(rows, (end - first, size[1]))


def plain(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] with align_corners=False."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of [B, h, w] (any dtype); the corner pixel of each cell is taken."""
    rows = _nearest_index(mask.shape[-2], size[0], mask.device)
    columns = _nearest_index(mask.shape[-1], size[1], mask.device)
    return mask[..., rows[:, None], columns]


def _nearest_index(source: int, target: int, device: torch.device) -> Tensor:
    # As F.interpolate(mode='nearest'): floor(i * scale), computed in float32.
    index = torch.arange(target, dtype=torch.float32, device=device) * (source / target)
    return index.long().clamp(max=source - 1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast would use for ``x`` here, or the dtype of ``x`` without autocast."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def versions(tensors: Iterable[Tensor]) -> tuple:
    """Changes when one of the tensors does, other than through ``.data``."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


class Derived:
    """What is computed from weights once and kept by dtype, until they change: a view on demand,
    neither in the state dict nor in copies.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, tuple[Any, Any]] = {}

    def get(self, dtype: torch.dtype, source: Any, make: Callable[[], Any]) -> Any:
        """``make()``, or its former result when ``source``, which tells the weights, is as then."""
        kept = self._kept.get(dtype)
        if kept is None or kept[0] != source:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[dtype] = source, make()
        return kept[1]

    def __getstate__(self) -> dict:
        return {"_kept": {}}


def full_precision(x: Tensor) -> Tensor:
    """float32 for half-precision tensors; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class ConvNorm(nn.Module):
    """Convolution followed by batch norm.

    With ``fold`` set, a batch norm that is in evaluation mode is folded into the convolution: one
    operation and one stored map instead of two. Where gradients flow, they flow through the
    folding, which torch.compile traces too. Otherwise the folded weights are kept as a view made
    on demand: not in the state dict, made anew whenever one of the tensors they come from has
    changed.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, **options) -> None:
        super().__init__()
        options.setdefault("bias", False)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, **options)
        self.bn = nn.BatchNorm2d(out_channels)
        self.fold = False
        self._folded = Derived()

    def forward(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        rectify: bool = False,
        spare: Spare = NONE,
    ) -> Tensor:
        """[B, I, h, w] -> [B, O, h', w'], plus ``shortcut`` (which may be overwritten where no
        gradient is needed), then ReLU with ``rectify``; without ``spare``.
        """
        if not self.fold or self.bn.training:
            return spare.cut_off(finish(self.bn(self.conv(x)), shortcut, rectify))
        inputs = (x, shortcut, self.conv.weight, self.bn.weight)
        learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        if learns or torch.compiler.is_compiling():
            found = finish(convolve_with(self.conv, x, *self.fused()), shortcut, rectify)
            return spare.cut_off(found)
        return self.folded(compute_dtype(x))(x, shortcut, rectify, spare)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the equivalent single convolution; gradients flow through them."""
        conv, bn = self.conv, self.bn
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        mean = bn.running_mean if conv.bias is None else bn.running_mean - conv.bias
        return conv.weight * scale[:, None, None, None], bn.bias - mean * scale

    def folded(self, dtype: torch.dtype) -> FoldedConv:
        """The equivalent single convolution in ``dtype``, made anew when the weights change."""
        conv, bn = self.conv, self.bn
        parts = (conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
        source = versions(part for part in parts if part is not None)

        def make() -> FoldedConv:
            weight, bias = self.fused()
            weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
            return FoldedConv(weight, bias.to(dtype), conv)

        return self._folded.get(dtype, source, make)


def set_folding(module: nn.Module, fold: bool) -> None:
    """Switch the folded view of every :class:`ConvNorm` below ``module`` on or off."""
    for part in module.modules():
        if isinstance(part, ConvNorm):
            part.fold = fold


def fix_batch_norms(module: nn.Module) -> None:
    """Put every batch norm below ``module`` in evaluation mode (``fix_bn``)."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
