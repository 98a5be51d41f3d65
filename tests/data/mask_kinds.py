"""Masks as programs save them: one drawn object in every mode, depth, palette and transparency."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image

BLACK, WHITE, BORDER = (0, 0, 0), (255, 255, 255), (224, 224, 192)
UNDO = {  # what an EXIF orientation does, undone: upright pixels -> stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, -1),
}


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def voc_palette() -> list[tuple[int, int, int]]:
    """As the VOC development kit makes it."""
    colours = []
    for index in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for c in range(3):
                channels[c] |= (index >> c & 1) << (7 - bit)
            index >>= 3
        colours.append(tuple(channels))
    return colours


VOC = voc_palette()


def ring(m: np.ndarray) -> np.ndarray:
    """The pixels on both sides of the object's edge."""
    m, square = m.astype(np.uint8), np.ones((3, 3), np.uint8)
    return cv2.dilate(m, square) > cv2.erode(m, square)


def bordered(m: np.ndarray, value: int) -> np.ndarray:
    return np.where(ring(m), 255, m * value).astype(np.uint8)


def grey(m: np.ndarray, value: int = 255) -> Image.Image:
    return Image.fromarray((m * value).astype(np.uint8))


def palette(indices: np.ndarray, colours: list) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def coloured(m: np.ndarray, colour: tuple, ground: tuple = BLACK) -> Image.Image:
    return Image.fromarray(np.where(m[..., None], colour, ground).astype(np.uint8))


def soft(m: np.ndarray, times: int = 4) -> Image.Image:
    """Drawn large and made small, as programs smooth edges."""
    large = cv2.blur(np.kron(m.astype(np.uint8) * 255, np.ones((times, times), np.uint8)), (5, 5))
    return Image.fromarray(cv2.resize(large, m.shape[::-1], interpolation=cv2.INTER_AREA))


def noisy(m: np.ndarray) -> Image.Image:
    """What a JPEG makes of a mask, saved as a PNG afterwards."""
    file = BytesIO()
    grey(m).save(file, "JPEG", quality=70)
    return Image.fromarray(np.array(Image.open(file)))


def transparent(image: Image.Image, index: int) -> Image.Image:
    image.info["transparency"] = index
    return image


