"""Masks, labels and maps over a picture.

Every function takes numpy arrays, or what numpy reads as one, and returns a new uint8 RGB array
``[H, W, 3]``; nothing is drawn in place.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

Array = Any  # numpy array, or a tensor in host memory
Colour = tuple[int, int, int]

ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 158, 115)
BLUE: Colour = (0, 114, 178)
PALETTE: tuple[Colour, ...] = (
    BLUE,
    ORANGE,
    GREEN,
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
)
PAPER: Colour = (250, 250, 250)
INK: Colour = (25, 25, 25)
IGNORE_GREY: Colour = (190, 190, 190)


def class_colour(number: int) -> Colour:
    """Colour of the class with 1-based ``number``; the seven colours repeat."""
    return PALETTE[(number - 1) % len(PALETTE)]


def label_palette() -> list[int]:
    """768 palette bytes for label PNGs: 0 black, 1.. :func:`class_colour`, 255 light grey."""
    colours = [(0, 0, 0), *(class_colour(i) for i in range(1, 255)), IGNORE_GREY]
    return [channel for colour in colours for channel in colour]


def _picture(image: Array) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is RGB uint8 [H, W, 3], not {image.dtype} {image.shape}")
    return image


def overlay(
    image: Array, mask: Array, colour: Colour = ORANGE, alpha: float = 0.5, outline: bool = True
) -> np.ndarray:
    """``image`` with the pixels where ``mask == 1`` tinted and outlined; 255 (ignored) goes grey.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        mask: ``[H, W]`` with 1 or True = object, 0 = rest, 255 = ignored.
        colour: RGB, 0..255.
        alpha: strength of the tint, 0 (none) to 1 (opaque).
        outline: draw a solid line around the object, so that thin parts stay visible.
    Raises:
        ValueError: when mask and image differ in size.
    """
    canvas = _picture(image).copy()
    mask = np.asarray(mask)
    _tint(canvas, mask == 255, IGNORE_GREY, alpha)
    _tint(canvas, mask == 1, colour, alpha)
    if outline:
        _outline(canvas, mask == 1, colour)
    return canvas


def draw_outline(image: Array, mask: Array, colour: Colour) -> np.ndarray:
    """``image`` with the border of ``mask == 1`` as a coloured line with a thin white rim."""
    canvas = _picture(image).copy()
    _outline(canvas, np.asarray(mask) == 1, colour)
    return canvas


def label_overlay(image: Array, labels: Array, alpha: float = 0.5) -> np.ndarray:
    """``image`` with every class of a label map ``[H, W]`` (0 background, 1.. classes) tinted."""
    labels = np.asarray(labels)
    canvas = _picture(image).copy()
    for number in np.unique(labels):
        if 0 < number < 255:
            _tint(canvas, labels == number, class_colour(int(number)), alpha)
            _outline(canvas, labels == number, class_colour(int(number)))
    return canvas


def _tint(canvas: np.ndarray, where: np.ndarray, colour: Colour, alpha: float) -> None:
    """Blend ``colour`` into ``canvas`` where the bool ``[H, W]`` says so, in place."""
    if where.shape != canvas.shape[:2]:
        raise ValueError(f"mask {where.shape} and image {canvas.shape[:2]} differ in size")
    if where.any():
        # A byte has 256 values: one table a channel, no float picture.
        blend = np.arange(256)[:, None] * (1 - alpha) + np.asarray(colour) * alpha
        tinted = cv2.LUT(canvas, np.rint(blend).astype(np.uint8)[None])
        cv2.copyTo(tinted, where.astype(np.uint8), canvas)


def _outline(canvas: np.ndarray, where: np.ndarray, colour: Colour) -> None:
    """Draw the border of the bool ``[H, W]`` into ``canvas``, in place."""
    contours, _ = cv2.findContours(
        where.astype(np.uint8, order="C"), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    width = max(1, round(max(where.shape) / 160))
    for line, thickness in (((255, 255, 255), width + 2), (colour, width)):
        cv2.drawContours(canvas, contours, -1, line, thickness)


def heatmap(map: Array, size: tuple[int, int]) -> np.ndarray:
    """A map ``[h, w]`` (any range) as colours, dark blue = least to yellow = most, at ``size``.

    The map is stretched to its own least and greatest finite value; a flat map is one colour
    (the middle), and values that are not finite count as the least. Resized bilinearly.

    Args:
        map: ``[h, w]`` float.
        size: (height, width) of the result.
    """
    values = np.asarray(map).astype(np.float32)
    if values.ndim != 2:
        raise ValueError(f"a heat map needs shape [h, w], not {values.shape}")
    finite = np.isfinite(values)
    least, most = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    values = np.where(finite, values, least)
    spread = float(most) - float(least)
    stretched = (values - least) / spread if spread > 0 else np.full_like(values, 0.5)
    stretched = cv2.resize(stretched, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    levels = np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def heat_overlay(image: Array, map: Array, alpha: float = 0.65) -> np.ndarray:
    """:func:`heatmap` of ``map`` over the greyscale ``image``, at the image's size."""
    grey = cv2.cvtColor(_picture(image), cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    heat = heatmap(map, grey.shape[:2]).astype(np.float32)
    return np.rint(grey * (1 - alpha) + heat * alpha).astype(np.uint8)
