"""Which colour is which class, written into a picture."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw

from util.draw.overlays import INK, PAPER, Array, Colour
from util.draw.panels import font, plain

LEAST_SIDE = 160  # pixels; a legend would hide a smaller picture


def with_legend(picture: Array, entries: Mapping[str, Colour], labels: Array) -> np.ndarray:
    """``picture`` with a box that names its colours, in the corner that hides least of ``labels``.

    Args:
        picture: uint8 RGB [H, W, 3]; returned as it is where its longer side is under 160 pixels.
        entries: name -> colour.
        labels: [H, W], 0 = background.
    Returns:
        uint8 RGB [H, W, 3], a copy.
    """
    canvas = np.array(picture)
    height, width = canvas.shape[:2]
    if not entries or max(height, width) < LEAST_SIDE:
        return canvas
    points = max(10, round(max(height, width) / 45))
    box, edge = _box(entries, points, height // 2, width - 4 * points), points // 2
    rows, columns = box.shape[:2]
    if rows > height - 2 * edge or columns > width - 2 * edge:
        return canvas
    corners = [(y, x) for y in (edge, height - rows - edge) for x in (edge, width - columns - edge)]
    labels = np.asarray(labels)

    def hidden(corner: tuple[int, int]) -> int:
        y, x = corner
        return cv2.countNonZero(np.ascontiguousarray(labels[y : y + rows, x : x + columns]))

    y, x = min(corners, key=hidden)
    canvas[y : y + rows, x : x + columns] = box
    return canvas


def _box(entries: Mapping[str, Colour], points: int, height: int, width: int) -> np.ndarray:
    """A square of each colour and its name, one a line, on paper of that size at most."""
    letters, line, edge = font(points), round(points * 1.5), points // 2
    lines = [(plain(name, 24), colour) for name, colour in entries.items()]
    room = max(1, (height - edge) // line)
    if len(lines) > room:
        lines[room - 1 :] = [(f"{len(lines) - room + 1} more", PAPER)]
    longest = max(letters.getlength(name) for name, _ in lines)
    width = round(min(longest + 2.5 * points, max(width, 3 * points)))
    canvas = Image.new("RGB", (width, line * len(lines) + edge), PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, (name, colour) in enumerate(lines):
        top = row * line + edge
        draw.rectangle((edge, top, edge + points, top + points), colour)
        draw.text((2 * points, top + points / 2), name, fill=INK, font=letters, anchor="lm")
    return np.asarray(canvas)
