"""The decoder's MLPs, in which nothing is non-linear, as one convolution each."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder import MLP
from model.fast.cpu.folded_conv import FoldedConv, Options, fused
from model.fast.derived import Derives, compute_dtype
from model.layers import ConvNorm

PADDED = Options(padding=(1, 1))


class ComposedMLP(Derives, MLP):
    """One 3×3 convolution of C channels, for 17 times fewer products; gradients flow through it.

    Zeros around the map stand beside the first convolution's bias, not under it: what the bias
    gives is a map of its own, constant but for the border. Batch norms that learn statistics stay
    as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h, w]."""
        if any(layer.bn.training for layer in self if isinstance(layer, ConvNorm)):
            return super().forward(x)
        ones = x.new_ones(1, 1, *x.shape[2:])
        dtype = compute_dtype(x)
        kept = self.derived(dtype, partial(self._fold, dtype))
        if kept is not None:
            inner, border = kept
            return inner(x).add_(border(ones))
        weight, border, bias = self._composed()
        return F.conv2d(x, weight, padding=1) + F.conv2d(ones, border, bias, padding=1)

    def _composed(self) -> tuple[Tensor, Tensor, Tensor]:
        """[C', C, 3, 3] over the input, [C', 1, 3, 3] over the first bias, bias [C']."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            (widen, shift), (square, offset), (narrow, bias) = map(_weights, self)
            widen = torch.cat([widen.flatten(1), shift[:, None]], dim=1)  # [4 C, C + 1]
            taps = torch.matmul(narrow.flatten(1), square.flatten(1))  # [C', 4 C · 9]
            taps = taps.unflatten(1, (-1, 9)).transpose(1, 2)
            composed = torch.matmul(taps, widen).transpose(1, 2).unflatten(2, (3, 3))
            weight, border = composed.split([widen.shape[1] - 1, 1], dim=1)
            return weight, border, torch.mv(narrow.flatten(1), offset) + bias

    def _fold(self, dtype: torch.dtype) -> tuple[FoldedConv, FoldedConv]:
        """One over the input, one over the map of ones."""
        weight, border, bias = (part.to(dtype) for part in self._composed())
        weight = weight.contiguous(memory_format=torch.channels_last)
        over_input = FoldedConv(weight, torch.zeros_like(bias), PADDED)
        return over_input, FoldedConv(border, bias, PADDED)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(layer, ConvNorm):
        return fused(layer)
    return layer.get_parameter("weight"), layer.get_parameter("bias")


FORMS: dict[type, type] = {MLP: ComposedMLP}
