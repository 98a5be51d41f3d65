"""What the pixels of a mask mean; the rule as a table is in docs/data.md.

A *labelled* mask holds class ids, whatever they look like. An *object* mask shows one object, told
by what it looks like: white, or the only colour or value there is, on black. What could mean two
things is refused.
"""

from __future__ import annotations

import contextlib
from functools import cache

import cv2
import numpy as np

from util.runtime.errors import FewShotError

IGNORE = 255
_BORDER = 0xE0E0C0  # VOC's colour of pixels to be ignored, as packed by _packed
_DARK, _LIGHT = 31, 224  # what soft edges and compression may make of black and of white
_NOISE = 3  # how far compression moves the values of a flat area
_TOGETHER, _STEEP = 33, 48  # how many greys a label becomes; how far 3 x 3 of an edge lie apart
_GREY = 16  # how far the channels of a grey pixel may lie apart
_SQUARE = np.ones((3, 3), np.uint8)
_ADVICE = (
    "draw one object white on black, or take one label: mask.png#7 for predict.py, label=7 in "
    "Python, a list for masks of several classes"
)


def binary_mask(mask: np.ndarray, label: int | None = None, name: str = "the mask") -> np.ndarray:
    """A mask as people save it -> uint8 [H, W] with 1 = object, 0 = rest, 255 = ignored.

    Args:
        mask: bool or integer [H, W]. With ``label``, pixels of that value are the object and 255 is
            ignored. Without, see :func:`object_of_values`.
        name: how error messages call the mask.
    Raises:
        FewShotError: wrong shape or type, several labels and none chosen, or no object.
    """
    mask = np.ascontiguousarray(mask)
    if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
        raise FewShotError(
            f"{name} must hold whole numbers in two dimensions, not {mask.dtype} {mask.shape}"
        )
    result = object_of_values(mask, name) if label is None else object_of_label(mask, label)
    if not (result == 1).any():
        chosen = "" if label is None else f"label {label}; "
        raise FewShotError(f"{name} has no object pixel ({chosen}it holds {_some(levels(mask))})")
    return result


def object_of_label(mask: np.ndarray, label: int) -> np.ndarray:
    """Integers [H, W] -> uint8 [H, W]: 1 where ``label`` stands, 255 where 255, 0 elsewhere."""
    result = (mask == label).astype(np.uint8)
    if label != IGNORE:
        result[mask == IGNORE] = IGNORE
    return result


def object_of_values(
    values: np.ndarray, name: str, lossy: bool = False, soft: bool = True
) -> np.ndarray:
    """Grey values [H, W] of an object mask -> uint8 [H, W] in {0, 1, 255}.

    One value besides 0 is the object, whichever it is; of 1 and 255 it is 1, and 255 is ignored.
    Black and white with soft edges is split at 128. Raises FewShotError for several labels.

    lossy: the file kept no exact values: only black and white count. soft: edges may be soft.
    """
    found = levels(values)
    others = found[found != 0]
    if others.size == 0 or (others.size == 1 and not lossy):
        return (values != 0).astype(np.uint8)
    if others.tolist() == [1, IGNORE] and not lossy:
        return values.astype(np.uint8)
    if soft and values.dtype == np.uint8 and _black_and_white(values, found, lossy):
        return (values >= 128).astype(np.uint8)
    raise FewShotError(f"{name} holds several labels ({_some(found)}); {_ADVICE}")


def _black_and_white(values: np.ndarray, found: np.ndarray, lossy: bool) -> bool:
    """Whether all greys are soft edges or noise: thin, and from black to white."""
    if found[-1] < _LIGHT or (found[0] > _DARK and not lossy):
        return False
    counts = np.bincount(values.ravel(), minlength=256)
    few = counts[_LIGHT:].sum() // 200
    # Compression leaves many values near black and near white, labels are few.
    noisy = lossy or min(np.sum(found <= _DARK), np.sum(found >= _LIGHT)) > 2
    black, white = counts[: _DARK + 1].argmax(), _LIGHT + counts[_LIGHT:].argmax()
    away = np.minimum(*(np.abs(np.arange(256) - ground) for ground in (black, white)))
    other = (away > (_NOISE if noisy else 0))[values]
    slope = cv2.dilate(values, _SQUARE) - cv2.erode(values, _SQUARE)
    between = counts[_DARK + 1 : _LIGHT]
    if np.count_nonzero(other & (slope == 0)) > few or between.sum() > values.size // 3:
        return False
    if noisy:  # edges are steep, or their greys are spread; those of a label lie together
        gentle = (values > _DARK) & (values < _LIGHT) & (slope < _STEEP)
        together = np.convolve(between, np.ones(_TOGETHER), "valid").max()
        return bool(np.count_nonzero(gentle) <= 10 * few or together <= 0.4 * between.sum())
    # Labels beside a border of 255 that are too thin to be flat lie on the dark side only.
    dark, light = other & (values < 64), other & (values >= 192)
    return bool(dark.sum() <= max(few, 4 * light.sum()))


