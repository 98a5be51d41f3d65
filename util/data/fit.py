"""A picture with any number of masks at the size that the network sees: arrays alone.

Pictures are uint8 RGB [H, W, 3], masks uint8 [H, W]. PyTorch is not needed here, see
:mod:`util.data.transform` for what makes tensors of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from util.config import Config
from util.data.masks import IGNORE

# ImageNet mean and standard deviation, RGB, for values 0..255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# The loader's processes are the parallelism; threads of OpenCV in each would fight over the cores.
cv2.setNumThreads(0)


def object_mask(mask: np.ndarray, label: int, ann_type: str = "mask") -> np.ndarray:
    """uint8 [H, W] of mask values -> uint8: 1 where ``label``, 255 where ignored, 0 elsewhere.

    ann_type ``bbox``: every connected part of the object grows to its bounding box (the weak
    supports of the published code); ignored pixels stay ignored.
    """
    table = np.zeros(256, np.uint8)
    table[label], table[IGNORE] = 1, IGNORE
    result = cv2.LUT(mask, table)
    if ann_type == "bbox":
        ignored = result == IGNORE
        parts = cv2.connectedComponentsWithStats((result == 1).astype(np.uint8))[2][1:]
        for x, y, width, height, _ in parts:
            result[y : y + height, x : x + width] = 1
        result[ignored] = IGNORE
    return result


def resize(arrays: Sequence[np.ndarray], height: int, width: int) -> list[np.ndarray]:
    """Bilinear for the picture, nearest for masks, as in the published code."""
    return [
        array
        if array.shape[:2] == (height, width)
        else cv2.resize(
            array,
            (width, height),
            interpolation=cv2.INTER_NEAREST if array.ndim == 2 else cv2.INTER_LINEAR,
        )
        for array in arrays
    ]


@dataclass(frozen=True)
class ValTransform:
    """A picture and its masks at the network's evaluation size, ``size`` x ``size``.

    stretch (``resized_val: True``): a plain resize. Otherwise the longer side becomes ``size``,
    both sides are floored to multiples of 8, and the rest, right and below, is filled: black in
    the picture, 255 in masks.
    """

    size: int
    stretch: bool

    def content(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the part of the square that shows a picture of the given size."""
        if self.stretch:
            return self.size, self.size
        longer = max(height, width)
        return tuple(max(8, side * self.size // longer // 8 * 8) for side in (height, width))

    def __call__(self, image: np.ndarray, *masks: np.ndarray) -> list[np.ndarray]:
        height, width = self.content(*image.shape[:2])
        arrays = resize([image, *masks], height, width)
        if self.stretch:
            return arrays
        sides = 0, self.size - height, 0, self.size - width
        return [
            cv2.copyMakeBorder(
                array, *sides, cv2.BORDER_CONSTANT, value=IGNORE if array.ndim == 2 else 0
            )
            for array in arrays
        ]


def val_transform(cfg: Config) -> ValTransform:
    """Evaluation: ``val_size`` squared, stretched or padded as ``resized_val`` says."""
    return ValTransform(cfg.val_size, cfg.resized_val)
