"""Tiles with captions: the panel of an episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.draw.overlays import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    Array,
    draw_outline,
    heat_overlay,
    overlay,
)
from util.runtime.errors import one_line


def iou(prediction: Array, mask: Array) -> float:
    """Intersection over union of ``prediction == 1`` and ``mask == 1`` where ``mask != 255``.

    Both ``[H, W]``. NaN when both are empty.
    """
    prediction, mask = np.asarray(prediction), np.asarray(mask)
    valid = mask != 255
    found, true = (prediction == 1) & valid, (mask == 1) & valid
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else math.nan


@lru_cache(maxsize=8)
def font(points: int, alone: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters that every picture is written with; ``alone``: each drawn for itself, not as its
    neighbours and its script want it.

    DejaVu Sans comes with matplotlib and also writes accented, Greek and Cyrillic class names;
    where that is not installed (requirements-onnx.txt), Pillow's own have to do.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return ImageFont.load_default(points)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    engine = ImageFont.Layout.BASIC if alone else None
    return ImageFont.truetype(str(path), points, layout_engine=engine)


@lru_cache(maxsize=4096)
def _shape(letter: str) -> bytes:
    """What the font draws: the same for every letter that it has not. (By a script's rules, an
    accent that it has not would stand on a circle that it has.)
    """
    return bytes(font(16, alone=True).getmask(letter))


def _drawable(letter: str) -> bool:
    """Whether the font has a shape for a letter."""
    return letter == " " or (any(_shape(letter)) and _shape(letter) != _shape("\uffff"))


def plain(text: object, longest: int = 1000) -> str:
    """``text`` as one line that every picture can show: a name may hold anything.

    Letters that the font has no shape for become their escape (``\\u68a8``), which tells two names
    apart where empty boxes would not; more than ``longest`` letters end in ….
    """
    shown = "".join(c if _drawable(c) else ascii(c)[1:-1] for c in one_line(text)[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _strip(text: str, width: int, height: int, points: int) -> np.ndarray:
    """One line of text on paper ``[height, width, 3]``, shortened with … to fit."""
    letters, text = font(points), plain(text)
    room = width - 8
    if letters.getlength(text) > room:
        while text and letters.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    canvas = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(canvas).text((4, height / 2), text, fill=INK, font=letters, anchor="lm")
    return np.asarray(canvas)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` shrunk or enlarged, undistorted, until its longer side is ``side``."""
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def grid(rows: Sequence[Sequence[tuple[np.ndarray, str]]], title: str, side: int) -> np.ndarray:
    """Rows of (uint8 RGB picture, title) as one picture with a headline; rows may differ in length.

    Args:
        side: side of the square that each picture is fitted into, pixels.
    """
    gap = 6
    columns = max(len(row) for row in rows)
    width = columns * (side + gap) + gap
    bands = [_strip(title, width, 30, 16)]
    for row in rows:
        tiles = [fit(image, side) for image, _ in row]
        band = np.full((22 + max(map(len, tiles)) + gap, width, 3), PAPER, np.uint8)
        for column, (tile, (_, caption)) in enumerate(zip(tiles, row, strict=True)):
            left = gap + column * (side + gap)
            band[:22, left : left + side] = _strip(caption, side, 22, 12)
            left += (side - tile.shape[1]) // 2
            band[22 : 22 + tile.shape[0], left : left + tile.shape[1]] = tile
        bands.append(band)
    return np.concatenate(bands)


def panel(
    support_images: Sequence[Array],
    support_masks: Sequence[Array],
    query_image: Array,
    query_mask: Array | None,
    prediction: Array,
    prior: Array | None = None,
    correlations: Sequence[Array] | None = None,
    *,
    class_name: str = "",
    title: str = "",
    side: int = 240,
    max_supports: int = 5,
) -> np.ndarray:
    """One episode at a glance.

    Upper row: the supports with their masks (orange), the query with the ground truth (green), the
    query with the prediction (blue; the line is the ground truth) and its IoU. Lower row: the prior
    and the correlation map of each stage over the query.

    Args:
        support_images: K pictures, RGB uint8 ``[H, W, 3]``; they may differ in size.
        support_masks: K masks ``[H, W]`` of their sizes: 1 object, 0 rest, 255 ignored.
        query_image: a picture; ``query_mask`` (or None where no ground truth is known) and
            ``prediction`` are ``[H, W]`` of its size, 1 = object.
        prior: ``[h, w]`` or ``[C, h, w]`` (channels are averaged), any range, or None.
        correlations: one ``[h_l, w_l]`` a stage, finest first, any range, or None.
        class_name: what the episode looks for; part of the headline.
        title: further words for the headline.
        side: side of one tile in pixels.
        max_supports: more supports than this are counted, not shown.
    Returns:
        uint8 RGB ``[H', W', 3]``.
    """
    query = np.asarray(query_image)
    supports = list(zip(support_images, support_masks, strict=True))
    shown = [overlay(image, mask, ORANGE) for image, mask in supports[:max_supports]]
    upper = [(tile, f"support {i + 1} of {len(supports)}") for i, tile in enumerate(shown)]
    predicted = overlay(query, prediction, BLUE)
    score = ""
    if query_mask is not None:
        upper.append((overlay(query, query_mask, GREEN), "query, ground truth"))
        predicted = draw_outline(predicted, query_mask, GREEN)
        value = iou(prediction, query_mask)
        score = "IoU undefined (no object)" if math.isnan(value) else f"IoU {value:.3f}"
    else:
        upper.append((query, "query"))
    upper.append((predicted, f"prediction  {score}".rstrip()))
    lower = []
    if prior is not None:
        values = np.asarray(prior)
        values = values.mean(axis=0) if values.ndim == 3 else values
        lower.append((heat_overlay(query, values), "prior"))
    for stage, values in enumerate(correlations or (), start=1):
        values = np.asarray(values)
        caption = f"correlation, stage {stage} ({values.shape[0]}×{values.shape[1]})"
        lower.append((heat_overlay(query, values), caption))
    headline = "  ·  ".join(part for part in (class_name, score, title) if part)
    return grid([upper, lower] if lower else [upper], headline, side)
