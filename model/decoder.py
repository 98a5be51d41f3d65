"""Coarse-to-fine MLP decoder (Eq. 1) and classification head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.folded import FoldedConv
from model.layers import ConvNorm, Derived, compute_dtype, plain, versions


class MLP(nn.Sequential):
    """1×1 conv to 4 C, BN, 3×3 conv, BN, 1×1 conv (and BN): [B, C, h, w] -> [B, C', h, w].

    Nothing in it is non-linear. Where its batch norms are folded it therefore is one 3×3
    convolution of C channels, for 17 times fewer products. Zeros around the map stand beside the
    first convolution's bias, not under it: what the bias gives is a map of its own, constant but
    for the border.
    """

    def __init__(self, dim: int, last: nn.Module) -> None:
        super().__init__(
            ConvNorm(dim, 4 * dim, 1, bias=True),
            ConvNorm(4 * dim, 4 * dim, 3, padding=1, bias=True),
            last,
        )
        self._folded = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h, w]."""
        norms = [layer.bn for layer in self if isinstance(layer, ConvNorm)]
        if not self[0].fold or any(norm.training for norm in norms):
            return super().forward(x)
        ones = x.new_ones(1, 1, *x.shape[2:])
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            weight, border, bias = self._composed()
            return F.conv2d(x, weight, padding=1) + F.conv2d(ones, border, bias, padding=1)
        dtype, source = compute_dtype(x), versions([*self.parameters(), *self.buffers()])
        inner, border = self._folded.get(dtype, source, lambda: self._fold(dtype))
        return inner(x).add_(border(ones))

    def _composed(self) -> tuple[Tensor, Tensor, Tensor]:
        """[C', C, 3, 3] over the input, [C', 1, 3, 3] over the first bias, bias [C']."""
        with torch.autocast(self[0].conv.weight.device.type, enabled=False):
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
        conv = self[1].conv
        return FoldedConv(weight, torch.zeros_like(bias), conv), FoldedConv(border, bias, conv)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.fused() if isinstance(layer, ConvNorm) else (layer.weight, layer.bias)


class Decoder(nn.Module):
    """X_1 … X_S (finest first, [B, C, h_l, w_l]) -> logits [B, 2, h_1, w_1].

    X'_S = MLP_S(X_S); X'_l = MLP_l(X_l + ζ(X'_{l+1})) + ζ(X'_{l+1}), ζ bilinear.
    """

    def __init__(self, dim: int, stages: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            MLP(dim, ConvNorm(4 * dim, dim, 1, bias=True)) for _ in range(stages)
        )
        self.head = MLP(dim, nn.Conv2d(4 * dim, 2, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Eq. 1, from the coarsest stage to the finest, then the head."""
        decoded = None
        for stage, x in zip(reversed(self.stages), reversed(features), strict=True):
            if decoded is None:
                decoded = F.relu(stage(x))
            else:
                coarse = plain(decoded, tuple(x.shape[-2:]))
                decoded = F.relu(stage(x + coarse)) + coarse
        return self.head(decoded)