def few_bits(m: np.ndarray, bits: int, value: int) -> bytes:
    """A grey PNG of 2 or 4 bits a pixel, which Pillow does not write."""
    pixels = m * value
    fill = -pixels.shape[1] % (8 // bits)
    pixels = np.pad(pixels, ((0, 0), (0, fill))).reshape(len(m), -1, 8 // bits)
    rows = (pixels << np.arange(8 - bits, -1, -bits)).sum(axis=2).astype(np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", m.shape[1], m.shape[0], bits, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


Kind = Callable[[np.ndarray], Any]
# name -> (bool mask -> picture, or the bytes of a PNG; the class id that was drawn, if one was)
KINDS: dict[str, tuple[Kind, int | None]] = {
    "1 bit": (Image.fromarray, 1),
    "JPEG noise in a PNG": (noisy, None),
    "soft edges": (soft, None),
    "soft edges in colour": (lambda m: soft(m).convert("RGB"), None),
    "near black and near white": (lambda m: grey(m, 230).point(lambda v: v + 5), None),
    "black at 0 and 3": (lambda m: palette(m * 3, [BLACK] * 256), 3),
    "Pillow's quantize": (lambda m: coloured(m, WHITE).quantize(2), None),
    "Pillow's adaptive": (
        lambda m: coloured(m, WHITE).convert("P", palette=Image.Palette.ADAPTIVE, colors=2),
        None,
    ),
    "palette, black first": (lambda m: palette(m, [BLACK, WHITE]), 1),
    "palette, white first": (lambda m: palette(~m, [WHITE, BLACK]), None),
    "palette of greys, sorted": (lambda m: palette(m, [BLACK, (9, 9, 9)]), None),
    "palette, soft edges": (lambda m: soft(m).convert("P"), None),
    "VOC, sorted": (
        lambda m: palette(np.where(ring(m), 2, m), [BLACK, VOC[15], VOC[255]]),
        None,
    ),
    "VOC without border, sorted": (lambda m: palette(~m, [VOC[4], BLACK]), None),
    "VOC in colour": (
        lambda m: Image.fromarray(np.array(VOC, np.uint8)[bordered(m, 15)]),
        None,
    ),
    "16 bits, 1": (lambda m: Image.fromarray(m.astype(np.uint16)), None),
    "16 bits, white": (lambda m: Image.fromarray((m * 65535).astype(np.uint16)), None),
    "32 bits": (lambda m: Image.fromarray(m.astype(np.int32)), None),
    "floats": (lambda m: Image.fromarray(m.astype(np.float32)), None),
    "2 bits, 1": (lambda m: few_bits(m, 2, 1), None),
    "2 bits, white": (lambda m: few_bits(m, 2, 3), None),
    "4 bits, 1": (lambda m: few_bits(m, 4, 1), None),
    "4 bits, 7": (lambda m: few_bits(m, 4, 7), None),
    "4 bits, white": (lambda m: few_bits(m, 4, 15), None),
    "LA, opaque": (lambda m: grey(m, 1).convert("LA"), 1),
    "LA, cut out": (lambda m: Image.merge("LA", [grey(m), grey(m)]), None),
    "LA, black cut out": (lambda m: Image.merge("LA", [grey(m, 0), grey(m)]), None),
    "RGBA, soft edges": (lambda m: Image.merge("RGBA", [grey(m | ring(m))] * 3 + [soft(m)]), None),
    "PA": (lambda m: palette(m * 4, VOC).convert("PA"), 4),
    "CMYK": (lambda m: coloured(m, WHITE).convert("CMYK"), None),
}
for value in (1, 2, 7, 20, 100, 127, 128, 254, 255):
    KINDS[f"grey {value}"] = partial(grey, value=value), None if value == 255 else value
    KINDS[f"grey {value}, transparent ground"] = (
        lambda m, v=value: transparent(grey(m, v), 0),
        None if value == 255 else value,
    )
    if value < 255:
        KINDS[f"grey {value} and 255"] = lambda m, v=value: Image.fromarray(bordered(m, v)), value
    if 0 < value < 21:
        KINDS[f"VOC {value}"] = lambda m, v=value: palette(m * v, VOC), value
        KINDS[f"VOC {value} and 255"] = lambda m, v=value: palette(bordered(m, v), VOC), value
        KINDS[f"VOC {value}, transparent ground"] = (
            lambda m, v=value: transparent(palette(bordered(m, v), VOC), 0),
            value,
        )
for name, colour in {
    "white": WHITE, "red": (255, 0, 0), "maroon": (128, 0, 0), "blue": (0, 0, 255),
    "nearly black": (0, 0, 3), "border": BORDER, "grey": (9, 9, 9),
}.items():  # fmt: skip
    KINDS[name] = partial(coloured, colour=colour), None
    if max(colour) - min(colour) > 16:  # white is the object beside a grey
        KINDS[f"{name} on white"] = partial(coloured, colour=colour, ground=WHITE), None
    KINDS[f"{name} and border"] = (
        lambda m, c=colour: Image.fromarray(
            np.where(ring(m)[..., None], BORDER, np.array(coloured(m, c))).astype(np.uint8)
        ),
        None,
    )
    for alpha in (255, 128):
        for word, ground in {
            "black": (0, 0, 0, 255), "nothing": (0, 0, 0, 0), "clear white": (255, 255, 255, 0),
            "clear yellow": (200, 200, 0, 0), "its clear self": (*colour, 0),
        }.items():  # fmt: skip
            KINDS[f"{name} of {alpha} on {word}"] = (
                partial(coloured, colour=(*colour, alpha), ground=ground),
                None,
            )
