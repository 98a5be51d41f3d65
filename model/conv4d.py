"""4D convolutions over a hypercorrelation: center-pivot, separable and full kernels.

A hypercorrelation is a tensor [B, C, h_q, w_q, h_s, w_s]: what every query position (h_q, w_q) says
about every support position (h_s, w_s). All kernels have side ``k`` in the four dimensions, padding
``k // 2``, stride 1 over the query and ``stride`` over the support dimensions, so that the result
is [B, C', h_q, w_q, ceil(h_s / stride), ceil(w_s / stride)].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def over_query(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """2D convolution of the query dimensions of [B, C, h_q, w_q, h_s, w_s], stride 1."""
    batch, _, _, _, *support = x.shape
    y = conv(x.permute(0, 4, 5, 1, 2, 3).flatten(0, 2))
    return y.unflatten(0, (batch, *support)).permute(0, 3, 4, 5, 1, 2)


def over_support(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """2D convolution of the support dimensions of [B, C, h_q, w_q, h_s, w_s]."""
    batch, _, *query = x.shape[:4]
    y = conv(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
    return y.unflatten(0, (batch, *query)).permute(0, 3, 1, 2, 4, 5)


class CenterPivotConv4d(nn.Module):
    """Center-pivot 4D convolution (HSNet, Eq. 5).

    Of a 4D kernel only the weights are kept that sit at the kernel's centre in the query or in the
    support dimensions; that splits it into two 2D convolutions. ``conv1`` goes over the query
    dimensions at the support positions 0, s, 2s, ... that the stride keeps, ``conv2`` over the
    support dimensions with the stride; the results are added. Both have a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h_q, w_q, h_s, w_s] -> [B, C', h_q, w_q, h_s', w_s']."""
        kept = x[..., :: self.stride, :: self.stride]
        return over_query(kept, self.conv1) + over_support(x, self.conv2)


class SeparableConv4d(nn.Module):
    """4D kernel as the outer product of two 2D kernels: over the support, then over the query.

    The support dimensions go first: their stride leaves less for the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h_q, w_q, h_s, w_s] -> [B, C', h_q, w_q, h_s', w_s']."""
        return over_query(over_support(x, self.conv2), self.conv1)


class FullConv4d(nn.Module):
    """Plain 4D convolution with k⁴ weights for each pair of channels.

    ``weight`` [C', C, k, k, k, k]: two query, then two support dimensions. Computed as one 2D
    convolution over the query dimensions for each of the k² offsets in the support.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *[kernel] * 4))
        self.bias = nn.Parameter(torch.empty(outputs))
        # The same rule as torch's own convolutions: uniform within 1 / sqrt(fan-in).
        bound = 1 / math.sqrt(inputs * kernel**4)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h_q, w_q, h_s, w_s] -> [B, C', h_q, w_q, h_s', w_s']."""
        batch, _, height, width, *support = x.shape
        pad, stride = self.kernel // 2, self.stride
        rows, columns = (-(-size // stride) for size in support)
        # Support dimensions first, so that a set of support positions is a batch of query maps.
        x = x.permute(0, 4, 5, 1, 2, 3)
        y = self.bias.view(-1, 1, 1).expand(batch, rows, columns, -1, height, width)
        y = y.to(x.dtype, copy=True)
        for i in range(self.kernel):
            for j in range(self.kernel):
                to_row, from_row = window(i - pad, stride, support[0], rows)
                to_column, from_column = window(j - pad, stride, support[1], columns)
                source = x[:, from_row, from_column]
                if source.numel() == 0:
                    continue
                part = F.conv2d(source.flatten(0, 2), self.weight[..., i, j], padding=pad)
                y[:, to_row, to_column] += part.unflatten(0, source.shape[:3])
        return y.permute(0, 3, 4, 5, 1, 2)


def window(offset: int, stride: int, size: int, outputs: int) -> tuple[slice, slice]:
    """Outputs o whose input ``o * stride + offset`` lies in [0, size), and those inputs."""
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


KERNELS = {
    "center_pivot": CenterPivotConv4d,
    "separable": SeparableConv4d,
    "full": FullConv4d,
}
