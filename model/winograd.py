"""Winograd's minimal filtering for 3×3 convolutions: the same sums with fewer multiplications.

F(m×m, 3×3) takes (m+2)² products for m² outputs where the sum as written takes 9 m²: 4 times fewer
for m = 4, 2.25 times for m = 2 (Lavin and Gray 2016, "Fast algorithms for convolutional neural
networks"; matrices by Cook and Toom from the points below). CUDA's libraries choose it themselves;
on CPUs torch's convolutions do not.

m = 4 loses about one digit to rounding in float32 (1e-6 relative), too much for half precision,
where m = 2 loses next to nothing. A dilated convolution is d² independent ones over every d-th
row and column.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Where the tile polynomials are evaluated, infinity besides: small and far from each other.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 2.0, -0.5)}


class Limits(NamedTuple):
    """Where the form pays, measured: channels at least; tiles at least (with fewer, reading the
    transformed weights takes longer than computing).
    """

    channels: int
    tiles: int


LIMITS = {2: Limits(256, 200), 4: Limits(256, 64)}
# Bytes of transformed input to work on at a time: more leaves the caches, and what is larger than
# 32 MB is given back to the system and cleared anew each time.
PART = 28_000_000


class Winograd:
    """A 3×3 convolution with stride 1 and padding = dilation, without gradient.

    weight [O, C, 3, 3], bias [O]; outputs of ``tile`` × ``tile`` positions at a time.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, tile: int) -> None:
        self.bias = bias
        self.dilation = dilation
        self.tile = tile
        with torch.inference_mode(False), torch.no_grad():
            spread_in, spread_weight, gather_out = transforms(tile)
            transformed = spread_weight @ weight.double().flatten(2).permute(2, 1, 0).flatten(1)
            self.weight = transformed.unflatten(1, weight.shape[1::-1]).to(weight.dtype)
            self.spread_in = spread_in.to(weight.dtype)
            self.gather_out = gather_out.to(weight.dtype)

    def __call__(self, x: Tensor, rectify: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, O, h, w], channels last; with ``rectify`` after a ReLU."""
        batch, channels, height, width = x.shape
        d, m = self.dilation, self.tile
        rows, columns = (-(-size // (d * m)) for size in (height, width))
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, d, columns * m * d + d - width, d, rows * m * d + d - height))
        per_image, per_row, per_pixel, _ = x.stride()
        # Overlapping tiles of every dilated grid: [t, t, B, d, d, rows, columns, C].
        t = m + 2
        strides = (per_image, per_row, per_pixel, m * d * per_row, m * d * per_pixel, 1)
        tiles = x.as_strided(
            (t, t, batch, d, d, rows, columns, channels), (d * per_row, d * per_pixel, *strides)
        )
        outputs = self.weight.shape[2]
        out = x.new_empty(batch, rows, m, d, columns, m, d, outputs)
        most = max(1, rows * PART // tiles.nbytes)
        part = -(-rows // -(-rows // most))
        for first in range(0, rows, part):
            some = tiles[:, :, :, :, :, first : first + part]
            spread = torch.mm(self.spread_in, some.reshape(t * t, -1))
            products = torch.bmm(spread.view(t * t, -1, channels), self.weight)
            made = torch.mm(self.gather_out, products.flatten(1))
            made = made.view(m, m, *some.shape[2:7], outputs).permute(2, 5, 0, 3, 6, 1, 4, 7)
            made = torch.add(made, self.bias, out=out[:, first : first + part])
            if rectify:
                made.relu_()
        out = out.view(batch, rows * m * d, columns * m * d, outputs)[:, :height, :width]
        return out.contiguous().permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def transforms(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64, for flattened squares: input [t², t²], weight [t², 9], output [tile², t²]; t = tile
    + 2. With evaluation matrices V(n): the one-dimensional forms are V(t)⁻ᵀ, V(3) and V(tile)ᵀ.
    """
    t = tile + 2
    with torch.inference_mode(False):
        points = torch.tensor(POINTS[tile], dtype=torch.float64)
        infinity = torch.eye(t, dtype=torch.float64)

        def evaluate(n: int) -> Tensor:
            powers = points[:, None] ** torch.arange(n, dtype=torch.float64)
            return torch.cat([powers, infinity[n - 1 : n, :n]])

        forms = (torch.linalg.inv(evaluate(t)).T, evaluate(3), evaluate(tile).T)
        return tuple(torch.kron(form.contiguous(), form.contiguous()) for form in forms)


def best_tile(dtype: torch.dtype) -> int:
    """The largest tile whose rounding errors ``dtype`` can bear."""
    return 4 if dtype in (torch.float32, torch.float64) else 2


def pays(shape: tuple[int, ...], weight: Tensor, dilation: int) -> bool:
    """Whether a 3×3 convolution of input ``shape`` [B, C, h, w] is quicker in this form."""
    tile = best_tile(weight.dtype)
    limits = LIMITS[tile]
    if (
        weight.device.type != "cpu"
        or torch.compiler.is_compiling()
        or min(weight.shape[:2]) < limits.channels
    ):
        return False
    rows, columns = (-(-size // (dilation * tile)) for size in shape[2:])
    return shape[0] * dilation**2 * rows * columns >= limits.tiles
