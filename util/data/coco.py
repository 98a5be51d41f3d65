"""COCO annotation files: what they list, and the objects of a class as a mask.

A file says of each picture how large it was when it was annotated (``width``, ``height``): its
frame. A picture that was made smaller or larger since has its annotations scaled; one of another
shape is refused.
"""

from __future__ import annotations

import json
import os
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from util.config.folders import composed, named
from util.data.shapes import (
    Size,
    drawn,
    frame_of,
    numbers,
    polygon_mask,
    run_length_mask,
)
from util.runtime.errors import FewShotError

Key = int | str


class NotListed(FewShotError):
    """A picture that an annotation file says nothing about."""


class Annotation(NamedTuple):
    """One object: its id (for messages), category, the file's ``segmentation`` and ``bbox`` (None
    where absent), and whether it is a crowd."""

    id: Any
    category: Key
    shape: Any
    box: Any = None
    crowd: bool = False

    def draw(self, frame: Size, size: Size) -> np.ndarray:
        """The object, annotated on a picture of size ``frame``, as uint8 {0, 1} of ``size``.

        Raises:
            FewShotError: it cannot be drawn; the message leaves the file and the picture out.
        """
        outline = without_specks(self.shape)
        if not isinstance(outline, dict):
            return polygon_mask(size, outline or [_corners(self.box)], frame)
        mask = run_length_mask(outline, frame)
        if frame != size:
            mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return mask


def without_specks(shape: Any) -> Any:
    """A ``segmentation`` without polygons that enclose nothing; false where none is left."""
    if not isinstance(shape, list):
        return shape
    return [p for p in shape if not _is_speck(p)]


def _is_speck(polygon: Any) -> bool:
    """Whether it is a list of no numbers, or of the coordinates of one point or two."""
    if not isinstance(polygon, list | array) or len(polygon) not in (0, 2, 4):
        return False
    return not any(isinstance(entry, list | array) for entry in polygon)


class Listed(NamedTuple):
    """One picture: its id, its file name as written, its frame (H, W) or None where not said."""

    id: Key
    name: str
    frame: Size | None


