"""Reading pictures and masks from files as people save them: the one reader for everything.

Pictures are uint8 RGB [H, W, 3], masks uint8 [H, W]. What the pixels of a mask mean is decided in
:mod:`util.data.masks`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from util.data.masks import (
    check_order,
    object_of_colours,
    object_of_label,
    object_of_palette,
    object_of_transparent,
    object_of_values,
)
from util.runtime.errors import FewShotError

_LOSSY = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"}
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
ORIENTATION = 0x0112  # the EXIF tag
# The EXIF orientations that swap height and width, and how stored pixels are turned upright.
LYING = {
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def picture_size(picture: Path) -> tuple[tuple[int, int], int]:
    """(height, width) of a picture's stored pixels, and its EXIF orientation (1 = as stored).

    Raises:
        FewShotError: missing, or no picture.
    """
    try:
        with Image.open(picture) as image:
            return (image.height, image.width), image.getexif().get(ORIENTATION, 1)
    except FileNotFoundError as error:
        raise FewShotError(f"{picture} is missing") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FewShotError(f"{picture} cannot be read as a picture") from error


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
    with decoding(path, "picture"), Image.open(io.BytesIO(data)) as image:
        _check_bmp(image, data, path)
        return image_of(image, str(path), orient)


def image_of(image: Image.Image, name: str, orient: bool = True) -> np.ndarray:
    """The pixels of a Pillow image as :func:`read_image` gives them; ``name`` is for errors."""
    _check_single(image, name, "a picture to segment")
    if image.mode.startswith(("I", "F")) or _halved(_coding(image)):
        raise FewShotError(f"{name}: the picture has more than 8 bits a channel")
    image = ImageOps.exif_transpose(image) if orient else image
    return np.array(image.convert("RGB"))


def read_mask(
    path: str | Path, binary: bool = False, label: int | None = None, orient: bool = True
) -> np.ndarray:
    """Read a mask as uint8 [H, W].

    By default it is a labelled mask: the values of a grey file or the indices of a palette are
    class ids, 255 is ignored.

    Args:
        binary: the mask shows one object: 1 there, 0 elsewhere, 255 = ignored. What may be the
            object says :mod:`util.data.masks`.
        label: the object is what has this value in a labelled mask.
        orient: turn the mask upright as its EXIF tag says.
    Raises:
        FewShotError: naming the file, which is unreadable or could mean several things.
    """
    data = _read_bytes(path, "mask")
    with decoding(path, "mask"), Image.open(io.BytesIO(data)) as image:
        _check_bmp(image, data, path)
        return mask_of(image, str(path), binary, label, orient)


def mask_of(
    image: Image.Image,
    name: str,
    binary: bool = False,
    label: int | None = None,
    orient: bool = True,
) -> np.ndarray:
    """The mask that a Pillow image is, as :func:`read_mask` gives it; ``name`` is for errors."""
    _check_single(image, name, "a mask")
    lossy = image.format in _LOSSY or image.info.get("compression") == "jpeg"
    coding = _coding(image)
    shown = ImageOps.exif_transpose(image) if orient else image
    shown.format = image.format  # which a copy forgets
    if binary:
        return _object(shown, coding, lossy, f"{name}: the mask")
    labels = _class_ids(shown, coding, lossy, name, label)
    return labels if label is None else object_of_label(labels, label)


def _check_single(image: Image.Image, name: str, what: str) -> None:
    """Several pages or frames are refused; what MPO files hold besides is of cameras' making."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise FewShotError(f"{name}: holds {frames} pictures; {what} is one")


def _class_ids(
    image: Image.Image, coding: str, lossy: bool, name: str, label: int | None
) -> np.ndarray:
    """The stored values of a labelled mask; what is no certain class id is refused."""
    mode, pixels = image.mode, None
    if lossy:
        mode = image.format  # its values are not those that were saved
    elif image.mode.startswith("I") or _halved(coding):
        mode = "16-bit"
    elif "L;2" in coding or "L;4" in coding:
        mode = "2-bit or 4-bit grey"  # white is 3 or 15 to one program and 255 to another
    elif image.mode in ("L", "P", "1"):
        pixels = np.array(image, np.uint8)
    elif image.mode in ("LA", "PA") and image.getchannel("A").getextrema() == (255, 255):
        pixels = np.ascontiguousarray(np.array(image)[..., 0])
    if pixels is None:
        raise FewShotError(
            f"{name}: a mask needs one 8-bit channel of class ids; this is a {mode} picture"
        )
    if label is None and image.mode in ("P", "PA"):
        check_order(pixels, _palette(image), f"{name}: the mask")
    return pixels