def object_of_colours(pixels: np.ndarray, name: str, lossy: bool = False) -> np.ndarray:
    """An object mask saved in colour, uint8 RGB [H, W, 3] -> uint8 [H, W] in {0, 1, 255}.

    The only colour besides black is the object, and VOC's border colour is ignored beside it; grey
    pictures follow :func:`object_of_values`. Raises FewShotError for several colours.
    """
    red, green, blue = cv2.split(pixels)
    if (red == green).all() and (green == blue).all():
        return object_of_values(red, name, lossy)
    packed = _packed(pixels)
    found = np.unique(packed)
    others = found[found != 0]
    if others.size == 2 and found.size == 3:
        others = others[others != _BORDER]
    if others.size == 1 and not lossy:
        result = (packed == others[0]).astype(np.uint8)
        result[(packed == _BORDER) & (result == 0)] = IGNORE
        return result
    apart = pixels.max(axis=2) - pixels.min(axis=2)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if apart.max() <= _GREY and _black_and_white(grey, levels(grey), lossy):
        return (grey >= 128).astype(np.uint8)
    some = ", ".join(str((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in others[:3])
    raise FewShotError(
        f"{name} is a colour picture with {others.size} colours besides black ({some}"
        f"{', …' if others.size > 3 else ''}); {_ADVICE}"
    )


def object_of_transparent(pixels: np.ndarray, name: str, lossy: bool = False) -> np.ndarray:
    """An object mask with an alpha channel, uint8 RGBA [H, W, 4] -> uint8 [H, W] in {0, 1, 255}.

    Transparent is background, and the colours must not say otherwise; where they say nothing, the
    object is what is not transparent.
    """
    colours, alpha = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    if (colours == colours[0, 0]).all():
        return object_of_values(alpha, name, lossy)
    shown = cv2.multiply(colours, cv2.merge([alpha] * 3), scale=1 / 255)
    result = object_of_colours(shown, name, lossy)
    agree = (result == 1).any()
    with contextlib.suppress(FewShotError):  # transparent pixels may hide any colours
        opaque = object_of_colours(colours, name, lossy)
        differ = (opaque != result) & ((alpha == 0) | (alpha == 255))  # edges may be soft
        agree = agree == (opaque == 1).any() and not differ.any()
    if not agree:
        raise FewShotError(
            f"{name} shows one object by its colours and another by its transparency: save it "
            "without an alpha channel"
        )
    return result


def object_of_palette(indices: np.ndarray, palette: np.ndarray, name: str) -> np.ndarray:
    """An object mask with a palette: indices uint8 [H, W], palette uint8 [256, 3].

    The colours count, in whatever order they stand; the indices where the colours say nothing, and
    where 255 is the border of one coloured class.
    """
    used = levels(indices)
    others = used[used != 0]
    border = (
        others.size == 2
        and others[1] == IGNORE
        and not palette[0].any()
        and (others[0] == 1 or np.ptp(palette[others[0]]) > 0 or np.ptp(palette[IGNORE]) > 0)
    )
    if border:
        return object_of_label(indices, int(others[0]))
    if np.unique(_packed(palette[used])).size < used.size:
        return object_of_values(indices, name, soft=False)
    return object_of_colours(palette[indices], name)


def check_order(indices: np.ndarray, palette: np.ndarray, name: str) -> None:
    """See that the indices of a labelled mask are class ids and not just places of colours.

    Programs that make files small, or colours few, sort palettes as they like. That shows where
    black is not first, where greys stand at other places than their value, and where the colours
    of VOC stand at other places than in VOC. Raises FewShotError.
    """
    voc = _voc_colours()
    if (palette == voc).all():
        return
    used = levels(indices)
    colours = _packed(palette[used])
    if np.unique(colours).size < used.size:
        return  # the colours say nothing
    greys = colours // 0x010101
    if (greys * 0x010101 == colours).all():
        if np.isin(greys, (0, 255)).all():  # black and white: class 1 where it is white
            moved = ((greys == 0) != (used == 0)).any()
        else:
            moved = used.any() and (greys != used).any()
    else:
        order = {int(colour): place for place, colour in enumerate(_packed(voc))}
        places = np.array([order.get(int(colour), -1) for colour in colours])
        moved = (places >= 0).all() and (places != used).any()
        moved = moved or (palette[0].any() and used[colours == 0].any())
    if moved:
        raise FewShotError(
            f"{name} has a palette whose order is not that of class ids (index {used[-1]} is the "
            f"colour {tuple(palette[used[-1]].tolist())}), as programs leave it that make files "
            "smaller: take the file as it was, or save class ids as grey values"
        )


def levels(values: np.ndarray) -> np.ndarray:
    """The values that an array holds, ascending."""
    if values.dtype == np.uint8 and values.size:  # many times faster
        return np.flatnonzero(cv2.calcHist([values], [0], None, [256], [0, 256]))
    return np.unique(values)


def _packed(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB [..., 3] -> int32 [...], one number a colour, 0 = black."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


@cache
def _voc_colours() -> np.ndarray:
    """VOC's palette, uint8 [256, 3]: the bits of an index, dealt to the three channels in turn."""
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            place = 3 * bit + channel
            if place < 8:
                colours[:, channel] |= (np.arange(256) >> place & 1) << (7 - bit)
    return colours.astype(np.uint8)


def _some(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in values[:6]) + (", …" if values.size > 6 else "")
