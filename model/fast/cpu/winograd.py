"""Winograd's minimal filtering for 3×3 convolutions: the same sums with fewer multiplications.

F(m×m, 3×3) takes (m+2)² products for m² outputs where the sum as written takes 9 m²: 4 times fewer
for m = 4 (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"; matrices by
Cook and Toom from the points below). CUDA's libraries choose it themselves; on CPUs torch's
convolutions do not.

It loses about one digit to rounding: relative errors of 1e-6 in float32, and of 1.3 % in bfloat16
where the plain form has 0.2 % (with the usual points 0, ±1, 2, -½ it would be 1.8 %). A dilated
convolution is d² independent ones over every d-th row and column.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 4  # outputs a side (m)
SIDE = TILE + 2  # inputs a side
# Where the tile polynomials are evaluated, infinity besides: of those of the form 0, ±a, ±b these
# magnify rounding errors least.
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))

# Where the form pays, measured: channels at least; outputs at least for each tile and as if there
# were so many tiles more, for reading the transformed weights.
CHANNELS = 256
OUTPUTS = 8
MORE_TILES = 25
# Bytes of transformed input to work on at a time: with less the weights are read more often, and
# what is larger than 32 MB is given back to the system and cleared anew each time.
PART = 30_000_000
# Of those, bytes of tiles to take from the picture at a time: they stay in the caches meanwhile.
CHUNK = 6_000_000


class Spare(NamedTuple):
    """Rows above and below, columns on the left and on the right that nobody needs of a result."""

    above: int = 0
    below: int = 0
    left: int = 0
    right: int = 0

    def cut_off(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] without them."""
        return x[:, :, self.above : x.shape[2] - self.below, self.left : x.shape[3] - self.right]


NONE = Spare()


class Winograd:
    """A 3×3 convolution with stride 1 and padding = dilation, without gradient.

    weight [O, C, 3, 3], bias [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int) -> None:
        self.bias = bias
        self.dilation = dilation
        with torch.inference_mode(False), torch.no_grad():
            spread_in, spread_weight, gather_out = transforms()
            transformed = spread_weight @ weight.double().flatten(2).permute(2, 1, 0).flatten(1)
            self.weight = transformed.unflatten(1, weight.shape[1::-1]).to(weight.dtype)
            self.spread_in = spread_in.to(weight.dtype)
            self.gather_out = gather_out.to(weight.dtype)

    def __call__(self, x: Tensor, rectify: bool = False, spare: Spare = NONE) -> Tensor:
        """[B, C, h, w] -> [B, O, h, w] without ``spare``, channels last; with ``rectify`` after a
        ReLU.
        """
        batch, channels, height, width = x.shape
        above, below, left, right = spare
        height, width = height - above - below, width - left - right
        x = x.permute(0, 2, 3, 1)
        d, m, t = self.dilation, TILE, SIDE
        rows, columns = (-(-size // (d * m)) for size in (height, width))
        outputs = self.weight.shape[2]
        in_row = batch * d * d * columns  # tiles
        row_bytes = t * t * in_row * channels * x.element_size()
        part = -(-rows // -(-rows // max(1, PART // row_bytes)))
        chunk = min(part, max(1, CHUNK // row_bytes))
        out = x.new_empty(batch, rows, m, d, columns, m, d, outputs)
        # Two pieces of memory, by turns, for what is made on the way.
        one, other = (
            x.new_empty(t * t * in_row * max(n * channels, part * outputs)) for n in (chunk, part)
        )
        for first in range(0, rows, part):
            end = min(first + part, rows)
            n = (end - first) * in_row
            spread = other[: t * t * n * channels].view(t * t, -1)
            pieces = spread.split(chunk * in_row * channels, dim=1)
            for row, piece in zip(range(first, end, chunk), pieces, strict=True):
                corner = ((row * m - 1) * d + above, left - d)
                tiles = self._tiles(x, *corner, min(chunk, end - row), columns)
                taken = one[: tiles.numel()].view(tiles.shape).copy_(tiles)
                torch.mm(self.spread_in, taken.view(t * t, -1), out=piece)
            products = one[: t * t * n * outputs].view(t * t, n, outputs)
            torch.bmm(spread.view(t * t, n, channels), self.weight, out=products)
            made = other[: m * m * n * outputs].view(m * m, -1)
            torch.mm(self.gather_out, products.flatten(1), out=made)
            made = made.view(m, m, end - first, batch, d, d, columns, outputs)
            made = made.permute(3, 2, 0, 4, 6, 1, 5, 7)
            made = torch.add(made, self.bias, out=out[:, first:end])
            if rectify:
                made.relu_()
        out = out.view(batch, rows * m * d, columns * m * d, outputs)[:, :height, :width]
        return out.contiguous().permute(0, 3, 1, 2)

    def _tiles(self, x: Tensor, top: int, left: int, rows: int, columns: int) -> Tensor:
        """Overlapping tiles of every dilated grid of x [B, h, w, C], from row ``top`` and column
        ``left`` on, zero beyond x: a view [t, t, rows, B, d, d, columns, C].
        """
        d, m, t = self.dilation, TILE, SIDE
        band = _between_zeros(x, top, left, (rows * m + 2) * d, (columns * m + 2) * d)
        per_image, per_row, per_pixel, _ = band.stride()
        grids = (m * d * per_row, per_image, per_row, per_pixel, m * d * per_pixel, 1)
        shape = (t, t, rows, x.shape[0], d, d, columns, x.shape[3])
        return band.as_strided(shape, (d * per_row, d * per_pixel, *grids))


def _between_zeros(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """[B, height, width, C] of x [B, h, w, C] from row ``top`` and column ``left`` on, which may be
    negative; zero beyond x.
    """
    out = x.new_empty(x.shape[0], height, width, x.shape[3])
    inner = x[:, max(0, top) : top + height, max(0, left) : left + width]
    above, before = max(0, -top), max(0, -left)
    below, beside = above + inner.shape[1], before + inner.shape[2]
    for strip in (out[:, :above], out[:, below:], out[:, :, :before], out[:, :, beside:]):
        strip.zero_()
    out[:, above:below, before:beside] = inner
    return out


@lru_cache
def transforms() -> tuple[Tensor, ...]:
    """float64, for flattened squares: input [SIDE², SIDE²], weight [SIDE², 9], output [TILE²,
    SIDE²]. With evaluation matrices V(n): the one-dimensional forms are V(SIDE)⁻ᵀ, V(3), V(TILE)ᵀ.
    """
    with torch.inference_mode(False):
        points = torch.tensor(POINTS, dtype=torch.float64)
        infinity = torch.eye(SIDE, dtype=torch.float64)

        def evaluate(n: int) -> Tensor:
            powers = points[:, None] ** torch.arange(n, dtype=torch.float64)
            return torch.cat([powers, infinity[n - 1 : n, :n]])

        forms = (torch.linalg.inv(evaluate(SIDE)).T, evaluate(3), evaluate(TILE).T)
        return tuple(torch.kron(form.contiguous(), form.contiguous()) for form in forms)


def pays(shape: tuple[int, ...], weight: Tensor, dilation: int) -> bool:
    """Whether a 3×3 convolution of input ``shape`` [B, C, h, w] is quicker in this form."""
    if (
        weight.device.type != "cpu"
        or torch.compiler.is_compiling()
        or min(weight.shape[:2]) < CHANNELS
    ):
        return False
    rows, columns = (-(-size // (dilation * TILE)) for size in shape[2:])
    tiles = shape[0] * dilation**2 * rows * columns
    return shape[0] * shape[2] * shape[3] >= OUTPUTS * (tiles + MORE_TILES)
