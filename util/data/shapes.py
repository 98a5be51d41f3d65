"""Boxes, polygons and run-length codes as masks: uint8 [H, W], 1 = inside, 0 = outside.

A coordinate counts pixels from the upper left corner of a *frame*, the picture that was annotated.
Polygons are drawn by pycocotools, which trusts what it is given: a coordinate that is no number, or
lies far outside, would end the process. So everything is checked here first, and refused with a
:class:`FewShotError` that a caller completes with the name of the annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from util.runtime.errors import FewShotError

# Annotators overshoot the border of a picture a little; coordinates that lie further out than this
# part of its side belong to another picture.
OVERSHOOT = 0.1
MOST_PIXELS = 2**29  # of a picture: pycocotools counts with 32 bits
LONGEST_OUTLINE = 10_000_000  # pixels; pycocotools keeps 80 bytes for each

Size = tuple[int, int]
"""Height and width."""


def pixels(size: Size) -> str:
    """A size as error messages say it: width×height."""
    return f"{size[1]}×{size[0]} pixels"


def numbers(values: Any) -> np.ndarray | None:
    """Numbers as people hold them (lists, arrays, tensors) as float64, or None."""
    try:
        array = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind in "iuf" else None
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return None


def frame_of(height: Any, width: Any) -> Size | None:
    """The size that an annotation file gives its picture; None where it says nothing.

    Raises:
        FewShotError: these are no sides of a picture; the message leaves file and picture out.
    """
    if height is None and width is None:
        return None
    try:
        sides = float(height), float(width)
    except (TypeError, ValueError, OverflowError):
        sides = 0.0, 0.0
    if not (all(side.is_integer() and side > 0 for side in sides)) or (
        sides[0] * sides[1] > MOST_PIXELS
    ):
        raise FewShotError(f"has the width {width!r:.40} and the height {height!r:.40}")
    return int(sides[0]), int(sides[1])


def fitting(frame: Size, sizes: Sequence[Size]) -> Size:
    """Which of the ``sizes`` a picture may have is that of its annotation's ``frame``: the same, or
    else one of the same shape, up to the rounding of each side to whole pixels.

    Raises:
        FewShotError: none; the message leaves file and picture out.
    """
    for size in sizes:
        if size == frame:
            return size
    for size in sizes:
        off = abs(frame[0] * size[1] - frame[1] * size[0])
        if off <= max(sum(frame), sum(size)):
            return size
    raise FewShotError(
        f"has {pixels(frame)}, but it has {pixels(sizes[0])}: another shape, so that its "
        "annotations do not fit"
    )


def drawn(
    objects: Iterable[tuple[str, Callable[[Size, Size], np.ndarray]]],
    frame: Size | None,
    sizes: Sequence[Size],
    file: Path,
    picture: object,
) -> np.ndarray:
    """All ``objects`` of one picture as one mask, uint8 {0, 1} of one of the ``sizes``.

    Args:
        objects: how sentences call each, and what draws it, annotated on a picture of the first
            size, as a mask of the second.
        frame: size of the annotated picture; None: the first of the ``sizes``.
        file, picture: how sentences call them.
    Raises:
        FewShotError: the frame is that of another picture, or an object cannot be drawn.
    """
    frame = frame or sizes[0]
    try:
        size = fitting(frame, sizes)
    except FewShotError as error:
        raise FewShotError(f"{file} says that {picture} {error}") from error
    mask = np.zeros(size, np.uint8)
    for name, draw in objects:
        try:
            mask |= draw(frame, size)
        except FewShotError as error:
            raise FewShotError(f"{file}: {name}: {error}") from error
    return mask


def box_mask(size: Size, box: Sequence[float]) -> np.ndarray:
    """uint8 [H, W] with 1 inside ``box`` = (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.

    Raises:
        FewShotError: not four finite numbers, empty, outside the picture, or fractions of it.
    """
    height, width = size
    corners = numbers(box)
    if corners is None or corners.shape != (4,):
        raise FewShotError(f"a box is four numbers x0, y0, x1, y1 in pixels, not {box!r:.80}")
    name = "box " + ",".join(f"{value:g}" for value in corners)
    if not np.isfinite(corners).all():
        raise FewShotError(f"{name} holds a value that is no number")
    if (np.abs(corners - 0.5) < 1).all():
        there = np.rint(corners * (width, height, width, height)).astype(int)
        raise FewShotError(
            f"{name} lies between 0 and 1, but a box is in pixels; if these are fractions of the "
            f"picture's {pixels(size)}, its corners are {','.join(map(str, there))}"
        )
    x0, y0, x1, y1 = (round(value) for value in corners.tolist())
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise FewShotError(f"{name} is empty or leaves the picture of {pixels(size)}")
    mask = np.zeros(size, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def polygon_mask(
    size: Size, polygons: Sequence[Sequence[float]], frame: Size | None = None
) -> np.ndarray:
    """uint8 [H, W] with 1 inside any of the COCO-style polygons ``[x1, y1, x2, y2, ...]``.

    The pixels are those of pycocotools: a square with corners 10 and 12 covers 2 × 2 of them.

    Args:
        frame: (H, W) that the coordinates belong to, where that is not ``size``: they are scaled.
    Raises:
        FewShotError: as :func:`outlines`, and where all coordinates are fractions.
    """
    found = outlines(polygons, frame or size)
    if max(points.max() for points in found) < 1.5:
        raise FewShotError(
            "the polygon lies between 0 and 1, but its coordinates are pixels: multiply fractions "
            "by the width and height of the picture"
        )
    if frame is not None:
        found = [points * size[::-1] / frame[::-1] for points in found]
    return filled(size, found)


def circle_mask(size: Size, points: Sequence[Sequence[float]], frame: Size) -> np.ndarray:
    """uint8 [H, W] with 1 where a pixel's centre lies in the circle of ``points``: its centre and
    one on its rim, in a ``frame`` (H, W) that is scaled to ``size``. It may leave the picture.

    Raises:
        FewShotError: these are not two points, or the centre is outside the frame.
    """
    values = numbers(points)
    if values is None or values.shape != (2, 2) or not np.isfinite(values).all():
        raise FewShotError("a circle is two points, its centre and one on its rim")
    ((x, y),) = outlines([values[0]], frame, least=1)[0]
    reach = float(np.square(values[1] - values[0]).sum())
    rows, columns = np.ogrid[: size[0], : size[1]]
    down = (rows + 0.5) * frame[0] / size[0] - y
    right = (columns + 0.5) * frame[1] / size[1] - x
    return (down**2 + right**2 <= reach).astype(np.uint8)


def filled(size: Size, found: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [H, W] with 1 inside any of the polygons of :func:`outlines`, three points or more."""
    return rle.decode(rle.merge(rle.frPyObjects([points.ravel() for points in found], *size)))


def outlines(polygons: Sequence[Sequence[float]], frame: Size, least: int = 3) -> list[np.ndarray]:
    """The points of COCO-style polygons, each float64 [N, 2] as x, y.

    Raises:
        FewShotError: one is no flat list of ``least`` or more points, holds values that are no
            numbers or lie outside the ``frame``.
    """
    try:
        found = [numbers(polygon) for polygon in polygons]
    except TypeError:
        found = []
    if not found:
        raise FewShotError("there is no polygon")
    for values in found:
        if values is None or values.ndim != 1 or values.size < 2 * least or values.size % 2:
            raise FewShotError(
                "polygons are a list that holds, for each, a flat list x1, y1, x2, y2, ... of "
                f"{_WORDS[least]} or more points"
            )
    found = [values.reshape(-1, 2) for values in found]
    limit = np.array(frame[::-1])
    for points in found:
        if not np.isfinite(points).all():
            raise FewShotError("a polygon holds a value that is no number")
        out = np.maximum(-points, points - limit) > np.maximum(2, OVERSHOOT * limit)
        if out.any():
            x, y = points[out.any(axis=1)][0]
            raise FewShotError(
                f"a polygon reaches {x:g},{y:g}, outside the picture of {pixels(frame)}"
            )
        if np.abs(np.diff(points, axis=0)).max(axis=1).sum() > LONGEST_OUTLINE:
            raise FewShotError("a polygon has an outline of more than ten million pixels")
    return found


_WORDS = {1: "one", 3: "three"}


def run_length_mask(code: dict[str, Any], frame: Size) -> np.ndarray:
    """uint8 [H, W] of COCO's run-length code ``{"size": [H, W], "counts": text or runs}``.

    Raises:
        FewShotError: the code is damaged, or does not fill the ``frame`` exactly.
    """
    size, counts = code.get("size"), code.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    runs = counts if isinstance(counts, list) else [-1]
    if not all(type(run) is int and run >= 0 for run in runs):
        raise FewShotError("the run-length code (RLE) is damaged")
    if size != list(frame):
        said = "no size" if size is None else f"the size (height, width) {size!r:.40}"
        raise FewShotError(
            f"the run-length code (RLE) has {said}, but its picture is listed with {list(frame)}"
        )
    if sum(runs) != frame[0] * frame[1]:
        raise FewShotError(
            f"the runs of its code (RLE) add up to {sum(runs)}, "
            f"but the picture of {pixels(frame)} has {frame[0] * frame[1]}"
        )
    # pycocotools would read on past the end of a code, so the runs are laid out here.
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(frame[::-1]).T)


def _unpacked(text: str) -> list[int] | None:
    """The runs of a compressed code (six bits a letter, low ones first), or None if it is none."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or shift > 60:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # the number goes on
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # kept as a difference
        value = shift = 0
    return None if shift else runs
