"""Coarse-to-fine MLP decoder (Eq. 1) and classification head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import ConvNorm, plain, size_of


class MLP(nn.Sequential):
    """1×1 conv to 4 C, BN, 3×3 conv, BN, 1×1 conv (and BN): [B, C, h, w] -> [B, C', h, w]."""

    def __init__(self, dim: int, last: nn.Module) -> None:
        super().__init__(
            ConvNorm(dim, 4 * dim, 1, bias=True),
            ConvNorm(4 * dim, 4 * dim, 3, padding=1, bias=True),
            last,
        )


class Decoder(nn.Module):
    """X_1 … X_S (finest first, [B, C, h_l, w_l]) -> logits [B, 2, h_1, w_1].

    X'_S = MLP_S(X_S); X'_l = MLP_l(X_l + ζ(X'_{l+1})) + ζ(X'_{l+1}), ζ bilinear; each of these MLPs
    ends with a ReLU and has none inside.
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
                coarse = plain(decoded, size_of(x))
                decoded = F.relu(stage(x + coarse)) + coarse
        return self.head(decoded)
