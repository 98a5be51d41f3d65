"""Encoding of a picture that is zero outside an object, as HDMNet's supports are.

Farther from the object than the network reaches, every feature is that of a picture which is zero
everywhere. Those are computed once for a picture size; each support then takes the surroundings of
its object only, which grow from layer to layer. The features of the empty picture in turn differ
from a constant near the border only, so that a smaller one tells them all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.encoder import Encoder, Features, Segment
from model.layers import compute_dtype, versions

WORTH = 0.85  # a part of the map pays up to this share of it


class Box(NamedTuple):
    """Rows top … bottom - 1 and columns left … right - 1 of a map."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def around(cls, mask: Tensor) -> Box:
        """What holds the object of mask [H, W]; one pixel when there is none."""
        bounds = []
        for axis in (1, 0):
            places = mask.any(dim=axis).nonzero()[:, 0].tolist() or [0]
            bounds += [places[0], places[-1] + 1]
        return cls(*bounds)

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def reached(self, segment: Segment, size: tuple[int, int]) -> Box:
        """The cells of the output, of ``size``, that depend on a cell of this box."""
        bounds = []
        for n, first, end in zip(size, self[::2], self[1::2], strict=True):
            bounds += [
                max(0, -((segment.reach - first) // segment.stride)),
                min(n, (end - 1 + segment.reach) // segment.stride + 1),
            ]
        return Box(*bounds)

    def needed(self, segment: Segment, size: tuple[int, int]) -> Box:
        """The cells of the input, of ``size``, that this box of the output depends on; it begins
        and ends on the segment's stride, or with the map."""
        s, bounds = segment.stride, []
        for n, first, end in zip(size, self[::2], self[1::2], strict=True):
            bounds += [
                max(0, (first * s - segment.reach) // s * s),
                min(n, -(-((end - 1) * s + segment.reach + 1) // s) * s),
            ]
        return Box(*bounds)

    def meet(self, other: Box) -> Box:
        """What both hold."""
        return Box(*(f(a, b) for f, a, b in zip((max, min, max, min), self, other, strict=True)))

    def cut(self, x: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """View of this box in x [B, C, h, w], whose first cell is (top, left)."""
        return x[:, :, self.top - top : self.bottom - top, self.left - left : self.right - left]


class EmptyPicture:
    """Outputs of the encoder's segments, before their ReLU, for a picture of zeros.

    size: of the picture (height, width). Offered for the first ``levels`` segments, whose total
    reach leaves something of the picture alone; each is computed when it is first asked for.
    """

    def __init__(self, encoder: Encoder, size: tuple[int, int], dtype: torch.dtype) -> None:
        self.size = size
        self.source = _source(encoder)
        self._segments = encoder.segments()
        self.levels, stride, reach = 0, 1, 0
        small = size
        for segment in self._segments:
            reach += segment.reach * stride
            stride *= segment.stride
            least = 2 * (reach + stride)
            if least > WORTH * min(size):
                break
            self.levels += 1
            small = tuple(n - (n - least) // stride * stride for n in size)
        with torch.inference_mode(False):
            picture = torch.zeros(1, 3, *small, dtype=dtype)
        # The maps before segments 0, 1, 2 …
        self._maps: list[Tensor | None] = [picture, *[None] * self.levels]

    def cut(self, level: int, size: tuple[int, int], box: Box) -> Tensor:
        """A copy of ``box`` of the map before segment ``level``, which has ``size``."""
        found = self._map(level).permute(0, 2, 3, 1)  # channels last
        for axis, n, first, end in zip((1, 2), size, box[::2], box[1::2], strict=True):
            small = found.shape[axis]
            index = torch.arange(first, end)
            # As there near both ends; what lies between is constant.
            far = (index - (n - small)).clamp(min=small // 2)
            found = found.index_select(axis, torch.where(index < small // 2, index, far))
        return found.permute(0, 3, 1, 2)

    def _map(self, level: int) -> Tensor:
        if self._maps[level] is None:
            before = self._map(level - 1)
            with torch.inference_mode(False), torch.no_grad():
                x = before if level == 1 else F.relu(before)
                x = x.contiguous(memory_format=torch.channels_last)
                self._maps[level] = self._segments[level - 1].run(x, False)
        return self._maps[level]


class ObjectEncoder:
    """``encoder`` with the same result, for one picture at a time, without gradient, on a CPU."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._empty: dict[torch.dtype, EmptyPicture] = {}

    def __call__(self, image: Tensor, mask: Tensor) -> Features:
        """image [1, 3, H, W], zero where mask [1, H, W] is."""
        segments = self.encoder.segments()
        x, taps, level = self._surroundings(image, mask, segments)
        return self.encoder.features(taps + self.encoder.run(x, segments[level:]))

    def _surroundings(
        self, image: Tensor, mask: Tensor, segments: list[Segment]
    ) -> tuple[Tensor, list[Tensor], int]:
        """As far as it pays: input of the next segment, taps so far, number of that segment."""
        size = (image.shape[2], image.shape[3])
        empty = self._empty_picture(size, compute_dtype(image))
        # The map before segment ``level``: ``values`` in ``box``, the empty picture's elsewhere.
        level, box, taps = 0, Box.around(mask[0]), []
        values = box.cut(image)

        def part(wanted: Box) -> Tensor:
            found = empty.cut(level, size, wanted)
            both = box.meet(wanted)
            both.cut(found, wanted.top, wanted.left).copy_(both.cut(values, box.top, box.left))
            return found

        for segment in segments[: empty.levels]:
            after = tuple(-(-n // segment.stride) for n in size)
            reached = box.reached(segment, after)
            needed = reached.needed(segment, size)
            if needed.area > WORTH * size[0] * size[1]:
                break
            x = part(needed)
            made = segment.run(F.relu(x, inplace=True) if level else x, False)
            values = reached.cut(made, needed.top // segment.stride, needed.left // segment.stride)
            level, size, box = level + 1, after, reached
            if segment.tap:
                taps.append(self.encoder.tapped(part(Box(0, size[0], 0, size[1]))))
        if level == 0:
            return image, taps, level
        if segments[level - 1].tap and self.encoder.block_relu:
            return taps[-1], taps, level
        return F.relu(part(Box(0, size[0], 0, size[1])), inplace=True), taps, level

    def _empty_picture(self, size: tuple[int, int], dtype: torch.dtype) -> EmptyPicture:
        """The latest one of ``dtype``, made anew when the size or the encoder's weights change."""
        found = self._empty.get(dtype)
        if found is None or found.size != size or found.source != _source(self.encoder):
            found = self._empty[dtype] = EmptyPicture(self.encoder, size, dtype)
        return found


def _source(encoder: Encoder) -> tuple:
    return versions([*encoder.parameters(), *encoder.buffers()])
