"""Pictures as files, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.draw.overlays import label_palette
from util.draw.panels import fit
from util.runtime.files import write_atomically

JPEG_SIDE = 65_500


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write a uint8 RGB ``[H, W, 3]`` or single-channel ``[H, W]`` array as PNG; makes the folder.

    Raises:
        FewShotError: when the file cannot be written.
    """
    return _write(
        path, Image.fromarray(np.ascontiguousarray(image)), format="PNG", compress_level=2
    )


def write_labels(path: str | Path, labels: np.ndarray) -> Path:
    """Write a label map uint8 ``[H, W]`` as a palette PNG: indices are the labels. As write_png."""
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8))
    image.putpalette(label_palette())
    return _write(path, image, format="PNG", compress_level=2)


def write_jpeg(path: str | Path, image: np.ndarray) -> Path:
    """Write a uint8 RGB ``[H, W, 3]`` array as JPEG, shrunk to the 65,500 pixels a side that the
    format can hold; otherwise as :func:`write_png`."""
    image = image if max(image.shape[:2]) <= JPEG_SIDE else fit(image, JPEG_SIDE)
    return _write(path, Image.fromarray(np.ascontiguousarray(image)), format="JPEG", quality=92)


def _write(path: str | Path, image: Image.Image, **options: Any) -> Path:
    content = io.BytesIO()
    image.save(content, **options)
    write_atomically(Path(path), content.getvalue(), durable=False)
    return Path(path)
