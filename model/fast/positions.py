"""Object positions of a support: the only ones that the prior and the matching need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Positions of objects in maps, padded to a common length: positions [B, n] (int64, row-major),
    valid [B, n] (bool), True where they belong to the object.
    """

    positions: Tensor
    valid: Tensor

    def of(self, features: Tensor) -> Tensor:
        """features [B, h·w, C] there: [B, n, C], zero where padded."""
        index = self.positions[:, :, None].expand(-1, -1, features.shape[2])
        return torch.gather(features, 1, index) * self.valid[:, :, None]


def object_places(mask: Tensor, count: bool = True) -> Places:
    """The object's positions in each mask [B, h, w], where True or non-zero is object.

    n is the largest object of the batch, at least 1; without ``count``, where counting would make
    the host wait for a GPU, n is h·w. Padding repeats background positions.
    """
    flat = mask.flatten(1) != 0
    capacity = max(1, int(flat.sum(1).max())) if count else flat.shape[1]
    # A stable sort keeps the object's positions in reading order.
    order = torch.sort(flat.to(torch.uint8), dim=1, descending=True, stable=True).indices
    positions = order[:, :capacity]
    return Places(positions, torch.gather(flat, 1, positions))
