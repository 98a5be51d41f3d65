"""Efficient form of GroupNorm, ReLU and the center-pivot 4D convolution; exact, with its gradient.

Hypercorrelations are kept as [B, h_s, w_s, C, h_q, w_q]. A support position is then a plain picture
for the query convolution, and the support positions under one row of a kernel are one matrix
[positions * C, h_q * w_q]: the support convolution is a few matrix products that add up in place,
without the copies that a 2D convolution over the last two of six dimensions needs. GroupNorm and
ReLU are computed again in the backward pass, so that of each layer only its input before the norm
is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.conv4d import CenterPivotConv4d, window
from model.fast.derived import compute_dtype
from model.layers import full_precision


class Statistics(NamedTuple):
    """Mean and 1 / standard deviation of each group, [B, groups]."""

    mean: Tensor
    rstd: Tensor


def group_statistics(x: Tensor, norm: nn.GroupNorm) -> Statistics:
    """GroupNorm's statistics of [B, h_s, w_s, C, h_q, w_q], over all but batch and group."""
    maps = full_precision(x.flatten(1, 2).flatten(3).unflatten(2, (norm.num_groups, -1)))
    count = maps[0, :, 0].numel()
    mean = maps.sum(-1).sum((1, 3)) / count
    deviation = torch.linalg.vector_norm(maps - mean[:, None, :, None, None], dim=-1)
    variance = deviation.square().sum((1, 3)) / count
    return Statistics(mean, (variance + norm.eps).rsqrt())


def _normalise_relu(x: Tensor, stats: Statistics, weight: Tensor, bias: Tensor) -> Tensor:
    scale = _per_channel(stats.rstd, weight) * weight
    shift = bias - _per_channel(stats.mean, weight) * scale
    z = torch.addcmul(_spread(shift), full_precision(x), _spread(scale))
    return z.relu_().to(x.dtype)


