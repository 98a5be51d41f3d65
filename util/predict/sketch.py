"""An object marked on a picture by clicks: boxes, polygons, or points inside it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from util.data.shapes import filled, outlines
from util.draw.overlays import Colour, overlay
from util.draw.panels import fit
from util.predict.refine import grab_cut

Point = tuple[int, int]
"""x, y in pixels."""
# GrabCut works on a picture of this size, its texture smoothed away; radii around a point there:
# surely the object, perhaps the object, the farthest that it reaches.
_SIDE = 256
_SURE, _LIKELY, _REACH = 6, 38, 77


class Sketch:
    """A picture and what its clicks enclose so far.

    Attributes:
        image: uint8 RGB [H, W, 3].
        tool: 'box', 'polygon' or 'point'. A box spans two clicks; a polygon closes on its first
            corner; points are inside the object, or outside where they are set on what was found.
        mask: uint8 {0, 1} [H, W].
    """

    def __init__(self, image: np.ndarray, tool: str) -> None:
        self.image, self.tool = image, tool
        self.parts: list[list[Point]] = []  # closed boxes and polygons
        self.open: list[Point] = []  # corners of the next one, or the points inside
        self.outside: list[Point] = []
        self._order: list[list[Point]] = []  # which of the two lists of points took each click
        self.mask: np.ndarray = np.zeros(image.shape[:2], np.uint8)

    def click(self, x: float, y: float) -> None:
        """A click on the picture, in its pixels."""
        height, width = self.mask.shape
        point = (min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1))
        if self.tool == "point":
            self._order.append(self.outside if self.mask[point[::-1]] else self.open)
            self._order[-1].append(point)
        elif self.tool == "polygon" and len(self.open) > 2 and self._close_to(point, self.open[0]):
            self.close()
        else:
            self.open.append(point)
            if self.tool == "box" and len(self.open) == 2:
                self.close()
        self._update()

    def close(self) -> None:
        """Finish the polygon (three corners or more): the next click begins another one."""
        if len(self.open) > (1 if self.tool == "box" else 2) and self.tool != "point":
            self.parts.append(self.open)
            self.open = []

    def undo(self) -> None:
        """Take the last click back; a polygon that it closed is open again."""
        if self.tool == "point":
            if self._order:
                self._order.pop().pop()
        elif self.open:
            self.open.pop()
        elif self.parts:
            self.open = self.parts.pop()
            if self.tool == "box":
                self.open.pop()
        self._update()

    def drawn(self, colour: Colour) -> np.ndarray:
        """The picture with the mask, the corners and the points, uint8 RGB [H, W, 3]."""
        canvas = overlay(self.image, self.mask, colour, 0.4)
        radius = max(3, max(self.mask.shape) // 120)
        if self.tool == "polygon" and len(self.open) > 1:
            line = np.array(self.open, np.int32)
            cv2.polylines(canvas, [line], False, colour, max(1, radius // 2), cv2.LINE_AA)
        for x, y in self.open:
            cv2.circle(canvas, (x, y), radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(canvas, (x, y), radius, colour, -1, cv2.LINE_AA)
        for x, y in self.outside:
            cv2.circle(canvas, (x, y), radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.line(canvas, (x - radius, y), (x + radius, y), (0, 0, 0), radius, cv2.LINE_AA)
        return canvas

    def _close_to(self, point: Point, other: Point) -> bool:
        reach = max(8, max(self.mask.shape) / 50)
        return bool(np.hypot(point[0] - other[0], point[1] - other[1]) <= reach)

    def _update(self) -> None:
        size = self.mask.shape
        if self.tool == "point":
            found = object_at(self.image, self.open, self.outside) if self.open else None
            self.mask = np.zeros(size, np.uint8) if found is None else found
            return
        self.mask = np.zeros(size, np.uint8)
        for part in [*self.parts, self.open]:
            points = np.array(part, float).reshape(-1, 2)
            if self.tool == "box" and len(part) == 2:
                (x0, y0), (x1, y1) = points.min(0).astype(int), points.max(0).astype(int)
                self.mask[y0 : y1 + 1, x0 : x1 + 1] = 1
            elif self.tool == "polygon" and len(part) > 2:
                self.mask |= filled(size, outlines([points.ravel().tolist()], size))


def object_at(
    image: np.ndarray, inside: Sequence[Point], outside: Sequence[Point] = ()
) -> np.ndarray:
    """The object that points lie in, by OpenCV's GrabCut: uint8 {0, 1} [H, W].

    Args:
        image: uint8 RGB [H, W, 3].
        inside: points of the object, one or more; only what hangs together with one is taken.
        outside: points that are not of it.
    """
    small = cv2.pyrMeanShiftFiltering(fit(image, _SIDE), 8, 20)
    scale = np.array(small.shape[1::-1]) / image.shape[1::-1]

    def places(points: Sequence[Point]) -> list[tuple[int, int]]:
        return [(int(x), int(y)) for x, y in (np.array(points).reshape(-1, 2) + 0.5) * scale]

    seeds = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    for points, radius, value in (
        (inside, _REACH, cv2.GC_PR_BGD),
        (inside, _LIKELY, cv2.GC_PR_FGD),
        (outside, _LIKELY // 2, cv2.GC_PR_BGD),
        (inside, _SURE, cv2.GC_FGD),
        (outside, _SURE, cv2.GC_BGD),
    ):
        for place in places(points):
            cv2.circle(seeds, place, radius, value, -1)
    for place in places(inside):  # whatever lies beside it
        seeds[place[::-1]] = cv2.GC_FGD
    if not (seeds % 2 == 0).any():  # every pixel is near a point: GrabCut needs a background
        seeds[0], seeds[-1] = cv2.GC_PR_BGD, cv2.GC_PR_BGD
    found = grab_cut(small[..., ::-1], seeds).astype(np.uint8)
    _, pieces = cv2.connectedComponents(found)
    kept = np.isin(pieces, [pieces[place[::-1]] for place in places(inside)]) & (found == 1)
    smooth = cv2.resize(kept.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return (smooth > 0.5).astype(np.uint8)
