"""Gram matrices with three quarters of the products."""

from __future__ import annotations

import torch
from torch import Tensor

from model.ensemble import EPSILON
from model.layers import full_precision


def gram_of_halves(feature: Tensor) -> Tensor:
    """Cosine similarity between channels: [B, C, h, w] -> [B, C, C], in float32 or better."""
    with torch.autocast(feature.device.type, enabled=False):
        flat = full_precision(feature).flatten(2)
        half = flat.shape[1] // 2
        first, second = flat[:, :half], flat[:, half:]
        # Of the two products between the halves one is the other's transpose.
        mixed = torch.matmul(first, second.mT)
        upper = torch.cat([torch.matmul(first, first.mT), mixed], dim=2)
        lower = torch.cat([mixed.mT, torch.matmul(second, second.mT)], dim=2)
        products = torch.cat([upper, lower], dim=1)
        norm = products.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        return products / (norm * norm.mT + EPSILON)
