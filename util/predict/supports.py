"""Supports as files: pictures with masks or boxes, folders of them, annotation files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from util.config.folders import class_folders, is_hidden, named, searched
from util.data.annotations import AnnotationFile, NoAnnotations, annotation_file, object_on
from util.data.reading import fit_pair, read_image
from util.runtime.errors import FewShotError
from util.runtime.files import expanded, user_path

JSON = ".json"
Reader = Callable[[Path], AnnotationFile]  # many supports may share a file, which can be large


class Support:
    """One annotated picture of one class, as a command names it.

    ``mask`` is the path of a mask, ``mask.png#7`` for one label of it, ``box:x0,y0,x1,y1``, or an
    annotation file of labelme or COCO (``.json``), whose objects called ``class_name`` are taken.
    """

    def __init__(self, image: Path, mask: str, class_name: str) -> None:
        self.image, self.mask, self.class_name = image, mask, class_name

    def annotation(self, read: Reader = annotation_file) -> dict[str, Any]:
        """Keyword arguments for :meth:`~util.predict.predictor.FewShotPredictor.add_support`."""
        if self.mask.startswith("box:"):
            try:
                box = [float(value) for value in self.mask[4:].split(",")]
            except ValueError:
                box = []
            if len(box) != 4:
                raise FewShotError(f"'{self.mask}' is no box: write box:x0,y0,x1,y1 in pixels")
            return {"box": box}
        if is_annotation(self.mask):
            return {"mask": annotated(self.image, Path(self.mask), self.class_name, read)}
        path, label = self._labelled()
        return {"mask": path} if label is None else {"mask": path, "label": label}

    def _labelled(self) -> tuple[Path, int | None]:
        """The path of the mask, and the label that follows it (``mask.png#7``)."""
        path, _, label = self.mask.rpartition("#")
        asked = path and label.isascii() and label.isdecimal() and len(label) < 10
        return (Path(path), int(label)) if asked else (Path(self.mask), None)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture, uint8 RGB [H, W, 3], and the object of an annotation file on it, uint8
        {0, 1} [H, W]: as it is shown, or as it is stored where the annotation fits only that."""
        mask = self.annotation()["mask"]
        image = partial(read_image, self.image)
        return fit_pair(image, lambda orient=True: mask, str(self.image), f"its mask {self.mask}")

    def files(self) -> list[Path]:
        """The files that it is read from."""
        if self.mask.startswith("box:"):
            return [self.image]
        return [self.image, self._labelled()[0]]


def annotated(
    image: Path, file: Path, class_name: str, read: Reader = annotation_file
) -> np.ndarray:
    """The object of an annotation file on a picture, uint8 {0, 1} [H, W]; the screen is told of
    crowds that are left out."""
    mask, crowds = object_on(image, read(file), class_name)
    if crowds:
        tqdm.write(
            f"left out: {crowds} crowd(s) of '{class_name}' on {image}, where {file} has single "
            "objects too",
            file=sys.stderr,
        )
    return mask


def supports_named(words: Sequence[str], read: Reader = annotation_file) -> list[Support]:
    """The supports of ``--support IMAGE MASK [CLASS]``: one, or, without CLASS, one for each class
    that an annotation file has on the picture.

    Raises:
        FewShotError: another number of words, or an annotation file that cannot be read or says
            nothing about the picture.
    """
    if len(words) not in (2, 3):
        raise FewShotError(f"--support takes IMAGE MASK [CLASS], not {' '.join(words)}")
    image, mask = user_path(words[0]), expanded(words[1])
    names = list(words[2:])
    if not names and is_annotation(mask):
        names = read(Path(mask)).classes_on(image)
        if not names:
            raise FewShotError(f"{mask} has no object on {image}")
    return [Support(image, mask, name) for name in names or ["object"]]


def supports_in(path: Path, read: Reader = annotation_file) -> tuple[list[Support], list[str]]:
    """Every support that a folder or an annotation file holds, and sentences on what was left out.

    An annotation file gives a support for each class on each of its pictures that are there. A
    folder with annotation files anywhere below it gives those of all of them; another one holds
    one folder per class (:func:`util.config.folders.class_folders`).

    Raises:
        FewShotError: no such folder or file, nothing annotated, or what cannot be read.
    """
    if is_annotation(path):
        if path.is_file():
            return _of_files([(path, read(path))], [])
        raise FewShotError(f"{path}: there is no such file")
    files, others, left_out = [], [], []
    for file in searched(
        path, wanted=lambda file: is_annotation(file) and not is_hidden(file.name)
    ):
        try:
            files.append((file, read(file)))
        except NoAnnotations:
            others.append(str(file.relative_to(path)))
    if others:
        left_out.append(f"{path}: no annotations: {named(others, 'file')}")
    if not files:
        return _of_folders(path, left_out), left_out
    pictures = list(searched(path))
    found, unseen = _of_files(files, pictures)
    left_out += unseen
    used = {file.resolve() for support in found for file in support.files()}
    if alone := [str(p.relative_to(path)) for p in pictures if p.resolve() not in used]:
        left_out.append(
            f"{path}: left out: {named(alone, 'picture')} in no annotation file; masks beside "
            "annotation files are not read: give their folder by another --supports"
        )
    return found, left_out


def _of_folders(folder: Path, left_out: list[str]) -> list[Support]:
    found = class_folders(folder)
    if found.passed_over:
        left_out.append(f"{folder}: no classes: {', '.join(found.passed_over)}")
    return [
        Support(pair.image, str(pair.mask), name)
        for name, pairs in found.pairs.items()
        for pair in pairs
    ]


def _of_files(
    files: Sequence[tuple[Path, AnnotationFile]], pictures: Sequence[Path]
) -> tuple[list[Support], list[str]]:
    """The supports of annotation files that are about some of the ``pictures``, and sentences on
    what they say of others."""
    found, left_out = [], []
    for path, file in files:
        images = file.annotated(pictures)
        found += [Support(i, str(path), name) for i in images for name in file.classes_on(i)]
        left_out += file.left_out(images)
    if not found:
        raise FewShotError(
            f"{named([str(path) for path, _ in files], 'annotation file')}, but no object on a "
            "picture that is there; --supports takes the folder that holds both"
        )
    return found, left_out


def is_annotation(path: str | Path) -> bool:
    """Whether the name is that of an annotation file."""
    return str(path).lower().endswith(JSON)
