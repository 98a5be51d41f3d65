"""Pyramid pooling, whose output f5 is the encoder's last feature, and the base learner (PSPNet)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import build_encoder
from model.fewshot import Loss, segmentation_loss
from model.layers import ConvNorm, Encoder, Modules, align, fix_batch_norms, size_of
from model.registry import REQUIREMENTS

if TYPE_CHECKING:
    from util.config import Config

BINS = (1, 2, 3, 6)


class PyramidHead(nn.Module):
    """Pyramid pooling, then a 3×3 convolution with batch norm: f4 [B, C, h, w] -> f5 [B, C5, h, w].

    f5 is taken before the ReLU that follows it in PSPNet.
    """

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.channels = channels
        reduced = channels // len(BINS)
        self.pools = Modules(ConvNorm(channels, reduced, 1) for _ in BINS)
        self.conv = ConvNorm(channels + len(BINS) * reduced, head_width, 3, padding=1)

    def forward(self, f4: Tensor) -> Tensor:
        """The equations as written: upsample every grid, concatenate, convolve."""
        size = size_of(f4)
        grids = [align(grid, size) for grid in self.grids(f4)]
        return self.conv(torch.cat([f4, *grids], dim=1))

    def grids(self, f4: Tensor) -> list[Tensor]:
        """Average pools to 1, 2, 3, 6 cells a side, each 1×1 conv + BN + ReLU."""
        pools = zip(BINS, self.pools, strict=True)
        return [F.relu(pool(F.adaptive_avg_pool2d(f4, bins))) for bins, pool in pools]


class PSPNet(nn.Module):
    """The base learner of stage 1: encoder, pyramid pooling and a classifier over the base classes.

    forward: images [B, 3, H, W], normalised -> logits [B, 1 + N, H, W].
    """

    requirements = REQUIREMENTS["PSPNet"]

    def __init__(
        self, encoder: Encoder, num_base: int, fix_bn: bool = False, freeze_encoder: bool = False
    ) -> None:
        super().__init__()
        self.fix_bn = fix_bn
        self.freeze_encoder = freeze_encoder
        self.encoder = encoder
        self.head = PyramidHead(encoder.channels[2], encoder.head_width)
        self.base_learner = BaseClassifier(encoder.head_width, num_base)
        if freeze_encoder:
            encoder.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg: Config) -> PSPNet:
        """With ``num_base``, ``fix_bn``, ``freeze_encoder`` and the encoder's options of ``cfg``;
        reads no file."""
        return cls(build_encoder(cfg), cfg.num_base, cfg.fix_bn, cfg.freeze_encoder)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming a size that works, when the encoder cannot take this one."""
        self.encoder.check_size(height, width)

    def train(self, mode: bool = True) -> PSPNet:
        """Training mode; with ``fix_bn`` the batch norms keep their statistics, with
        ``freeze_encoder`` the encoder stays as it is."""
        super().train(mode)
        if self.fix_bn:
            fix_batch_norms(self)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """images [B, 3, H, W], normalised -> logits [B, 1 + N, H, W], background first."""
        f4 = self.encoder(image).f4
        logits = self.base_learner(self.head(F.relu(f4)))
        return align(logits, size_of(image))

    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Loss]:
        """Cross-entropy: mask [B, H, W] with 0..N and 255 = ignore."""
        return {"main": Loss(segmentation_loss(logits, mask))}

    def param_groups(self, cfg: Config) -> list[dict[str, Any]]:
        """All parameters that learn, at the base learning rate."""
        return [{"name": "pspnet", "params": list(self.parameters()), "lr_scale": 1.0}]


class BaseClassifier(nn.Module):
    """1×1 convolution over dropout(ReLU(f5)): [B, C5, h, w] -> logits [B, 1 + N, h, w]."""

    def __init__(self, channels: int, num_base: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(0.1)
        self.conv = nn.Conv2d(channels, num_base + 1, 1)

    def forward(self, f5: Tensor) -> Tensor:
        """f5 before its ReLU -> logits, background first."""
        return self.conv(self.dropout(F.relu(f5)))
