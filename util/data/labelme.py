"""Annotation files of labelme: one picture each, its objects as named shapes.

``imageHeight`` and ``imageWidth`` say how large the picture was when it was annotated: its frame,
which follows the rules of :mod:`util.data.coco`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from util.config.folders import composed
from util.data.coco import read_json
from util.data.reading import decoding
from util.data.shapes import Size, circle_mask, drawn, frame_of, numbers, polygon_mask
from util.runtime.errors import FewShotError

_NO_CLASS = ("__ignore__", "_background_")  # labelme's own
_AREAS = ("polygon", "rectangle", "oriented_rectangle", "rotation")  # all corners are given


class Shape(NamedTuple):
    """One object: its label, kind (``shape_type``), points and ``mask`` as in the file, and its
    place there (for messages)."""

    label: str
    kind: str
    points: Any
    pixels: Any
    place: int

    def draw(self, frame: Size, size: Size) -> np.ndarray:
        """The object, annotated on a picture of size ``frame``, as uint8 {0, 1} of ``size``.

        Raises:
            FewShotError: it encloses nothing, or cannot be drawn.
        """
        points = numbers(self.points)
        if points is None or points.ndim != 2 or points.shape[1] != 2:
            raise FewShotError("its points are no list of pairs x, y")
        if self.kind == "mask":
            return self._painted(points, frame, size)
        if self.kind == "circle":
            return circle_mask(size, points, frame)
        if self.kind == "rectangle" and len(points) == 2:
            (x0, y0), (x1, y1) = points
            points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        elif self.kind not in _AREAS:
            raise FewShotError(
                f"a {self.kind} encloses nothing here: draw a polygon, a rectangle or a circle"
            )
        if len(points) < 3:
            raise FewShotError(f"a {self.kind} of {len(points)} points encloses nothing")
        return polygon_mask(size, [points.ravel()], frame)

    def _painted(self, points: np.ndarray, frame: Size, size: Size) -> np.ndarray:
        """The pixels of a mask, a picture in the box of two ``points``, the last one inside."""
        try:
            data = base64.b64decode(self.pixels, validate=True)
        except (TypeError, ValueError) as error:
            raise FewShotError("its mask is missing or damaged") from error
        with decoding("its mask", "picture"), Image.open(io.BytesIO(data)) as picture:
            inside = np.array(picture.convert("L")) > 0
        height, width = inside.shape
        x, y = np.rint(points[0]).astype(int) if np.isfinite(points).all() else (-1, -1)
        if x < 0 or y < 0 or x + width > frame[1] or y + height > frame[0]:
            raise FewShotError(f"its mask of {width}×{height} leaves the picture")
        whole = np.zeros(frame, np.uint8)
        whole[y : y + height, x : x + width] = inside
        return cv2.resize(whole, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


class LabelmeFile:
    """A JSON file of labelme, its parts checked.

    Args:
        content: of the file, where :func:`~util.data.coco.read_json` has read it already.

    Attributes:
        image: the picture as the file names it (``imagePath``), or the one of that name beside the
            file; it need not be there.
        shapes: in file order.
        frame: (H, W), or None where the file does not say it.

    Raises:
        FewShotError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path = path
        content = read_json(path) if content is None else content
        shapes = content.get("shapes") if isinstance(content, dict) else None
        if not isinstance(shapes, list):
            raise FewShotError(f"{path} is not a labelme file: no list of shapes")
        self.shapes = [self._shape(place, shape) for place, shape in enumerate(shapes)]
        try:
            self.frame = frame_of(content.get("imageHeight"), content.get("imageWidth"))
        except FewShotError as error:
            raise FewShotError(f"{path}: its picture {error}") from error
        named = content.get("imagePath")
        if not isinstance(named, str) or not named.strip("/\\ \0"):
            raise FewShotError(f"{path} is not a labelme file: no imagePath")
        written = path.parent / named.replace("\\", "/")
        self.image = written if written.is_file() else path.with_name(written.name)

    def _shape(self, place: int, shape: Any) -> Shape:
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str | int) or not str(label).strip():
            raise FewShotError(f"{self.path} is not a labelme file: shape {place} has no label")
        kind = shape.get("shape_type") or "polygon"
        return Shape(composed(str(label)), str(kind), shape.get("points"), shape.get("mask"), place)

    def classes_on(self, image: Path) -> list[str]:
        """The labels, in the order of their first shape; a file is about one picture."""
        labels = (shape.label for shape in self.shapes if shape.label not in _NO_CLASS)
        return list(dict.fromkeys(labels))

    def annotated(self, pictures: Sequence[Path]) -> list[Path]:
        """The file's picture, where it has a shape.

        Raises:
            FewShotError: there is no such picture.
        """
        if not self.image.is_file():
            raise FewShotError(f"{self.path} is about {self.image}, and there is no such picture")
        return [self.image] if self.classes_on(self.image) else []

    def left_out(self, pictures: Sequence[Path]) -> list[str]:
        """Nothing: a file is about one picture, and refused without it."""
        return []

    def support_mask(
        self, image: Path, class_name: str, sizes: Sequence[Size]
    ) -> tuple[np.ndarray, int]:
        """Every shape of a label; as :meth:`util.data.coco.CocoFile.support_mask`, without crowds.

        Raises:
            FewShotError: no such label, a picture of another shape, or a shape that encloses
                nothing or cannot be drawn.
        """
        class_name = composed(class_name)
        chosen = [shape for shape in self.shapes if shape.label == class_name]
        if not chosen:
            names = ", ".join(sorted(self.classes_on(image))) or "none"
            raise FewShotError(f"{self.path} has no shape '{class_name}'; it has: {names:.300}")
        named = [(f"shape {each.place} ('{class_name:.40}')", each.draw) for each in chosen]
        mask = drawn(named, self.frame, sizes, self.path, image)
        if not mask.any():
            raise FewShotError(f"{self.path}: the shapes of '{class_name:.40}' enclose no pixel")
        return mask, 0
