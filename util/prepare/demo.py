"""A generated data set in VOC layout, small enough to train on a CPU in minutes.

A class is a shape family with a texture family, never a colour. In each fold the novel classes are
combinations that the base classes do not contain, while every shape and every texture on its own
occurs there. Objects vary in size, rotation, proportions, colour, light and occlusion; each picture
shows objects of at least two classes on a textured ground, so that looking for the salient thing is
not enough: only the support picture says which object is meant.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from util.config.folds import DEMO_SHAPES, DEMO_TEXTURES
from util.draw.overlays import label_palette
from util.prepare.steps import (
    Row,
    claim,
    file_sha1,
    mask_is_whole,
    run_all,
    write_list,
    write_whole,
)
from util.runtime.errors import FewShotError

BORDER = 255
CLASSES = len(DEMO_SHAPES) * len(DEMO_TEXTURES)
Map = np.ndarray


# Shapes: local coordinates x, y (object radius = 1) -> bool map. Areas are alike (1.7 to 2.3), so
# that size says little about the class.


def _disc(x: Map, y: Map) -> Map:
    return x**2 + y**2 < 0.8**2


def _square(x: Map, y: Map) -> Map:
    return np.maximum(abs(x), abs(y)) < 0.71


def _triangle(x: Map, y: Map) -> Map:
    return np.maximum(-y, 0.866 * abs(x) + 0.5 * y) < 0.6


def _star(x: Map, y: Map) -> Map:
    sector = 2 * np.pi / 5
    angle = abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    # Half a ray of the star is the triangle between the tip (1.15, 0) and the notch at sector / 2.
    tip, notch = 1.15, 0.5
    inner_x, inner_y = notch * np.cos(sector / 2), notch * np.sin(sector / 2)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    return (tip - inner_x) * py + inner_y * (px - tip) < 0


def _cross(x: Map, y: Map) -> Map:
    wide, narrow = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return (wide < 0.98) & (narrow < 0.33)


def _ring(x: Map, y: Map) -> Map:
    radius = np.hypot(x, y)
    return (radius > 0.55) & (radius < 0.98)


def _bar(x: Map, y: Map) -> Map:
    return (abs(x) < 1.2) & (abs(y) < 0.38)


def _crescent(x: Map, y: Map) -> Map:
    return (np.hypot(x, y) < 1.0) & (np.hypot(x - 0.6, y) > 0.75)


SHAPES: dict[str, Callable[[Map, Map], Map]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "bar": _bar,
    "crescent": _crescent,
}


# Textures: local coordinates u, v in periods of the pattern -> blend of two colours in [0, 1].


def _soft(wave: Map) -> Map:
    """A wave in [-1, 1] to a nearly binary pattern without aliasing."""
    return 1 / (1 + np.exp(-6 * wave))


def _wave(phase: Map) -> Map:
    return np.sin(2 * np.pi * phase)


def _plain(u: Map, v: Map, rng: Generator) -> Map:
    return np.zeros_like(u)


def _striped(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(_wave(u))


def _checked(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(2 * _wave(0.6 * u) * _wave(0.6 * v))


def _dotted(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(_wave(0.85 * u) + _wave(0.85 * v) - 0.9)


def _wavy(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(_wave(u + 1.1 * abs((0.45 * v) % 1 - 0.5) * 2))


def _ringed(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(_wave(np.hypot(u, v) + rng.random()))


def _rayed(u: Map, v: Map, rng: Generator) -> Map:
    return _soft(_wave(np.arctan2(v, u) / (2 * np.pi) * rng.integers(6, 9)))


def _speckled(u: Map, v: Map, rng: Generator) -> Map:
    cells = rng.standard_normal((24, 24)).astype(np.float32)
    at_u, at_v = (2.2 * u + 12).astype(np.float32), (2.2 * v + 12).astype(np.float32)
    noise = cv2.remap(cells, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return _soft(1.5 * noise)


TEXTURES: dict[str, Callable[[Map, Map, Generator], Map]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "wavy": _wavy,
    "ringed": _ringed,
    "rayed": _rayed,
    "speckled": _speckled,
}


def draw_picture(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture: RGB uint8 [size, size, 3] and its label mask uint8 [size, size].

    Labels: 0 ground, 1..64 classes, 255 a border one pixel wide around every object. At least two
    classes are visible with a good part of their object each.
    """
    picture = _ground(rng, size)
    label = np.zeros((size, size), np.uint8)
    classes = _classes_of_picture(rng)
    drawn: list[Map] = []
    for class_id in classes:
        inside, colours = _object(rng, size, class_id, drawn)
        if inside is None:
            continue
        for earlier in drawn:
            earlier &= ~inside
        drawn.append(inside)
        label[inside] = class_id
        alpha = cv2.GaussianBlur(inside.astype(np.float32), (3, 3), 0.6)[..., None]
        picture = picture * (1 - alpha) + colours * alpha
    if len(np.unique(label)) < 3:  # seldom: no place was found for an object of a second class
        return draw_picture(rng, size)
    picture = picture * _light(rng, size) + rng.normal(0, rng.uniform(1, 7), picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), _with_border(label)


def _classes_of_picture(rng: Generator) -> list[int]:
    """Class ids of the objects: two to four objects, two classes or more."""
    count = rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2])
    first, second = rng.choice(CLASSES, 2, replace=False) + 1
    more = [
        int(rng.choice([first, second, *(rng.integers(CLASSES, size=4) + 1)]))
        for _ in range(count - 2)
    ]
    return [int(c) for c in rng.permutation([first, second, *more])]


