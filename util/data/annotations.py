"""Annotation files of either kind, COCO's and labelme's, told apart by what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from util.data.coco import CocoFile, read_json
from util.data.labelme import LabelmeFile
from util.data.reading import LYING, picture_size
from util.runtime.errors import FewShotError

AnnotationFile = CocoFile | LabelmeFile


class NoAnnotations(FewShotError):
    """JSON of another program."""


def annotation_file(path: Path) -> AnnotationFile:
    """Read an annotation file whole.

    Raises:
        NoAnnotations: it is JSON of neither kind.
        FewShotError: it cannot be read, or is damaged.
    """
    content = read_json(path)
    if isinstance(content, dict):
        if "shapes" in content:
            return LabelmeFile(path, content)
        if "images" in content or "annotations" in content:
            return CocoFile(path, content)
    raise NoAnnotations(
        f"{path} is not an annotation file: neither labelme's (shapes) nor COCO's (images, "
        "annotations)"
    )


def object_on(image: Path, annotations: AnnotationFile, class_name: str) -> tuple[np.ndarray, int]:
    """The object of a class on a picture: uint8 {0, 1} of its size, and how many crowds were left
    out of it.

    The size is that of the picture as it is shown, or of its stored pixels where the annotations
    fit these alone.

    Raises:
        FewShotError: no such picture, class or object, or annotations that do not fit.
    """
    stored, orientation = picture_size(image)
    sizes = [stored[::-1], stored] if orientation in LYING else [stored]
    return annotations.support_mask(image, class_name, sizes)
