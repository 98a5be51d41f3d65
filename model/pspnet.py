"""Pyramid pooling, whose output f5 is the encoder's last feature, and the base learner (PSPNet)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import build_encoder
from model.fewshot import segmentation_loss
from model.folded import FoldedConv
from model.layers import ConvNorm, Derived, align, compute_dtype, fix_batch_norms

BINS = (1, 2, 3, 6)


@dataclass
class HeadWeights:
    """direct: the part over f4, [C5, C, 3, 3], and the bias; taps: per grid [9, C5, c]."""

    direct: FoldedConv
    taps: tuple[Tensor, ...]

    @cached_property
    def rows(self) -> Tensor:
        """The part over f4 for pixels side by side: [C5, 9 · C]."""
        with torch.inference_mode(False), torch.no_grad():
            return self.direct.weight.permute(0, 2, 3, 1).flatten(1).contiguous()


class PyramidHead(nn.Module):
    """Pyramid pooling, then a 3×3 convolution with batch norm: f4 [B, C, h, w] -> f5 [B, C5, h, w].

    f5 is taken before the ReLU that follows it in PSPNet.
    """

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.channels = channels
        reduced = channels // len(BINS)
        self.pools = nn.ModuleList([ConvNorm(channels, reduced, 1) for _ in BINS])
        self.conv = ConvNorm(channels + len(BINS) * reduced, head_width, 3, padding=1)
        self._cut = Derived()

    def forward(self, f4: Tensor) -> Tensor:
        """The equations as written: upsample every grid, concatenate, convolve."""
        size = tuple(f4.shape[-2:])
        grids = [align(grid, size) for grid in self.grids(f4)]
        return self.conv(torch.cat([f4, *grids], dim=1))

    def grids(self, f4: Tensor) -> list[Tensor]:
        """Average pools to 1, 2, 3, 6 cells a side, each 1×1 conv + BN + ReLU."""
        return [
            pool(_average(f4, bins), rectify=True)
            for bins, pool in zip(BINS, self.pools, strict=True)
        ]

    def fast(self, f4: Tensor) -> Tensor:
        """Same result without gradient: the nine taps act on the 50 grid cells, not on h·w pixels.

        A 3×3 convolution over an upsampled grid is linear in the grid's cells: apply each tap to
        the cells, then spread the 9 × 50 results with one constant interpolation matrix.
        """
        weights = self._weights(compute_dtype(f4))
        size = (f4.shape[2], f4.shape[3])
        direct = weights.direct(f4)
        spread = spread_matrix(size, direct.dtype, f4.device)
        context = torch.matmul(spread, self._tapped_cells(f4, weights))
        return direct.add_(context.transpose(1, 2).unflatten(2, size))

    def fast_at(self, f4: Tensor, positions: Tensor) -> Tensor:
        """f5 at given positions only: f4 [B, C, h, w], positions [B, n] (row-major) -> [B, n, C5].

        The part over f4 is convolved in the box around the positions, or, where these are few in
        it, at each of them alone.
        """
        size = (f4.shape[2], f4.shape[3])
        weights = self._weights(compute_dtype(f4))
        spread = spread_matrix(size, weights.direct.bias.dtype, f4.device)[positions]
        context = torch.matmul(spread, self._tapped_cells(f4, weights))
        rows, columns = positions // size[1], positions % size[1]
        if f4.device.type == "cpu" and not torch.compiler.is_compiling():
            (top, bottom), (left, right) = (
                (max(0, int(at.min()) - 1), min(n, int(at.max()) + 2))
                for at, n in zip((rows, columns), size, strict=True)
            )
        else:  # a GPU would have to be waited for
            (top, bottom), (left, right) = (0, size[0]), (0, size[1])
        if (bottom - top) * (right - left) > 3 * positions.shape[1]:
            return context.add_(_convolved_at(f4, rows, columns, weights))
        box = f4[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
        direct = weights.direct(box).flatten(2).transpose(1, 2)
        index = (rows - top) * (right - left) + columns - left
        return context.add_(torch.gather(direct, 1, index[:, :, None].expand_as(context)))

    def _tapped_cells(self, f4: Tensor, weights: HeadWeights) -> Tensor:
        """Every tap of the convolution applied to every grid cell: [B, 9 * 50, C5]."""
        parts = []
        for grid, taps in zip(self.grids(f4), weights.taps, strict=True):
            cells = grid.flatten(2).to(taps.dtype)  # [B, c, cells]
            tapped = torch.matmul(taps.flatten(0, 1), cells.transpose(0, 1).flatten(1))
            tapped = tapped.unflatten(1, (cells.shape[0], -1)).unflatten(0, (9, -1))
            parts.append(tapped.permute(2, 0, 3, 1))  # [B, 9, cells, C5]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _weights(self, dtype: torch.dtype) -> HeadWeights:
        """The folded convolution, cut up for the rewriting; made anew when the weights change."""
        folded = self.conv.folded(dtype)

        def make() -> HeadWeights:
            direct, *parts = folded.weight.split(
                [self.channels, *(pool.conv.out_channels for pool in self.pools)], dim=1
            )
            direct = direct.contiguous(memory_format=torch.channels_last)
            taps = tuple(part.flatten(2).permute(2, 0, 1).contiguous() for part in parts)
            return HeadWeights(FoldedConv(direct, folded.bias, self.conv.conv), taps)

        return self._cut.get(dtype, folded, make)


def _average(f4: Tensor, bins: int) -> Tensor:
    if bins == 1 and f4.device.type == "cpu":
        # For one cell torch takes a mean, which on CPUs copies bfloat16 to float32.
        return F.avg_pool2d(f4, f4.shape[2:])
    return F.adaptive_avg_pool2d(f4, bins)


def _convolved_at(f4: Tensor, rows: Tensor, columns: Tensor, weights: HeadWeights) -> Tensor:
    """The part over f4 at positions [B, n] given by their rows and columns: [B, n, C5]."""
    h, w = f4.shape[2:]
    # The nine pixels around each position; those outside the map count as zero.
    taps = torch.arange(9, device=f4.device)
    rows = rows[:, :, None] + (taps // 3 - 1)
    columns = columns[:, :, None] + (taps % 3 - 1)
    outside = (rows < 0) | (rows >= h) | (columns < 0) | (columns >= w)
    pixels = (rows * w + columns).masked_fill_(outside, 0)  # [B, n, 9]
    samples = torch.arange(f4.shape[0], device=f4.device)[:, None, None]
    patches = f4.to(weights.rows.dtype).permute(0, 2, 3, 1).flatten(1, 2)[samples, pixels]
    patches = patches.masked_fill_(outside[:, :, :, None], 0).flatten(2)  # [B, n, 9 · C]
    return F.linear(patches, weights.rows, weights.direct.bias)


@lru_cache(maxsize=16)
def spread_matrix(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[h·w, 9 · 50]: what cell c seen through tap t gives to each position.

    Row p, tap t is the align_corners interpolation row of the tap's pixel, zero outside the map.
    """
    h, w = size
    blocks = []
    with torch.inference_mode(False), torch.no_grad():
        for bins in BINS:
            cells = torch.eye(bins * bins, dtype=torch.float64).view(-1, 1, bins, bins)
            spread = F.pad(align(cells, size), (1, 1, 1, 1))[:, 0]  # [cells, h+2, w+2]
            taps = [spread[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
            blocks.append(torch.stack(taps))  # [9, cells, h, w]
        matrix = torch.cat(blocks, dim=1).flatten(0, 1).flatten(1).t()
        return matrix.contiguous().to(device=device, dtype=dtype)


class PSPNet(nn.Module):
    """The base learner of stage 1: encoder, pyramid pooling and a classifier over the base classes.

    forward: images [B, 3, H, W], normalised -> logits [B, 1 + N, H, W].
    """

    def __init__(self, encoder: nn.Module, num_base: int, fix_bn: bool = False) -> None:
        super().__init__()
        self.fix_bn = fix_bn
        self.encoder = encoder
        self.head = PyramidHead(encoder.channels[2], encoder.head_width)
        self.base_learner = BaseClassifier(encoder.head_width, num_base)

    @classmethod
    def from_config(cls, cfg: Any) -> PSPNet:
        """With ``num_base``, ``fix_bn`` and the encoder's options of ``cfg``; reads no file."""
        return cls(build_encoder(cfg), cfg.num_base, cfg.fix_bn)

    def train(self, mode: bool = True) -> PSPNet:
        """Training mode; with ``fix_bn`` the batch norms keep their statistics."""
        super().train(mode)
        if self.fix_bn:
            fix_batch_norms(self)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """images [B, 3, H, W], normalised -> logits [B, 1 + N, H, W], background first."""
        f4 = self.encoder(image).f4
        logits = self.base_learner(self.head(F.relu(f4)))
        return align(logits, tuple(image.shape[-2:]))

    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Cross-entropy: mask [B, H, W] with 0..N and 255 = ignore."""
        loss = segmentation_loss(logits, mask)
        return {"main": loss, "total": loss}

    def param_groups(self, cfg: Any) -> list[dict[str, Any]]:
        """All parameters at the base learning rate."""
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
