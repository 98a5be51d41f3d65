"""Pyramid pooling on its 50 grid cells instead of h·w pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fast.cpu.folded_conv import FoldedConv, fold
from model.fast.derived import Derives, compute_dtype
from model.layers import align
from model.pspnet import BINS, PyramidHead


@dataclass
class HeadWeights:
    """direct: the part over f4, [C5, C, 3, 3], and the bias; taps: per grid [9, C5, c]; pools."""

    direct: FoldedConv
    taps: tuple[Tensor, ...]
    pools: tuple[FoldedConv, ...]

    @cached_property
    def rows(self) -> Tensor:
        """The part over f4 for pixels side by side: [C5, 9 · C]."""
        with torch.inference_mode(False), torch.no_grad():
            return self.direct.weight.permute(0, 2, 3, 1).flatten(1).contiguous()


class CellwiseHead(Derives, PyramidHead):
    """The nine taps of the 3×3 convolution act on the 50 grid cells, not on h·w pixels.

    A 3×3 convolution over an upsampled grid is linear in the grid's cells: apply each tap to the
    cells, then spread the 9 × 50 results with one constant interpolation matrix.
    """

    def forward(self, f4: Tensor) -> Tensor:
        """As the paper's."""
        weights = self._weights(f4)
        if weights is None:
            return super().forward(f4)
        size = (f4.shape[2], f4.shape[3])
        direct = weights.direct(f4)
        spread = spread_matrix(size, direct.dtype, f4.device)
        context = torch.matmul(spread, self._tapped_cells(f4, weights))
        return direct.add_(context.transpose(1, 2).unflatten(2, size))

    def at(self, f4: Tensor, positions: Tensor) -> Tensor:
        """f5 at given positions only: f4 [B, C, h, w], positions [B, n] (row-major) -> [B, n, C5].

        The part over f4 is convolved in the box around the positions, or, where these are few in
        it, at each of them alone.
        """
        weights = self._weights(f4)
        if weights is None:
            f5 = super().forward(f4).flatten(2).transpose(1, 2)
            return torch.gather(f5, 1, positions[:, :, None].expand(-1, -1, f5.shape[2]))
        size = (f4.shape[2], f4.shape[3])
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
        for bins, pool, taps in zip(BINS, weights.pools, weights.taps, strict=True):
            grid = pool(_average(f4, bins), rectify=True)
            cells = grid.flatten(2).to(taps.dtype)  # [B, c, cells]
            tapped = torch.matmul(taps.flatten(0, 1), cells.transpose(0, 1).flatten(1))
            tapped = tapped.unflatten(1, (cells.shape[0], -1)).unflatten(0, (9, -1))
            parts.append(tapped.permute(2, 0, 3, 1))  # [B, 9, cells, C5]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _weights(self, f4: Tensor) -> HeadWeights | None:
        """The folded convolution, cut up for the rewriting."""
        dtype = compute_dtype(f4)

        def make() -> HeadWeights:
            folded = fold(self.conv, dtype)
            direct, *parts = folded.weight.split(
                [self.channels, *(pool.conv.out_channels for pool in self.pools)], dim=1
            )
            direct = direct.contiguous(memory_format=torch.channels_last)
            return HeadWeights(
                FoldedConv(direct, folded.bias, folded.options),
                tuple(part.flatten(2).permute(2, 0, 1).contiguous() for part in parts),
                tuple(fold(pool, dtype) for pool in self.pools),
            )

        return self.derived(dtype, make)


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


FORMS: dict[type, type] = {PyramidHead: CellwiseHead}
