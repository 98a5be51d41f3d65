"""Encoding of a picture that is zero outside an object, as HDMNet's supports are.

Farther from the object than the network reaches, every feature is that of a picture which is zero
everywhere. Those are computed once for a picture size; each support then takes the surroundings of
its object only, which grow from layer to layer. The features of the empty picture in turn differ
from a constant near the border only, so that a smaller one tells them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from model.fast.cpu.winograd import Spare
from model.fast.steps import Step, run
from model.layers import strided

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

    def reached(self, step: Step, size: tuple[int, int]) -> Box:
        """The cells of the output, of ``size``, that depend on a cell of this box."""
        bounds = []
        for n, first, end in zip(size, self[::2], self[1::2], strict=True):
            bounds += [
                max(0, -((step.reach - first) // step.stride)),
                min(n, (end - 1 + step.reach) // step.stride + 1),
            ]
        return Box(*bounds)

    def needed(self, step: Step, size: tuple[int, int]) -> Box:
        """The cells of the input, of ``size``, that this box of the output depends on; it begins
        and ends on the step's stride, or with the map."""
        s, bounds = step.stride, []
        for n, first, end in zip(size, self[::2], self[1::2], strict=True):
            bounds += [
                max(0, (first * s - step.reach) // s * s),
                min(n, -(-((end - 1) * s + step.reach + 1) // s) * s),
            ]
        return Box(*bounds)

    def shrunk(self, stride: int) -> Box:
        """What a step of ``stride`` makes of this box, which begins on it."""
        return Box(*(-(-bound // stride) for bound in self))

    def within(self, outer: Box) -> Spare:
        """What ``outer``, which holds this box, has besides."""
        return Spare(
            self.top - outer.top,
            outer.bottom - self.bottom,
            self.left - outer.left,
            outer.right - self.right,
        )

    def meet(self, other: Box) -> Box:
        """What both hold."""
        return Box(*(f(a, b) for f, a, b in zip((max, min, max, min), self, other, strict=True)))

    def beside(self, inner: Box) -> list[Box]:
        """This box without ``inner``, which it holds."""
        top, bottom, left, right = self
        strips = [
            Box(top, inner.top, left, right),
            Box(inner.bottom, bottom, left, right),
            Box(inner.top, inner.bottom, left, inner.left),
            Box(inner.top, inner.bottom, inner.right, right),
        ]
        return [strip for strip in strips if strip.area]

    def cut(self, x: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """View of this box in x [B, C, h, w], whose first cell is (top, left)."""
        return x[:, :, self.top - top : self.bottom - top, self.left - left : self.right - left]


class EmptyPicture:
    """An encoder's stack of maps before each of its first steps, for a picture of zeros.

    size: of the picture (height, width). Offered for the first ``levels`` steps, whose total
    reach leaves something of the picture alone; each is computed when it is first asked for.
    """

    def __init__(self, steps: Sequence[Step], size: tuple[int, int], dtype: torch.dtype) -> None:
        self.size = size
        self._steps: list[Step] = []
        # What a step takes of the smallest picture whose result, of that step, shows all there is.
        self._small: list[tuple[int, int]] = []
        stride, reach = 1, 0
        for step in steps:
            reach += step.reach * stride
            after = stride * step.stride
            least = 2 * (reach + after)
            if least > WORTH * min(size):
                break
            height, width = (n - (n - least) // after * after for n in size)
            self._small.append(strided((height, width), stride))
            self._steps.append(step)
            stride = after
        with torch.inference_mode(False):
            picture = torch.zeros(1, 3, 1, 1, dtype=dtype)
            self._stacks: list[tuple[Tensor, ...]] = [(picture,)]
        self._lock = Lock()

    @property
    def levels(self) -> int:
        return len(self._steps)

    def stack(self, level: int) -> tuple[Tensor, ...]:
        """The maps before step ``level``, for :func:`cut`."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            for done in range(len(self._stacks) - 1, level):
                step, small, stack = self._steps[done], self._small[done], self._stacks[done]
                whole = Box(0, small[0], 0, small[1])
                taken = [cut(x, small, whole) for x in stack[-step.takes :]]
                self._stacks.append((*stack[: -step.takes], *step.run(*taken)))
        return self._stacks[level]


def cut(x: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """A copy of ``box`` of the empty picture's map of ``size``, told by its smaller map x: as there
    near the border; what lies between is constant.
    """
    x = x.permute(0, 2, 3, 1)  # channels last
    axes = zip((1, 2), size, box[::2], box[1::2], strict=True)
    for axis, n, first, end in sorted(axes, key=lambda a: (a[3] - a[2]) / x.shape[a[0]]):
        x = x.index_select(axis, _places(x.shape[axis], n, first, end))
    return x.permute(0, 3, 1, 2)


@lru_cache(maxsize=1024)
def _places(small: int, n: int, first: int, end: int) -> Tensor:
    """Where of the smaller map's ``small`` rows to find rows first … end - 1 of ``n``."""
    with torch.inference_mode(False):
        index = torch.arange(first, end)
        far = (index - (n - small)).clamp(min=small // 2)
        return torch.where(index < small // 2, index, far)


class Part(NamedTuple):
    """A map that is ``values`` in ``box`` and the empty picture's elsewhere."""

    values: Tensor
    box: Box

    def shown(self, empty: Tensor, size: tuple[int, int], wanted: Box) -> Tensor:
        """``wanted`` of the map, of ``size``; may be the part's own values."""
        if wanted == self.box:
            return self.values.contiguous(memory_format=torch.channels_last)
        rows, columns = wanted.bottom - wanted.top, wanted.right - wanted.left
        shape = (self.values.shape[0], rows, columns, self.values.shape[1])
        found = self.values.new_empty(shape).permute(0, 3, 1, 2)
        inner = self.box.meet(wanted)
        inner.cut(found, wanted.top, wanted.left).copy_(
            inner.cut(self.values, self.box.top, self.box.left)
        )
        for strip in wanted.beside(inner):
            strip.cut(found, wanted.top, wanted.left).copy_(cut(empty, size, strip))
        return found


class AroundObject:
    """An encoder's steps for one picture at a time, without gradient, with the same result."""

    def __init__(self, steps: Sequence[Step], dtype: torch.dtype) -> None:
        self.steps, self.dtype = steps, dtype
        self._empty: EmptyPicture | None = None

    def __call__(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        """What the taps give. image [1, 3, H, W], zero where mask [1, H, W] is."""
        size = (image.shape[2], image.shape[3])
        empty = self._empty_picture(size)
        box, taps, level = Box.around(mask[0]), [], 0
        stack = [Part(box.cut(image), box)]

        def shown(number: int, wanted: Box) -> list[Tensor]:
            """``wanted`` of the uppermost maps."""
            maps = empty.stack(level)[-number:]
            parts = zip(stack[-number:], maps, strict=True)
            return [part.shown(x, size, wanted) for part, x in parts]

        for step in self.steps[: empty.levels]:  # as far as it pays
            after = strided(size, step.stride)
            reached = stack[-1].box.reached(step, after)
            needed = reached.needed(step, size)
            if needed.area > WORTH * size[0] * size[1]:
                break
            made = step.inner(shown(step.takes, needed), reached.within(needed.shrunk(step.stride)))
            stack[-step.takes :] = [Part(x, reached) for x in made]
            level, size = level + 1, after
            if step.tap:
                taps += shown(1, Box(0, size[0], 0, size[1]))
        whole = shown(len(stack), Box(0, size[0], 0, size[1])) if level else [image]
        return taps + run(whole, self.steps[level:])

    def _empty_picture(self, size: tuple[int, int]) -> EmptyPicture:
        """The latest one; made anew when the size changes."""
        empty = self._empty
        if empty is None or empty.size != size:
            empty = self._empty = EmptyPicture(self.steps, size, self.dtype)
        return empty
