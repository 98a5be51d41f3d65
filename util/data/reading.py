"""Reading pictures and masks from files as people save them.

Pictures are uint8 RGB [H, W, 3], masks uint8 [H, W].
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from util.errors import FewShotError

IGNORE = 255

_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def binary_mask(mask: np.ndarray, label: int | None = None, name: str = "the mask") -> np.ndarray:
    """A mask as people save it -> uint8 [H, W] with 1 = object, 0 = rest, 255 = ignored.

    Args:
        mask: bool or integer [H, W]. With ``label``, pixels of that value are the object and 255 is
            ignored. Without, the mask must be binary: False/True, 0/1 (and 255 = ignored), or
            0/255 as drawing programs save it, where 255 is the object.
        name: how error messages call the mask.
    Raises:
        FewShotError: wrong shape or type, several labels and none chosen, or no object.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
        raise FewShotError(
            f"{name} must hold whole numbers in two dimensions, not {mask.dtype} {mask.shape}"
        )
    values = np.unique(mask)
    if label is None:
        if not np.isin(values, (0, 1, 255)).all():
            shown = ", ".join(str(value) for value in values[:6])
            raise FewShotError(
                f"{name} holds several labels ({shown}{', …' if values.size > 6 else ''}); "
                "say which one is the object (label=...)"
            )
        label = 1 if 1 in values else 255
    result = (mask == label).astype(np.uint8)
    if label != 255:
        result[mask == 255] = 255
    if not (result == 1).any():
        found = ", ".join(str(value) for value in values[:6])
        raise FewShotError(f"{name} has no object pixel (label {label}; the mask holds {found})")
    return result


def read_image(path: str | Path, orient: bool = True) -> np.ndarray:
    """Read a picture as uint8 RGB [H, W, 3]; greyscale, palette and CMYK pictures are converted.

    orient: turn the picture upright as its EXIF tag says. Raises :class:`FewShotError` naming the
    file when it is missing, truncated, no picture, or has 16 bits a channel.
    """
    data = _read_bytes(path, "picture")
    # OpenCV is faster but fills a truncated JPEG up with grey. One whose last scan has an end is
    # whole; all other files go to Pillow, which reads them or says what is wrong.
    if data[:2] == _JPEG and data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN):
        flags = cv2.IMREAD_COLOR | (0 if orient else cv2.IMREAD_IGNORE_ORIENTATION)
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if pixels is not None:
                return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise FewShotError(f"{path}: the picture has more than 8 bits a channel")
            image = ImageOps.exif_transpose(image) if orient else image
            return np.array(image.convert("RGB"))
    except _DECODE_ERRORS as error:
        raise FewShotError(f"{path}: the picture cannot be read ({_reason(error)})") from error


def read_mask(path: str | Path, binary: bool = False) -> np.ndarray:
    """Read a mask as uint8 [H, W]: the values of a greyscale file, the indices of a palette file.

    binary: the mask shows one object; the result is 1 there and 0 elsewhere, whether the file
    says 1, 255 or any palette index, and RGB files are accepted. Raises :class:`FewShotError`
    naming the file when it is unreadable or its pixels cannot be class ids (RGB, 16 bit).
    """
    data = _read_bytes(path, "mask")
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            if mode in ("L", "P"):
                mask = np.array(image)
            elif mode == "1":
                mask = np.array(image, dtype=np.uint8)
            elif binary and not mode.startswith(("I", "F")):
                mask = np.array(image.convert("RGB").convert("L"))
            else:
                kind = "16-bit" if mode.startswith("I") else mode
                raise FewShotError(
                    f"{path}: a mask needs one 8-bit channel of class ids; this is a {kind} picture"
                )
    except _DECODE_ERRORS as error:
        raise FewShotError(f"{path}: the mask cannot be read ({_reason(error)})") from error
    if binary:
        # Greyscale masks may have soft or compressed edges; those that hold 0 and 1 have not.
        soft = mode != "P" and mask.max(initial=0) > 1
        mask = (mask >= (128 if soft else 1)).astype(np.uint8)
    return mask


def read_pair(
    image: str | Path, mask: str | Path, binary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read a picture and its mask, which must have the same height and width.

    The picture is turned upright as its EXIF tag says, unless the mask fits the stored pixels only.
    """
    pixels, labels = read_image(image), read_mask(mask, binary)
    if pixels.shape[:2] != labels.shape and pixels.shape[:2] == labels.shape[::-1]:
        pixels = read_image(image, orient=False)
    if pixels.shape[:2] != labels.shape:
        sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (pixels, labels)]
        raise FewShotError(f"{image} is {sizes[0]} pixels, but its mask {mask} is {sizes[1]}")
    return pixels, labels


def _read_bytes(path: str | Path, what: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FewShotError(f"{path}: there is no such {what}") from error
    except (OSError, ValueError) as error:
        raise FewShotError(f"{path}: the {what} cannot be read ({_reason(error)})") from error
    if not data:
        raise FewShotError(f"{path}: the {what} file is empty")
    return data


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture file"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