def _object(image: Image.Image, coding: str, lossy: bool, name: str) -> np.ndarray:
    """The object of a mask that shows one, whatever the kind of picture."""
    mode = image.mode
    if mode == "F" or (_halved(coding) and not mode.startswith("I")):
        raise FewShotError(f"{name} has more than 8 bits a channel: save it with 8")
    if "transparency" in image.info or mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        pixels = np.array(image.convert("RGBA"))
        if np.ptp(pixels[..., 3]):
            return object_of_transparent(pixels, name, lossy)
    if mode == "P":
        return object_of_palette(np.array(image), _palette(image), name)
    if mode in ("L", "1"):
        return object_of_values(np.array(image, np.uint8), name, lossy)
    if mode.startswith("I"):
        return object_of_values(np.array(image), name)
    return object_of_colours(np.array(image.convert("RGB")), name, lossy)


def _coding(image: Image.Image) -> str:
    """How a pixel is stored, as far as Pillow says; it forgets that with loading."""
    return str(getattr(image, "tile", [])[:1])


def _halved(coding: str) -> bool:
    """Whether Pillow keeps the upper 8 of 16 bits a channel: where 12 are used, those are dark."""
    return ";16" in coding and "BGR;16" not in coding  # which is 16 bits for all three


def _palette(image: Image.Image) -> np.ndarray:
    """uint8 [256, 3]; colours that the file does not hold are black."""
    colours = bytes(image.getpalette("RGB")).ljust(768, b"\0")
    return np.frombuffer(colours, np.uint8).reshape(256, 3)


def read_pair(
    image: str | Path, mask: str | Path, binary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read a picture and its mask (:func:`read_mask`), which must fit each other."""
    return fit_pair(
        partial(read_image, image), partial(read_mask, mask, binary), str(image), f"its mask {mask}"
    )


def fit_pair(
    picture: Callable[..., np.ndarray],
    mask: Callable[..., np.ndarray],
    picture_name: str,
    mask_name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its mask as they belong on top of each other.

    That is as every program shows them, each turned as its own EXIF tag says. Where they do not fit
    so because one lies on its side, its tag is not followed: the mask was drawn on the stored
    pixels, or kept the tag of a picture that was turned since.

    Args:
        picture, mask: read the one or the other; called without arguments or with ``orient=False``.
        picture_name, mask_name: how the error message calls them.
    Raises:
        FewShotError: they do not fit, or it is open which of the two is to be turned.
    """
    pixels, labels = picture(), mask()
    ways = [(pixels, labels)]
    if pixels.shape[:2] == labels.shape[::-1] != labels.shape:
        ways = [(picture(orient=False), labels), (pixels, mask(orient=False))]
    fitting = [way for way in ways if way[0].shape[:2] == way[1].shape]
    if len(fitting) == 1:
        return fitting[0]
    sizes = [f"{x.shape[1]}x{x.shape[0]} pixels" for x in (pixels, labels)]
    raise FewShotError(f"{picture_name} is {sizes[0]}, but {mask_name} is {sizes[1]}")


@contextlib.contextmanager
def decoding(name: object, what: str) -> Iterator[None]:
    """Turns what Pillow raises over a damaged file into a :class:`FewShotError`."""
    try:
        yield
    except _DECODE_ERRORS as error:
        raise FewShotError(f"{name}: the {what} cannot be read ({_reason(error)})") from error


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


def _check_bmp(image: Image.Image, data: bytes, path: str | Path) -> None:
    """Pillow takes a palette of black and white for 1 bit a pixel and one of greys for 8, whatever
    there is, and reads other pixels."""
    bits = int.from_bytes(data[28:30], "little")
    if image.format == "BMP" and {"1": 1, "L": 8}.get(image.mode, bits) != bits:
        raise FewShotError(
            f"{path}: this kind of BMP ({bits} bits, a palette of greys) cannot be read; save a PNG"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture file"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
