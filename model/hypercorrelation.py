"""Hypercorrelation (HSNet, Sec. 4.1): every query feature against every support feature.

The correlation of a query feature q and a support feature s is
ReLU(q / (‖q‖ + 1e-5) · s / (‖s‖ + 1e-5)), which lies in [0, 1]. Support features are multiplied by
the support mask first, resized bilinearly with align_corners=True and not binarised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import align, full_precision

EPSILON = 1e-5


class Support(NamedTuple):
    """One pyramid level of a support: mask [B, h, w], resized, 0..1; layers: each layer's features
    [B, C, h, w], multiplied by the mask.
    """

    mask: Tensor
    layers: tuple[Tensor, ...]


def object_weight(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask [B, H, W] (integer: 1 = object, 0, 255; floating: soft, 0..1, 255) -> weights in 0..1.

    Ignored pixels (255) count as not object.
    """
    if mask.is_floating_point():
        return torch.where(mask == 255, 0.0, mask).to(dtype)
    return (mask == 1).to(dtype)


def normalise(feature: Tensor) -> Tensor:
    """[B, C, h, w] divided by (its norm over the channels + 1e-5)."""
    return feature / (full_precision(feature).norm(dim=1, keepdim=True) + EPSILON)


def hypercorrelation(query: tuple[Tensor, ...], support: tuple[Tensor, ...]) -> Tensor:
    """One pair [B, C, h, w] for each layer, the support's already multiplied by its mask ->
    [B, layers, h_q, w_q, h_s, w_s].
    """
    layers = [
        F.relu(torch.einsum("bchw,bcij->bhwij", normalise(q), normalise(s)))
        for q, s in zip(query, support, strict=True)
    ]
    return torch.stack(layers, dim=1)


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights [B, H, W] -> [B, h, w], bilinear with align_corners=True."""
    return align(mask[:, None], size)[:, 0]
