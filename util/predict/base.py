"""What every predictor offers, whatever computes its answers: supports, classes, pictures.

No torch is imported here: :mod:`util.predict.onnx` predicts without it.
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from util.config.folders import composed
from util.data.annotations import annotation_file
from util.data.fit import ValTransform, object_mask
from util.data.held import object_in, pixels_of, source_of
from util.data.reading import fit_pair
from util.data.shapes import box_mask, polygon_mask
from util.predict.supports import annotated, is_annotation, supports_in
from util.runtime.errors import FewShotError

if TYPE_CHECKING:
    from torch import Tensor

    Picture = np.ndarray | Tensor | Image.Image | str | bytes | os.PathLike

MAX_CLASSES = 254  # 0 is background and 255 means ignored
Form = TypeVar("Form", bound="Predictor")


class Prediction(NamedTuple):
    """What the model sees in one picture of H × W pixels, with C classes.

    mask: uint8 [H, W], 0 = background, i = ``classes[i - 1]``.
    probabilities: float32 [1 + C, H, W], background first; they sum to 1 at every pixel. Moved by
        ``object_above``, so that the decision is at 0.5; multiplied by a class's presence where
        presence is asked (:func:`~model.presence.given_presence`).
    classes: the C class names.
    priors: class -> float32 [2, h, w] in [-1, 1] over the picture; empty for models without one.
    correlations: class -> one float32 [h_l, w_l] over the picture a stage, finest first.
    presence: class -> how likely the picture shows it, 0 to 1; empty for models that cannot tell.
    absent: the classes not found, whose presence is below the threshold; none is in the mask.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    priors: dict[str, np.ndarray]
    correlations: dict[str, list[np.ndarray]]
    presence: Mapping[str, float] = MappingProxyType({})
    absent: tuple[str, ...] = ()

    @property
    def not_found(self) -> tuple[int, ...]:
        """The labels of the absent classes."""
        return tuple(self.classes.index(name) + 1 for name in self.absent)