class CocoFile:
    """A COCO instances file, read whole and its parts checked.

    Args:
        content: of the file, where :func:`read_json` has read it already.

    Attributes:
        pictures: in file order.
        categories: id -> name.
        objects: id of a picture -> its annotations in file order.

    Raises:
        FewShotError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path = path
        content = read_json(path) if content is None else content
        pictures: dict[Key, Listed] = {}
        for item in self._items(content, "images", "id", "file_name"):
            found = Listed(self._key(item["id"]), str(item["file_name"]), self._frame(item))
            if pictures.setdefault(found.id, found) != found:
                raise FewShotError(f"{path} lists two pictures with the id {found.id}")
        self.pictures = list(pictures.values())
        self.categories: dict[Key, str] = {}
        for item in self._items(content, "categories", "id", "name"):
            key, name = self._key(item["id"]), composed(str(item["name"]))
            if self.categories.setdefault(key, name) != name:
                raise FewShotError(f"{path} lists two categories with the id {key}")
        self.objects: dict[Key, list[Annotation]] = defaultdict(list)
        for item in self._items(content, "annotations", "image_id", "category_id"):
            found = Annotation(
                id=item.get("id", "without id"),
                category=self._key(item["category_id"]),
                shape=item.get("segmentation"),
                box=item.get("bbox"),
                crowd=item.get("iscrowd") not in (None, 0, "", "0", "false", "False"),
            )
            self.objects[self._key(item["image_id"])].append(found)

    def support_mask(
        self, image: Path, class_name: str, sizes: Sequence[Size]
    ) -> tuple[np.ndarray, int]:
        """Every object of a class on one picture.

        Crowds are left out where objects are annotated one by one; where there are only crowds
        (so some programs mark what was painted with a brush) they are the objects.

        Args:
            image: the picture; where several of its name are listed, its folders decide.
            class_name: name of one category.
            sizes: the sizes (H, W) that the picture may have had when it was annotated: as it is
                shown, and as it is stored where that differs.
        Returns:
            uint8 {0, 1} of one of the ``sizes``, and the number of crowds left out.
        Raises:
            FewShotError: no such picture, category or object, or one that cannot be drawn.
        """
        listed = self._find(image)
        class_name = composed(class_name)
        keys = [key for key, name in self.categories.items() if name == class_name]
        if len(keys) != 1:
            names = ", ".join(sorted(set(self.categories.values()))) or "none"
            many = "several categories" if keys else "no category"
            raise FewShotError(f"{self.path} has {many} '{class_name}'; it has: {names:.300}")
        objects = [found for found in self.objects[listed.id] if found.category == keys[0]]
        if not objects:
            raise FewShotError(f"{self.path} has no '{class_name}' on {listed.name}")
        chosen = [found for found in objects if not found.crowd] or objects
        parts = [(f"annotation {each.id!s:.40} on {listed.name}", each.draw) for each in chosen]
        mask = drawn(parts, listed.frame, sizes, self.path, listed.name)
        return mask, len(objects) - len(chosen)

    def classes_on(self, image: Path) -> list[str]:
        """Names of the categories that have an object on the picture, in the file's order.

        Raises:
            FewShotError: the file lists no such picture, or an object of no category.
        """
        found = {each.category for each in self.objects.get(self._find(image).id, ())}
        if unknown := found - self.categories.keys():
            raise FewShotError(f"{self.path} has no category {min(map(str, unknown))}")
        return [name for key, name in self.categories.items() if key in found]

    def annotated(self, pictures: Sequence[Path]) -> list[Path]:
        """Which of the ``pictures`` the file lists with an object; without any, those that lie
        where it says: below its own folder or the one above, there or in ``images``.

        Raises:
            FewShotError: two of them could be the same listed one.
        """
        taken: dict[Key, Path] = {}
        for image in pictures or self._beside():
            try:
                listed = self._find(image)
            except NotListed:
                continue
            other = taken.setdefault(listed.id, image)
            if not other.samefile(image):
                raise FewShotError(f"{self.path}: {other} and {image} could both be {listed.name}")
        return [image for key, image in taken.items() if self.objects.get(key)]

    def left_out(self, pictures: Sequence[Path]) -> list[str]:
        """Sentences on the objects that are on none of the ``pictures``, which the file lists."""
        shown = {self._find(image).id for image in pictures}
        absent = [p.name for p in self.pictures if self.objects.get(p.id) and p.id not in shown]
        told = (absent, "picture", "not found"), (self.astray, "annotation", "of none it lists")
        return [
            f"{self.path}: left out: {named(names, what)} {why}"
            for names, what, why in told
            if names
        ]

    @property
    def astray(self) -> list[str]:
        """The ids of the annotations of pictures that the file does not list."""
        listed = {each.id for each in self.pictures}
        lost = [self.objects[key] for key in self.objects if key not in listed]
        return [f"{each.id!s:.40}" for objects in lost for each in objects]

    def _beside(self) -> list[Path]:
        here = self.path.absolute().parent
        found = []
        for listed in self.pictures:
            name = listed.name.replace("\\", "/")
            places = (folder / part / name for folder in (here, here.parent)
                      for part in (".", "images"))  # fmt: skip
            found += [path for path in places if path.is_file()][:1]
        return found

    def _find(self, image: Path) -> Listed:
        """The entry of a picture: the one that shares most folders with it, from the name on."""
        wanted = _folders(os.path.abspath(image))
        shared: dict[int, list[Listed]] = defaultdict(list)
        for listed in self.pictures:
            ends = zip(reversed(_folders(listed.name)), reversed(wanted), strict=False)
            same = [ours == theirs for ours, theirs in ends]
            shared[(same + [False]).index(False)].append(listed)
        most = max(shared, default=0)
        if not most:
            raise NotListed(f"{self.path} lists no picture called {image.name}")
        found = shared[most]
        whole = [listed for listed in found if len(_folders(listed.name)) == most]
        if len(whole or found) > 1:
            names = ", ".join(f"{each.name} (id {each.id})" for each in found)
            raise FewShotError(f"{self.path}: several pictures could be {image}: {names:.300}")
        if whole:
            return whole[0]
        # Other folders than those of the picture: it was moved, or is another one of that name.
        path = "/".join(_folders(found[0].name))
        for folder in (self.path.parent, *Path(os.path.abspath(image)).parents):
            other = folder / path
            if os.path.isfile(other) and not (image.exists() and other.samefile(image)):
                raise NotListed(f"{self.path} lists {found[0].name}, but not {image}")
        return found[0]

    def _items(self, content: Any, part: str, *needed: str) -> list[dict[str, Any]]:
        """The list ``part`` of the file, each item an object that has the ``needed`` keys."""
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise FewShotError(f"{self.path} is not a COCO instances file: no list of {part}")
        for place, item in enumerate(items):
            for key in needed:
                if not isinstance(item, dict) or item.get(key) is None:
                    raise FewShotError(
                        f"{self.path} is not a COCO instances file: item {place} of its {part} "
                        f"has no {key}"
                    )
        return items

    def _key(self, number: Any) -> Key:
        """An id to compare with: the same one may be written 7, 7.0 or "7"."""
        if isinstance(number, float) and number.is_integer():
            return int(number)
        if isinstance(number, str):
            short = number.isascii() and number.isdecimal() and len(number) < 20
            return int(number) if short else number
        if type(number) is not int:
            raise FewShotError(f"{self.path} is not a COCO instances file: id {number!r:.40}")
        return number

    def _frame(self, item: dict[str, Any]) -> Size | None:
        try:
            return frame_of(item.get("height"), item.get("width"))
        except FewShotError as error:
            raise FewShotError(f"{self.path}: {item['file_name']!s:.200} {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of annotations, polygons packed.

    Raises:
        FewShotError: it cannot be read.
    """
    try:
        # Bytes: UTF-8 with or without a byte order mark and UTF-16 are told apart by it.
        return json.loads(path.read_bytes(), object_hook=_compact)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FewShotError(f"{path} cannot be read as JSON ({reason})") from error


def _folders(name: str) -> list[str]:
    """Folders and name of a path, whatever system wrote it."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..")]


def _corners(box: Any) -> list[float]:
    """The corners of a COCO box x, y, width, height as a polygon."""
    values = numbers(box)
    if values is None or values.shape != (4,) or not (values[2:] > 0).all():
        raise FewShotError(
            "it has no polygon, no run-length code (RLE) and no box x, y, width, height"
        )
    x, y, width, height = values.tolist()
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _compact(found: dict[str, Any]) -> dict[str, Any]:
    """Polygons as arrays while the file is parsed: the official file takes a quarter of the
    memory that lists of Python numbers would."""
    shape = found.get("segmentation")
    if isinstance(shape, list):
        try:
            found["segmentation"] = [array("d", polygon) for polygon in shape]
        except (TypeError, OverflowError):
            pass  # odd polygons are refused where they are drawn, by name
    return found
