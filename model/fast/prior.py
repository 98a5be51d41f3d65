"""The prior mask from a support's object positions alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fast.cpu.folded_conv import packs
from model.layers import full_precision
from model.prior import EPSILON

TILE = 512


def prior_at_positions(query: Tensor, support: Tensor, outside: Tensor) -> Tensor:
    """The prior mask from the object's positions alone, in tiles of support positions.

    Outside the object the similarity is exactly 0, so the maximum is clamped at 0 where any
    position lies outside. query [B, N, C]; support [B, K, n, C] at the positions, padded with zeros
    (only a support that has positions outside its object can need padding); outside [B, K], True
    when it has. Returns [B, N].
    """
    if query.dtype == torch.float16:
        # Products of thousands of unnormalised channels overflow float16.
        query, support = query.float(), support.float()
    tiles = query.split(TILE, dim=1)  # whole, it may be twice as large in full precision
    query_norm = torch.cat([full_precision(tile).norm(dim=2) for tile in tiles], dim=1)[:, :, None]
    total = query_norm.new_zeros(query.shape[:2])
    for k in range(support.shape[1]):
        floor = torch.where(outside[:, k], 0.0, -torch.inf).to(total.dtype)
        best = floor[:, None].expand_as(total)
        for start in range(0, support.shape[2], TILE):
            tile = support[:, k, start : start + TILE]
            norms = full_precision(tile).norm(dim=2)[:, None, :] * query_norm
            product = full_precision(products(query, tile))
            similarity = product.div_(norms.add_(EPSILON))
            best = torch.maximum(best, similarity.amax(dim=2))
        total = total + best
    return total / support.shape[1]


def products(query: Tensor, support: Tensor) -> Tensor:
    """Inner products: query [B, N, C], support [B, n, C] -> [B, N, n]."""
    if query.dtype != torch.float32 or not packs(query):
        return torch.matmul(query, support.transpose(1, 2))
    # In float32 on CPUs a 1×1 convolution is quicker than torch's product of matrices.
    maps = [
        F.conv2d(q[None, None].permute(0, 3, 1, 2), s[:, :, None, None])
        for q, s in zip(query, support, strict=True)
    ]
    found = maps[0] if len(maps) == 1 else torch.cat(maps)
    return found.permute(0, 2, 3, 1)[:, 0]