class Predictor:
    """Annotated pictures of classes, encoded once each, and pictures to find these classes on.

    Args:
        fit: pictures and masks at the network's input size.
        ann_type: 'mask', or 'bbox' to take masks as their bounding boxes.
        output: 'final', or 'meta' for the prediction without the base learner.
    """

    def __init__(self, fit: ValTransform, ann_type: str, output: str) -> None:
        if output not in ("final", "meta"):
            raise FewShotError(f"output is 'final' or 'meta', not '{output}'")
        self.output = output
        self._fit = fit
        self._ann_type = ann_type
        self._supports: dict[str, list[Any]] = {}

    def predict(self, image: Picture) -> Prediction:
        """Segment one picture with all classes at once."""
        raise TypeError(f"{type(self).__name__} must define predict")

    def _encode(self, image: np.ndarray, mask: np.ndarray) -> Any:
        """What matching needs of a support, uint8 [S, S, 3] and [S, S] (1 object, 0, 255)."""
        raise TypeError(f"{type(self).__name__} must define _encode")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their first support: label i is classes[i - 1]."""
        return tuple(self._supports)

    @property
    def shots(self) -> dict[str, int]:
        """Number of supports of each class."""
        return {name: len(supports) for name, supports in self._supports.items()}

    def add_support(
        self,
        image: Picture,
        mask: Picture | None = None,
        class_name: str = "object",
        *,
        label: int | None = None,
        box: Sequence[float] | None = None,
        polygons: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add one annotated picture of a class; it is encoded now and never again.

        Args:
            image: uint8 RGB, RGBA or grey [H, W, 3 | 4] or [H, W], a tensor of such or [3, H, W],
                a Pillow image, or the path of a picture (EXIF rotation is applied).
            mask: bool or whole numbers [H, W] (see :func:`binary_mask` for the values), a tensor
                or Pillow image of such, or the path of a mask or of labelme's or COCO's JSON.
            class_name: the class; classes are numbered in the order of their first support.
            label: which value of a labelled mask is the object, a whole number.
            box: instead of a mask, (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
            polygons: instead of a mask, COCO-style polygons, each ``[x1, y1, x2, y2, ...]``.
        Raises:
            FewShotError: another type than these, unreadable file, sizes that differ, no object,
                or an object too small to be left at the network's input size.
        """
        if sum(given is not None for given in (mask, box, polygons)) != 1:
            raise FewShotError("a support needs exactly one of mask, box and polygons")
        if not isinstance(class_name, str) or not class_name.strip():
            raise FewShotError(f"a class name is text that is not empty, not {class_name!r:.40}")
        class_name = composed(class_name)
        if len(self._supports) == MAX_CLASSES and class_name not in self._supports:
            raise FewShotError(f"more than {MAX_CLASSES} classes do not fit a mask of bytes")
        label = _label(label, mask)
        image = source_of(image, "a picture")
        named = f"'{image}'" if isinstance(image, Path) else None
        what = f"support {named}" if named else f"a support of class '{class_name}'"
        if mask is not None:
            mask = source_of(mask, f"the mask of {what}")
            if isinstance(mask, Path) and is_annotation(mask):
                if not isinstance(image, Path) or label is not None:
                    raise FewShotError(f"{mask} goes with the path of its picture, and no label")
                mask = annotated(image, mask, class_name)
            name = f"mask '{mask}'" if isinstance(mask, Path) else f"the mask of {what}"
            pixels, annotation = fit_pair(
                partial(pixels_of, image), partial(object_in, mask, label, name), what, name
            )
        else:
            pixels = pixels_of(image)
            size = pixels.shape[:2]
            try:
                if box is not None:
                    annotation = box_mask(size, box)
                elif polygons is not None:
                    annotation = polygon_mask(size, polygons)
            except FewShotError as error:
                raise FewShotError(f"{what}: {error}") from error
        small = self._fit(pixels, annotation)
        if not (small[1] == 1).any():
            raise FewShotError(
                f"{what}: the object ({int((annotation == 1).sum())} pixels) vanishes at the "
                f"network's input size of {self._fit.size}; crop the picture around it"
            )
        encoding = self._encode(small[0], object_mask(small[1], 1, self._ann_type))
        self._supports.setdefault(class_name, []).append(encoding)

    def add_supports(self, path: str | Path) -> list[str]:
        """Add all that a folder, or an annotation file of labelme or COCO, holds.

        Returns:
            Sentences on what was left out, see :func:`util.predict.supports.supports_in`.
        """
        read = cache(annotation_file)
        if not isinstance(path, str | bytes | os.PathLike):
            raise FewShotError(f"supports are a folder or a file, not {type(path).__name__}")
        found, left_out = supports_in(Path(os.fsdecode(path)), read)
        for support in found:
            annotation = support.annotation(read)
            self.add_support(support.image, class_name=support.class_name, **annotation)
        return left_out

    def remove_support(self, class_name: str) -> None:
        """Forget the last support of a class; with its only one goes the class."""
        if class_name in self.classes and self.shots[class_name] > 1:
            self._supports[class_name].pop()
        else:
            self.remove_class(class_name)

    def remove_class(self, class_name: str) -> None:
        """Forget a class and its supports; the classes after it move up by one label."""
        if class_name not in self.classes:
            raise FewShotError(f"no class '{class_name}'; there are: {', '.join(self.classes)}")
        del self._supports[class_name]

    def reset(self) -> None:
        """Forget every support."""
        self._supports.clear()

    def without_supports(self: Form) -> Form:
        """Another predictor with the same model (shared, not copied) and no supports yet."""
        other = copy.copy(self)
        other._supports = {}
        return other

    def _queried(self, image: Picture) -> np.ndarray:
        """The pixels of a picture to predict, uint8 RGB [H, W, 3]."""
        if not self._supports:
            raise FewShotError("no support yet: call add_support before predict")
        return pixels_of(source_of(image, "a picture"))

    def _on_picture(self, values: np.ndarray, content: tuple[int, int]) -> np.ndarray:
        """A map [..., h, w] over the network's input without the part that shows padding."""
        kept = [
            math.ceil(length * part / self._fit.size)
            for length, part in zip(values.shape[-2:], content, strict=True)
        ]
        return values[..., : kept[0], : kept[1]]


def not_finite(class_name: str) -> FewShotError:
    """What is said when a network's output for a class is no number."""
    return FewShotError(
        f"the model's output for class '{class_name}' is not finite; the weights are damaged, or "
        "amp: fp16 overflows"
    )


def _label(label: Any, mask: Any) -> int | None:
    """The value of a labelled mask that the caller asks for, checked."""
    if label is None:
        return None
    if mask is None:
        raise FewShotError("label says which value of a mask is the object; there is no mask")
    try:
        return operator.index(label)
    except TypeError as error:
        raise FewShotError(f"label is a whole number, not {label!r:.40}") from error
