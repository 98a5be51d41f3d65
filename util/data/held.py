"""Pictures and masks as people hold them in Python: paths, Pillow images, arrays, tensors.

One rule whatever holds them: a Pillow image is read as the file that it came from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.data.masks import binary_mask
from util.data.reading import decoding, image_of, mask_of, read_image, read_mask
from util.runtime.errors import FewShotError

Source = Path | Image.Image | np.ndarray


def source_of(value: Any, what: str) -> Source:
    """A picture or a mask as people hold it: a path (text, bytes or an object that stands for
    one), a Pillow image, or an array; tensors and nested lists become arrays of numbers.

    A tensor [C, H, W] with C = 1, 3 or 4 becomes an array [H, W, C]. Raises :class:`FewShotError`
    for anything else; ``what`` is how the message calls it.
    """
    if isinstance(value, bytes) and b"\0" in value:
        raise FewShotError(f"{what} is a path, not the bytes of a file: decode them first")
    if isinstance(value, str | bytes | os.PathLike):
        return Path(os.fsdecode(value))
    if isinstance(value, Image.Image):
        return value
    tensor = hasattr(value, "detach") and hasattr(value, "cpu")  # a stream can be detached too
    try:
        array = value.detach().cpu().numpy() if tensor else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FewShotError(f"{what} cannot be made an array ({error!s:.100})") from error
    if array.dtype.kind not in "biuf":
        raise FewShotError(
            f"{what} is a path, a Pillow image, an array or a tensor, not {type(value).__name__}"
        )
    if tensor and array.ndim == 3 and array.shape[0] in (1, 3, 4):
        if array.shape[2] in (1, 3, 4):
            raise FewShotError(f"{what} {array.shape}: its first or its last size may be colours")
        array = array.transpose(1, 2, 0)
    return np.ascontiguousarray(array)


def pixels_of(picture: Source, orient: bool = True) -> np.ndarray:
    """A picture as uint8 RGB [H, W, 3]; arrays are uint8 grey [H, W] or [H, W, 1], RGB or RGBA.

    An alpha channel is left out. For files and Pillow images see
    :func:`~util.data.reading.read_image`.
    """
    if isinstance(picture, Path):
        return read_image(picture, orient)
    if isinstance(picture, Image.Image):
        with decoding("the Pillow image", "picture"):
            return image_of(picture, "the Pillow image", orient)
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise FewShotError(
            f"a picture is RGB uint8 [H, W, 3] with values 0..255, not {picture.dtype} "
            f"{picture.shape}"
        )
    if not pixels.size:
        raise FewShotError(f"a picture of {picture.shape} has no pixels")
    channels = [0, 0, 0] if pixels.shape[2] == 1 else [0, 1, 2]
    return np.ascontiguousarray(pixels[..., channels]) if pixels.shape[2] != 3 else pixels


def object_in(mask: Source, label: int | None, name: str, orient: bool = True) -> np.ndarray:
    """A mask as uint8 [H, W]: 1 = object, 0 = rest, 255 = ignored.

    Args:
        label: the object is what has this value; None: see :mod:`util.data.masks`.
        name: how error messages call the mask.
        orient: turn a file or a Pillow image upright as its EXIF tag says.
    Raises:
        FewShotError: unreadable, of several meanings, or without the object.
    """
    if isinstance(mask, np.ndarray):
        return binary_mask(mask, label, name)
    if isinstance(mask, Path):
        found = read_mask(mask, label is None, label, orient)
    else:
        with decoding(name, "mask"):
            found = mask_of(mask, name, label is None, label, orient)
    if not (found == 1).any():
        chosen = "" if label is None else f" (label {label})"
        raise FewShotError(f"{name} has no object pixel{chosen}")
    return found