def _normalise_relu_backward(
    grad: Tensor, z: Tensor, x: Tensor, stats: Statistics, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, weight and bias from ``grad``, that for z = relu(norm(x)).

    ``grad`` and ``z`` are used up: but for half precision the result lies in the memory of
    ``grad``.
    """
    groups, dtype = stats.mean.shape[1], x.dtype
    x, z, grad = (full_precision(tensor) for tensor in (x, z, grad))
    torch.ops.aten.threshold_backward.grad_input(grad, z, 0, grad_input=grad)
    total = grad.flatten(4).sum(-1).sum((1, 2))
    moment = torch.mul(grad, x, out=z).flatten(4).sum(-1).sum((1, 2))
    rstd, mean = _per_channel(stats.rstd, weight), _per_channel(stats.mean, weight)
    centred = (moment - mean * total) * rstd

    count = x[0].numel() // groups
    by_group = (-1, groups, weight.numel() // groups)
    mean_grad = (total * weight).view(by_group).sum(-1) / count
    mean_slope = (centred * weight).view(by_group).sum(-1) / count
    slope = -rstd.square() * _per_channel(mean_slope, weight)
    offset = -rstd * _per_channel(mean_grad, weight) - mean * slope
    torch.addcmul(_spread(offset), x, _spread(slope), out=z)
    torch.addcmul(z, grad, _spread(rstd * weight), out=grad)
    return grad.to(dtype), centred.sum(0), total.sum(0)


def _per_channel(value: Tensor, weight: Tensor) -> Tensor:
    """[B, groups] -> [B, C]."""
    return value.repeat_interleave(weight.numel() // value.shape[1], dim=1)


def _spread(value: Tensor) -> Tensor:
    """[B, C] -> [B, 1, 1, C, 1, 1]."""
    return value[:, None, None, :, None, None]


class _NormReLU(Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            stats = group_statistics(x, norm)
            ctx.save_for_backward(x, weight, bias, *stats)
            return _normalise_relu(x, stats, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, *stats = ctx.saved_tensors
        stats = Statistics(*stats)
        with torch.autocast(x.device.type, enabled=False):
            z = _normalise_relu(x, stats, weight, bias)
            grad = grad.clone(memory_format=torch.contiguous_format)
            return *_normalise_relu_backward(grad, z, x, stats, weight), None


def norm_relu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """ReLU(norm(x)) for x [B, h_s, w_s, C, h_q, w_q]; keeps nothing but x for the backward pass."""
    return _NormReLU.apply(x, norm.weight, norm.bias, norm)


def kernel_rows(weight: Tensor) -> Tensor:
    """Support kernel [C', C, k, k] -> [k, C', k * C]: for each row of it one matrix."""
    return weight.permute(2, 0, 3, 1).flatten(2).contiguous()


def from_kernel_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Inverse of :func:`kernel_rows` (for gradients), in the shape of ``weight``."""
    outputs, inputs, k, _ = weight.shape
    return rows.view(k, outputs, k, inputs).permute(1, 3, 0, 2)


def _row_products(
    x: Tensor, y: Tensor, rows: Tensor, stride: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The support convolution as batched matrix products: for each row of the kernel and column of
    the output (input [n, j * C, a], output [n, C', a], weight [n, C', j * C]), all of them views.

    x [B, h_s, w_s, C, h_q, w_q] and y [B, h_s', w_s', C', h_q, w_q], both contiguous; rows as of
    :func:`kernel_rows`; a = h_q * w_q. A batch of products takes the output rows of an image, or
    one row of all images where that makes fewer of them.
    """
    kernel, inputs = rows.shape[0], x.shape[3]
    pad = kernel // 2
    joined = x.view(*x.shape[:2], -1, x[0, 0, 0, 0].numel())
    results = y.view(*y.shape[:4], -1)
    apart = 1 if len(x) > y.shape[1] else 0
    for i in range(kernel):
        outputs, sources = window(i - pad, stride, x.shape[1], y.shape[1])
        if outputs.start == outputs.stop:
            continue
        for column in range(y.shape[2]):
            start = column * stride - pad
            first, last = max(start, 0), min(start + kernel, x.shape[2])
            source = joined[:, sources, first * inputs : last * inputs]
            taps = rows[i, :, (first - start) * inputs : (last - start) * inputs]
            for part, result in zip(
                source.unbind(apart), results[:, outputs, column].unbind(apart), strict=True
            ):
                yield part, result, taps.expand(len(part), -1, -1)


def _query_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool
) -> tuple[Tensor | None, Tensor]:
    pad = weight.shape[-1] // 2
    options = ([1, 1], [pad, pad], [1, 1], False, [0, 0], 1, [needs_input, True, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[:2]


class _CenterPivot(Function):
    """Center-pivot convolution of x, or of relu(norm(x)) when a norm is given."""

    @staticmethod
    def forward(ctx, x, scale, shift, weight1, bias1, weight2, bias2, stride, norm):
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype).contiguous()
            stats = None if norm is None else group_statistics(x, norm)
            saved = (x, scale, shift, weight1, weight2)
            ctx.save_for_backward(*saved, *(stats or ()))
            ctx.stride = stride
            z = x if stats is None else _normalise_relu(x, stats, scale, shift)
            kept = z[:, ::stride, ::stride]
            y = F.conv2d(
                kept.flatten(0, 2), weight1.to(dtype), (bias1 + bias2).to(dtype),
                padding=weight1.shape[-1] // 2,
            ).contiguous().unflatten(0, kept.shape[:3])  # fmt: skip
            for source, target, taps in _row_products(z, y, kernel_rows(weight2.to(dtype)), stride):
                target.baddbmm_(taps, source)
            return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, shift, weight1, weight2, *stats = ctx.saved_tensors
        stride, stats = ctx.stride, Statistics(*stats) if stats else None
        grad = grad.contiguous()
        with torch.autocast(x.device.type, enabled=False):
            z = x if stats is None else _normalise_relu(x, stats, scale, shift)
            kept = z[:, ::stride, ::stride]
            needs_x = ctx.needs_input_grad[0] or stats is not None
            grad_kept, grad_weight1 = _query_convolution_backward(
                grad.flatten(0, 2), kept.flatten(0, 2), weight1.to(x.dtype), needs_x
            )
            grad_z = None
            if grad_kept is not None:
                grad_kept = grad_kept.unflatten(0, kept.shape[:3])
                grad_z = grad_kept.contiguous() if stride == 1 else torch.zeros_like(z)
                if stride > 1:
                    grad_z[:, ::stride, ::stride] = grad_kept
            del kept, grad_kept

            rows = kernel_rows(weight2.to(x.dtype))
            grad_rows = torch.zeros_like(rows, dtype=weight2.dtype)
            # The gradients are walked along with the values, as views of the same shapes.
            gradients = _row_products(z if grad_z is None else grad_z, grad, grad_rows, stride)
            for (source, target, taps), (grad_source, _, grad_taps) in zip(
                _row_products(z, grad, rows, stride), gradients, strict=True
            ):
                grad_taps[0].add_(torch.bmm(target, source.transpose(1, 2)).sum(0))
                if needs_x:
                    grad_source.baddbmm_(taps.transpose(1, 2), target)
            grad_bias = full_precision(grad).sum((0, 1, 2, 4, 5)).to(weight1.dtype)
            grad_scale = grad_shift = None
            if stats is not None and grad_z is not None:
                grad_z, grad_scale, grad_shift = _normalise_relu_backward(
                    grad_z, z, x, stats, scale
                )
            grad_weight2 = from_kernel_rows(grad_rows, weight2)
            return (
                grad_z, grad_scale, grad_shift, grad_weight1.to(weight1.dtype), grad_bias,
                grad_weight2, grad_bias, None, None,
            )  # fmt: skip


def center_pivot(x: Tensor, conv: CenterPivotConv4d, norm: nn.GroupNorm | None = None) -> Tensor:
    """``conv`` of x, or of ReLU(norm(x)): [B, h_s, w_s, C, h_q, w_q] -> [B, h_s', w_s', C', ...].

    The same as ``conv(norm(x).relu())`` in the textbook's order of dimensions; ``x`` is all that is
    kept for the backward pass.
    """
    scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
    return _CenterPivot.apply(
        x, scale, shift, conv.conv1.weight, conv.conv1.bias, conv.conv2.weight, conv.conv2.bias,
        conv.stride, norm,
    )  # fmt: skip


class Window(NamedTuple):
    """Listed support positions ``first:last`` lie under row ``row`` of the kernel at output
    position ``output``, in its columns ``columns`` (a slice where no position between is missing).
    """

    output: int
    row: int
    first: int
    last: int
    columns: slice | list[int]


def sparse_windows(
    positions: list[int], grid: tuple[int, int], kernel: int, stride: int
) -> list[Window]:
    """Which of the listed positions (row-major, ascending) each output of a strided convolution
    over a grid [h_s, w_s] sees. Empty windows are left out."""
    pad = kernel // 2
    rows: list[list[tuple[int, int]]] = [[] for _ in range(grid[0])]
    for index, position in enumerate(positions):
        row, column = divmod(position, grid[1])
        rows[row].append((column, index))
    windows = []
    columns = -(-grid[1] // stride)
    for row, listed in enumerate(rows):
        for column in range(columns):
            start = column * stride - pad
            inside = [(c - start, index) for c, index in listed if start <= c < start + kernel]
            if not inside:
                continue
            first, last = inside[0][1], inside[-1][1] + 1
            seen = [j for j, _ in inside]
            gapless = seen[-1] - seen[0] == last - 1 - first
            taps: slice | list[int] = slice(seen[0], seen[-1] + 1) if gapless else seen
            for i in range(kernel):
                out_row, rest = divmod(row + pad - i, stride)
                if rest == 0 and 0 <= out_row < -(-grid[0] // stride):
                    output = out_row * columns + column
                    windows.append(Window(output, i, first, last, taps))
    return windows


class _SparseCenterPivot(Function):
    """Center-pivot convolution of hypercorrelations that are zero but for listed positions."""

    @staticmethod
    def forward(ctx, weight1, bias1, weight2, bias2, stride, grid, positions, *correlations):
        ctx.stride, ctx.grid, ctx.positions = stride, grid, positions
        ctx.save_for_backward(weight1, weight2, *correlations)
        height, width = correlations[0].shape[-2:]
        out_grid = [-(-size // stride) for size in grid]
        dtype = correlations[0].dtype
        with torch.autocast(weight1.device.type, enabled=False):
            y = (bias1 + bias2).to(dtype)[None, None, :, None]
            y = y.repeat(len(correlations), out_grid[0] * out_grid[1], 1, height * width)
            rows = kernel_rows(weight2.to(dtype)).unflatten(2, (weight2.shape[2], -1))
            for listed, x, out in zip(positions, correlations, y, strict=True):
                outputs, kept = _kept(listed, grid, stride)
                if kept:
                    part = F.conv2d(x[kept], weight1.to(dtype), padding=weight1.shape[-1] // 2)
                    out[outputs] += part.flatten(2)
                maps = x.flatten(2)
                for window in sparse_windows(listed, grid, weight2.shape[-1], stride):
                    taps = rows[window.row][:, window.columns].flatten(1)
                    out[window.output].addmm_(taps, maps[window.first : window.last].flatten(0, 1))
            return y.view(len(correlations), *out_grid, -1, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight1, weight2, *correlations = ctx.saved_tensors
        with torch.autocast(weight1.device.type, enabled=False):
            grad = grad.flatten(1, 2)
            grad_weight1 = torch.zeros_like(weight1)
            grad_rows = torch.zeros_like(kernel_rows(weight2)).unflatten(2, (weight2.shape[2], -1))
            for listed, x, out in zip(ctx.positions, correlations, grad, strict=True):
                outputs, kept = _kept(listed, ctx.grid, ctx.stride)
                if kept:
                    grad_weight1 += _query_convolution_backward(
                        out[outputs], x[kept], weight1.to(x.dtype), False
                    )[1]
                maps, out = x.flatten(2), out.flatten(2)
                for window in sparse_windows(listed, ctx.grid, weight2.shape[-1], ctx.stride):
                    source = maps[window.first : window.last].flatten(0, 1)
                    part = torch.mm(out[window.output], source.t()).to(grad_rows.dtype)
                    part = part.unflatten(1, (window.last - window.first, -1))
                    grad_rows[window.row][:, window.columns] += part
            grad_bias = full_precision(grad).sum((0, 1, 3, 4)).to(weight1.dtype)
            grad_weight2 = from_kernel_rows(grad_rows.flatten(2), weight2)
            none = [None] * (3 + len(correlations))
            return grad_weight1, grad_bias, grad_weight2, grad_bias, *none


def _kept(positions: list[int], grid: tuple[int, int], stride: int) -> tuple[list[int], list[int]]:
    """Output positions whose own support position is listed, and its place in the list."""
    outputs, kept = [], []
    for index, position in enumerate(positions):
        row, column = divmod(position, grid[1])
        if row % stride == 0 and column % stride == 0:
            outputs.append(row // stride * -(-grid[1] // stride) + column // stride)
            kept.append(index)
    return outputs, kept


def sparse_center_pivot(
    correlations: list[Tensor],
    positions: list[list[int]],
    grid: tuple[int, int],
    conv: CenterPivotConv4d,
) -> Tensor:
    """``conv`` of hypercorrelations given at some support positions and zero at all others.

    correlations: for each image [P, C, h_q, w_q]; positions: for each image its P row-major
    positions in the support grid, ascending -> [B, h_s', w_s', C', h_q, w_q]. Outputs that see none
    of the positions are the sum of the biases. No gradient reaches the correlations.
    """
    return _SparseCenterPivot.apply(
        conv.conv1.weight, conv.conv1.bias, conv.conv2.weight, conv.conv2.bias, conv.stride, grid,
        positions, *correlations,
    )  # fmt: skip