def _object(
    rng: Generator, size: int, class_id: int, drawn: list[Map]
) -> tuple[Map | None, Map | None]:
    """Visible region [size, size] and colours [size, size, 3] of an object, or None twice.

    A place is refused where the object would hide more than 30 % of one drawn before.
    """
    shape, texture = divmod(class_id - 1, len(DEMO_TEXTURES))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    areas = [max(int(earlier.sum()), 1) for earlier in drawn]
    for _ in range(30):
        radius = size * rng.uniform(0.17, 0.29)
        stretch = np.exp(rng.uniform(-0.16, 0.16))
        turn = rng.uniform(0, 2 * np.pi)
        centre_x, centre_y = rng.uniform(0.16, 0.84, 2) * size
        x, y = _rotated(columns - centre_x, rows - centre_y, turn)
        inside = SHAPES[DEMO_SHAPES[shape]](x / radius * stretch, y / radius / stretch)
        hidden = [
            (earlier & inside).sum() / area for earlier, area in zip(drawn, areas, strict=True)
        ]
        if max(hidden, default=0) < 0.3 and inside.sum() > 0.03 * size * size:
            break
    else:
        return None, None
    period = size * rng.uniform(0.07, 0.1)
    u, v = _rotated(columns - centre_x, rows - centre_y, rng.uniform(0, 2 * np.pi))
    blend = TEXTURES[DEMO_TEXTURES[texture]](u / period, v / period, rng)
    one, other = _colour_pair(rng, 110)
    return inside, one + (other - one) * blend[..., None].astype(np.float32)


def _rotated(x: Map, y: Map, angle: float) -> tuple[Map, Map]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _colour_pair(rng: Generator, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours whose Euclidean distance is at least ``distance``."""
    while True:
        one, other = rng.uniform(10, 245, (2, 3)).astype(np.float32)
        if np.linalg.norm(one - other) > distance:
            return one, other


def _ground(rng: Generator, size: int) -> Map:
    """Clouds, grain or fibres in two random colours: float32 [size, size, 3]."""
    noise = np.zeros((size, size), np.float32)
    stretch = rng.integers(1, 4)
    for cells in (3, 6, 12, 24):
        grid = rng.standard_normal((cells, cells * stretch)).astype(np.float32)
        noise += rng.uniform(0.1, 1) * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        noise = noise.T
    one, other = _colour_pair(rng, 60)
    contrast = rng.uniform(0.3, 1)
    return one + (other - one) * (contrast / (1 + np.exp(-1.5 * noise)))[..., None]


def _light(rng: Generator, size: int) -> Map:
    """Linear light across the picture: [size, size, 1] around 1."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2)
    return (rng.uniform(0.8, 1.1) + slope_x * ramp[None, :] + slope_y * ramp[:, None])[..., None]


def _with_border(label: Map) -> Map:
    """255 where a pixel and its right or lower neighbour differ, as VOC marks outlines."""
    border = np.zeros(label.shape, bool)
    border[:, :-1] |= label[:, :-1] != label[:, 1:]
    border[:-1] |= label[:-1] != label[1:]
    return np.where(border, np.uint8(BORDER), label)


def prepare(
    root: Path,
    lists: Path,
    train: int = 6000,
    val: int = 2000,
    size: int = 97,
    seed: int = 0,
    workers: int = 2,
) -> list[Row]:
    """Write the demo set below ``root`` and ``train.txt`` and ``val.txt`` into ``lists``.

    ``train``, ``val``: numbers of pictures; ``size``: side in pixels. Picture i of a part depends
    on (``seed``, part, i) alone, so a longer set begins with the shorter one. Pictures that are
    there already, made with the same options by the same code, are kept.

    Raises:
        FewShotError: an option out of range, or ``root`` holds masks that are not the demo's.
    """
    if min(train, val) < 1 or size < 48 or seed < 0:
        raise FewShotError("the demo set needs train >= 1, val >= 1, size >= 48 and seed >= 0")
    made_from = {"code": file_sha1(Path(__file__)), "size": str(size), "seed": str(seed)}
    claim(root / "SegmentationClass", made_from)
    rows = []
    for part, (name, count) in enumerate((("train", train), ("val", val))):
        names = [f"{name}_{i:05d}" for i in range(count)]
        tasks = [
            (stem, (seed, part, i))
            for i, stem in enumerate(names)
            if not mask_is_whole(root / "SegmentationClass" / f"{stem}.png")
        ]
        run_all(partial(_write, root, size), tasks, workers, f"demo {name}")
        pairs = [(f"JPEGImages/{stem}.jpg", f"SegmentationClass/{stem}.png") for stem in names]
        write_list(lists / f"{name}.txt", pairs)
        rows.append(Row(f"{name} pictures", count))
    return [*rows, Row("classes", CLASSES)]


def _write(root: Path, size: int, task: tuple[str, tuple[int, ...]]) -> None:
    """The picture, then its mask: where the mask is whole, the picture is."""
    stem, seed = task
    picture, label = draw_picture(np.random.default_rng(seed), size)
    mask = Image.fromarray(label, mode="P")
    mask.putpalette(label_palette())
    for image, name, options in (
        (Image.fromarray(picture), f"JPEGImages/{stem}.jpg", {"format": "JPEG", "quality": 95}),
        (mask, f"SegmentationClass/{stem}.png", {"format": "PNG"}),
    ):
        content = io.BytesIO()
        image.save(content, **options)
        write_whole(root / name, content.getvalue())
