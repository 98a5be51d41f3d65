"""Object positions of a support: the only ones that the prior and the matching need."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_positions(mask: Tensor, count: bool = True) -> tuple[Tensor, Tensor]:
    """Row-major positions of the object in each mask, padded to a common length.

    mask [B, h, w], True or non-zero = object. Returns positions [B, n] (int64; padding repeats
    background positions) and valid [B, n] (bool). n is the largest object of the batch, at least
    1; without ``count``, where counting would make the host wait for a GPU, n is h·w.
    """
    flat = mask.flatten(1) != 0
    capacity = max(1, int(flat.sum(1).max())) if count else flat.shape[1]
    # A stable sort keeps the object's positions in reading order.
    order = torch.sort(flat.to(torch.uint8), dim=1, descending=True, stable=True).indices
    positions = order[:, :capacity]
    return positions, torch.gather(flat, 1, positions)


def gather_positions(features: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
    """features [B, h·w, C] at positions [B, n] -> [B, n, C], zero where not ``valid``."""
    index = positions[:, :, None].expand(-1, -1, features.shape[2])
    return torch.gather(features, 1, index) * valid[:, :, None]
