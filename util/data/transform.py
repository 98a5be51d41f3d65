"""One pipeline for a picture with any number of masks.

Pictures are uint8 RGB [H, W, 3], masks uint8 [H, W]. Geometry happens on bytes, a quarter of the
memory of float32; :func:`normalise` makes floats at the end.
Every random step takes a numpy generator, so that a sample depends on its seed and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from util.config import Config
from util.data import fit
from util.data.fit import MEAN, STD, resize, val_transform  # noqa: F401 - one door to both
from util.data.masks import IGNORE
from util.data.reading import read_image, read_mask, read_pair  # noqa: F401 - one door to both

CROP_TRIES = 31  # how often the published code looks for a crop that keeps the object
CROP_KEEPS = 0.85

Step = Callable[[np.random.Generator, list[np.ndarray]], list[np.ndarray]]
"""Takes [image, mask, ...] and returns them changed, all in the same way."""


def normalise(image: np.ndarray) -> Tensor:
    """uint8 RGB [H, W, 3] -> float32 [3, H, W] with the mean and deviation of ImageNet."""
    return normalise_batch(planes(image))


def planes(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 tensor [3, H, W] (cv2.split beats a strided copy)."""
    return torch.from_numpy(np.stack(cv2.split(image)))


def normalise_batch(images: Tensor) -> Tensor:
    """uint8 RGB [..., 3, H, W] -> float32 of that shape, on the tensor's device."""
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean).div_(std)


def precise(values: Tensor) -> Tensor:
    """Floating-point values in float32 at least."""
    return values if values.dtype == torch.float64 else values.float()


def restore(logits: Tensor, content: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits [B, C, S, S] at evaluation size -> [B, C, H, W] at a picture's own size.

    content: :meth:`ValTransform.content` of that size; what lies beyond is padding. Bilinear with
    aligned corners, in float32 at least.
    """
    logits = precise(logits)
    logits = logits[..., : content[0], : content[1]]
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


# ---------------------------------------------------------------------------- masks


MaskLike = TypeVar("MaskLike", np.ndarray, Tensor)


def object_mask(mask: MaskLike, label: int, ann_type: str = "mask") -> MaskLike:
    """uint8 [H, W] of mask values -> uint8: 1 where ``label``, 255 where ignored, 0 elsewhere.

    Arrays give arrays, tensors tensors on their device. ann_type ``bbox``: every connected part of
    the object grows to its bounding box (the weak supports of the published code); ignored pixels
    stay ignored.
    """
    if isinstance(mask, Tensor):
        if ann_type == "bbox":
            boxed = object_mask(mask.cpu().numpy(), label, ann_type)
            return torch.from_numpy(boxed).to(mask.device)
        return (mask == label).to(torch.uint8).masked_fill_(mask == IGNORE, IGNORE)
    return fit.object_mask(mask, label, ann_type)


# ---------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Transform:
    """Random steps in a row: ``transform(rng, image, *masks) -> [image, *masks]``."""

    steps: tuple[Step, ...]

    def __call__(
        self, rng: np.random.Generator, image: np.ndarray, *masks: np.ndarray
    ) -> list[np.ndarray]:
        arrays = [image, *masks]
        for step in self.steps:
            arrays = step(rng, arrays)
        return arrays


@dataclass(frozen=True)
class Scale:
    """Resize by one random factor."""

    low: float
    high: float

    def __call__(self, rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
        factor = rng.uniform(self.low, self.high)
        if factor == 1:
            return arrays
        height, width = arrays[0].shape[:2]
        return resize(arrays, max(1, round(height * factor)), max(1, round(width * factor)))


@dataclass(frozen=True)
class Rotate:
    """Half of the time, turn about the centre; what comes in from outside is mean and padding."""

    low: float
    high: float
    padding: int

    def __call__(self, rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
        turned, angle = rng.random() < 0.5, rng.uniform(self.low, self.high)
        if not turned or angle == 0:
            return arrays
        height, width = arrays[0].shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        return [
            cv2.warpAffine(
                array,
                matrix,
                (width, height),
                flags=cv2.INTER_NEAREST if array.ndim == 2 else cv2.INTER_LINEAR,
                borderValue=_border(array, self.padding),
            )
            for array in arrays
        ]


def blur(rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Half of the time, a Gaussian blur of 5 pixels on the picture."""
    if rng.random() < 0.5:
        arrays = [cv2.GaussianBlur(arrays[0], (5, 5), 0), *arrays[1:]]
    return arrays


def flip(rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Half of the time, left and right swapped."""
    return [cv2.flip(array, 1) for array in arrays] if rng.random() < 0.5 else arrays


@dataclass(frozen=True)
class Resize:
    """A plain resize, whatever the aspect ratio."""

    height: int
    width: int

    def __call__(self, rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return resize(arrays, self.height, self.width)


@dataclass(frozen=True)
class Crop:
    """A random crop, padded where the picture is smaller, that keeps most of the object.

    The object is every labelled pixel (1..254) of the first mask. The first of 31 random places
    that holds 0.85 of it is taken, or the best of them.
    """

    height: int
    width: int
    padding: int

    def __call__(self, rng: np.random.Generator, arrays: list[np.ndarray]) -> list[np.ndarray]:
        height, width = arrays[0].shape[:2]
        down, right = max(0, self.height - height), max(0, self.width - width)
        if down or right:
            sides = down // 2, down - down // 2, right // 2, right - right // 2
            arrays = [
                cv2.copyMakeBorder(
                    array, *sides, cv2.BORDER_CONSTANT, value=_border(array, self.padding)
                )
                for array in arrays
            ]
            height, width = arrays[0].shape[:2]
        tops = rng.integers(0, height - self.height + 1, CROP_TRIES)
        lefts = rng.integers(0, width - self.width + 1, CROP_TRIES)
        area = cv2.integral(((arrays[1] > 0) & (arrays[1] < IGNORE)).astype(np.uint8))
        bottoms, rights = tops + self.height, lefts + self.width
        held = area[bottoms, rights] - area[tops, rights] - area[bottoms, lefts] + area[tops, lefts]
        enough = held >= CROP_KEEPS * area[-1, -1]
        best = int(enough.argmax() if enough.any() else held.argmax())
        top, left = tops[best], lefts[best]
        return [array[top : top + self.height, left : left + self.width] for array in arrays]


def train_transform(cfg: Config) -> Transform:
    """Episodes: scale, rotation, blur, flip, then a plain resize to train_h x train_w."""
    resize = Resize(cfg.train_h, cfg.train_w)
    return Transform((*_augment(cfg), resize) if cfg.augment else (resize,))


def base_train_transform(cfg: Config) -> Transform:
    """Stage 1: scale, rotation, blur, flip, then a random crop of train_h x train_w."""
    crop = Crop(cfg.train_h, cfg.train_w, cfg.padding_label)
    return Transform((*_augment(cfg), crop) if cfg.augment else (Resize(cfg.train_h, cfg.train_w),))


def _augment(cfg: Config) -> tuple[Step, ...]:
    steps = (
        Scale(cfg.scale_min, cfg.scale_max),
        Rotate(cfg.rotate_min, cfg.rotate_max, cfg.padding_label),
    )
    return (*steps, blur, flip) if cfg.blur else (*steps, flip)


def _border(array: np.ndarray, padding: int) -> tuple[int, ...]:
    return (padding,) if array.ndim == 2 else tuple(round(value) for value in MEAN)
