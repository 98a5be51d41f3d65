"""Pictures for people: overlays, heat maps, episode panels and the charts of an evaluation.

Every drawing function takes numpy arrays or tensors on any device and returns a new uint8 RGB array
``[H, W, 3]``; nothing is drawn in place. Charts take plain numbers and write one PNG file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from util.errors import one_line
from util.runtime.files import file_name, write_atomically
from util.transform import MEAN, STD, object_mask, read_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from model.fewshot import FewShotModel
    from util.config import Config
    from util.episodes import Episode
    from util.lists import FoldIndex

Array = Any  # numpy array or torch tensor
Colour = tuple[int, int, int]

# Okabe-Ito: eight colours that people with any colour vision tell apart.
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
JPEG_SIDE = 65_500


def class_colour(number: int) -> Colour:
    """Colour of the class with 1-based ``number``; the seven colours repeat."""
    return PALETTE[(number - 1) % len(PALETTE)]


def label_palette() -> list[int]:
    """768 palette bytes for label PNGs: 0 black, 1.. :func:`class_colour`, 255 light grey."""
    colours = [(0, 0, 0), *(class_colour(i) for i in range(1, 255)), IGNORE_GREY]
    return [channel for colour in colours for channel in colour]


def _numpy(array: Array) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().float().cpu() if array.is_floating_point() else array.detach().cpu()
        return array.numpy()
    return np.asarray(array)


def picture(image: Array) -> np.ndarray:
    """Any image as uint8 RGB ``[H, W, 3]``.

    Args:
        image: uint8 ``[H, W, 3]`` or ``[3, H, W]``, or a float ``[3, H, W]`` normalised with
            ``util.transform.MEAN`` and ``STD`` (what the model sees), which is turned back.
    Raises:
        ValueError: for any other shape or type.
    """
    array = _numpy(image)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(f"an RGB picture needs shape [H, W, 3] or [3, H, W], not {array.shape}")
    if array.dtype == np.uint8:
        chw = array.shape[2] != 3
        return np.ascontiguousarray(array.transpose(1, 2, 0) if chw else array)
    if not np.issubdtype(array.dtype, np.floating) or array.shape[0] != 3:
        raise ValueError(
            f"a picture is uint8 or normalised float [3, H, W], not {array.dtype} {array.shape}"
        )
    scaled = array.transpose(1, 2, 0) * np.asarray(STD) + np.asarray(MEAN)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def overlay(
    image: Array, mask: Array, colour: Colour = ORANGE, alpha: float = 0.5, outline: bool = True
) -> np.ndarray:
    """``image`` with the pixels where ``mask == 1`` tinted and outlined; 255 (ignored) goes grey.

    Args:
        image: see :func:`picture`, ``[H, W, 3]``.
        mask: ``[H, W]`` with 1 or True = object, 0 = rest, 255 = ignored.
        colour: RGB, 0..255.
        alpha: strength of the tint, 0 (none) to 1 (opaque).
        outline: draw a solid line around the object, so that thin parts stay visible.
    Raises:
        ValueError: when mask and image differ in size.
    """
    canvas = picture(image).copy()
    mask = _numpy(mask)
    _tint(canvas, mask == 255, IGNORE_GREY, alpha)
    _tint(canvas, mask == 1, colour, alpha)
    if outline:
        _outline(canvas, mask == 1, colour)
    return canvas


def draw_outline(image: Array, mask: Array, colour: Colour) -> np.ndarray:
    """``image`` with the border of ``mask == 1`` as a coloured line with a thin white rim."""
    canvas = picture(image).copy()
    _outline(canvas, _numpy(mask) == 1, colour)
    return canvas


def label_overlay(image: Array, labels: Array, alpha: float = 0.5) -> np.ndarray:
    """``image`` with every class of a label map ``[H, W]`` (0 background, 1.. classes) tinted."""
    labels = _numpy(labels)
    canvas = picture(image).copy()
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
    values = _numpy(map).astype(np.float32)
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
    grey = cv2.cvtColor(picture(image), cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    heat = heatmap(map, grey.shape[:2]).astype(np.float32)
    return np.rint(grey * (1 - alpha) + heat * alpha).astype(np.uint8)


def iou(prediction: Array, mask: Array) -> float:
    """Intersection over union of ``prediction == 1`` and ``mask == 1`` where ``mask != 255``.

    Both ``[H, W]``. NaN when both are empty.
    """
    prediction, mask = _numpy(prediction), _numpy(mask)
    valid = mask != 255
    found, true = (prediction == 1) & valid, (mask == 1) & valid
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else math.nan


def _font_file() -> str:
    # DejaVu Sans comes with matplotlib and also writes accented, Greek and Cyrillic class names.
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=8)
def _font(points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), points)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points that the font has a shape for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


def plain(text: object, longest: int = 1000) -> str:
    """``text`` as one line that every picture can show: a name may hold anything.

    Letters that the font has no shape for become their escape (``\\u68a8``), which tells two names
    apart where empty boxes would not; more than ``longest`` letters end in ….
    """
    shown = "".join(
        c if ord(c) in _drawable() else ascii(c)[1:-1] for c in one_line(text)[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _strip(text: str, width: int, height: int, points: int) -> np.ndarray:
    """One line of text on paper ``[height, width, 3]``, shortened with … to fit."""
    font, text = _font(points), plain(text)
    room = width - 8
    if font.getlength(text) > room:
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    canvas = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(canvas).text((4, height / 2), text, fill=INK, font=font, anchor="lm")
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
        support_images: K pictures, see :func:`picture`; they may differ in size.
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
    query = picture(query_image)
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
        values = _numpy(prior)
        values = values.mean(axis=0) if values.ndim == 3 else values
        lower.append((heat_overlay(query, values), "prior"))
    for stage, values in enumerate(correlations or (), start=1):
        values = _numpy(values)
        caption = f"correlation, stage {stage} ({values.shape[0]}×{values.shape[1]})"
        lower.append((heat_overlay(query, values), caption))
    headline = "  ·  ".join(part for part in (class_name, score, title) if part)
    return grid([upper, lower] if lower else [upper], headline, side)


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


# ---------------------------------------------------------------------------------------- charts


def label(text: object, longest: int = 40) -> str:
    """:func:`plain` for matplotlib, to which a pair of dollar signs would mean a formula."""
    return plain(text, longest).replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    The object interface draws with Agg and keeps no global state, unlike pyplot.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def write_figure(figure: Figure, path: str | Path) -> Path:
    """Write a chart as PNG, whole or not at all.

    Raises:
        FewShotError: when the file cannot be written.
    """
    write_atomically(Path(path), figure_bytes(figure), durable=False)
    return Path(path)


def figure_bytes(figure: Figure) -> bytes:
    """A chart as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def class_iou_chart(
    path: str | Path, series: Mapping[str, Mapping[str, float]], title: str = ""
) -> Path:
    """Bar chart of IoU per class, one bar a series; classes sorted by the first series.

    Args:
        series: name of the output ('final', 'meta', ...) -> class name -> IoU in [0, 1].
    """
    first = next(iter(series.values()), {})
    names = sorted(first, key=lambda name: -first[name])
    if not names:
        raise ValueError("the per-class chart needs at least one class")
    figure, axes = _figure(max(4.0, 1.2 + 0.45 * len(names) * max(1, len(series) / 2)), 3.6)
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        heights = [values.get(name, math.nan) for name in names]
        mean = sum(values.values()) / len(values)
        left = np.arange(len(names)) - 0.4 + width * (number + 0.5)
        bars = axes.bar(
            left,
            heights,
            width,
            color=_hex(PALETTE[number % 7]),
            label=label(f"{name}, mean {mean:.3f}"),
        )
        if len(names) * len(series) <= 24:
            axes.bar_label(bars, fmt="%.2f", fontsize=7)
    slanted = len(names) > 5 or max(map(len, names)) > 10
    axes.set_xticks(
        range(len(names)), [label(name, 24) for name in names], rotation=45 if slanted else 0
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("IoU")
    axes.set_title(label(title, 80))
    axes.legend(fontsize=8)
    return write_figure(figure, path)


def run_spread_chart(
    path: str | Path,
    series: Mapping[str, Sequence[float]],
    title: str = "",
    metric: str = "miou",
) -> Path:
    """Spread of a metric over the runs: every run a dot, the mean a line, ± a standard deviation.

    Args:
        series: label ('1,000 episodes', '10,000 episodes', ...) -> value of each run in [0, 1].
    """
    if not series or not all(len(values) for values in series.values()):
        raise ValueError("the spread chart needs at least one run in every series")
    figure, axes = _figure(max(3.6, 1.4 + 1.4 * len(series)), 3.6)
    for number, values in enumerate(series.values()):
        colour = _hex(PALETTE[number % 7])
        # Dots side by side, so that equal runs do not hide each other.
        offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [0.0]
        axes.scatter(number + np.asarray(offsets), values, s=16, color=colour, zorder=3)
        mean = float(np.mean(values))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        axes.errorbar(number, mean, spread, fmt="_", markersize=36, color=colour, capsize=6)
        axes.annotate(
            f"{mean:.4f} ± {spread:.4f}\n(range {max(values) - min(values):.4f})",
            (number, max(max(values), mean + spread)),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.margins(y=0.25)
    axes.set_xlim(-0.6, len(series) - 0.4)
    lines = ["\n".join(map(label, name.split("\n"))) for name in series]
    axes.set_xticks(range(len(series)), lines)
    axes.set_ylabel(f"{metric.replace('miou', 'mIoU').replace('_', ' ')} of a run")
    axes.set_title(label(title, 80))
    return write_figure(figure, path)


def leakage_counts(prediction: Array, labels: Array) -> np.ndarray:
    """int64 ``[256]``: how many predicted object pixels truly belong to each class id.

    Args:
        prediction: ``[H, W]``, 1 = object.
        labels: ``[H, W]`` uint8 class ids of the full annotation, 0 background, 255 ignored.

    Sums of these counts over the episodes of one novel class are a row of :func:`leakage_chart`.
    """
    found = _numpy(labels)[_numpy(prediction) == 1]
    return np.bincount(found.astype(np.int64), minlength=256)


def leakage_chart(
    path: str | Path,
    leakage: Mapping[str, Mapping[str, float]],
    title: str = "",
    max_columns: int = 16,
) -> Path:
    """What the predicted pixels of each novel class really are: a table of percentages.

    Args:
        leakage: novel class -> true class -> predicted pixels (any unit; rows are normalised). The
            columns are the true classes with the largest share in any row, largest first.
    """
    rows = list(leakage)
    columns = sorted({name for row in leakage.values() for name in row})
    if not rows or not columns:
        raise ValueError("the leakage chart needs at least one predicted pixel")
    table = np.array([[leakage[row].get(name, 0.0) for name in columns] for row in rows], float)
    table = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1e-9)
    order = np.argsort(-table.max(axis=0), kind="stable")[:max_columns]
    table, columns = table[:, order], [columns[i] for i in order]
    figure, axes = _figure(2.6 + 0.55 * len(columns), 1.8 + 0.34 * len(rows))
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, j in np.ndindex(*table.shape):
        if table[i, j] >= 0.5:
            ink = "white" if table[i, j] > 55 else "black"
            axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", color=ink, fontsize=7)
    names = [label(name, 24) for name in columns]
    axes.set_xticks(range(len(columns)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), [label(name, 24) for name in rows])
    axes.set_xlabel("true class of the predicted pixels, %")
    axes.set_ylabel("looked for")
    axes.set_title(label(title, 80))
    return write_figure(figure, path)


# ------------------------------------------------------------------------ choosing which episodes


def choose_episodes(scores: Sequence[float], count: int) -> dict[str, list[int]]:
    """Positions of the ``count`` best, median and worst scores, no position twice.

    NaN scores (no object, nothing predicted) are left out. With fewer than 3 · count scores the
    best come first, then the worst, then the median.
    """
    order = [i for i in np.argsort(scores, kind="stable")[::-1].tolist() if scores[i] == scores[i]]
    last = max(count, len(order) - count)
    middle = max(count, (len(order) - count) // 2)
    return {
        "best": order[:count],
        "median": order[middle : min(middle + count, last)],
        "worst": order[last:][::-1],
    }


def episode_panel(
    model: FewShotModel,
    cfg: Config,
    index: FoldIndex,
    episode: Episode,
    class_name: str,
    title: str = "",
) -> np.ndarray:
    """Predict one episode as evaluation does, at the pictures' own size, and draw its panel.

    The model's training mode and random state are left as they were. Returns uint8 RGB.
    """
    # Imported here: the predictor needs the evaluation, which may want to draw charts.
    from util.predictor import FewShotPredictor

    label = index.label(episode.class_id)
    query, *supports = (
        read_pair(*index.pairs[position], index.binary)
        for position in (episode.query, *episode.supports)
    )
    training = model.training
    predictor = FewShotPredictor(model, cfg, next(model.parameters()).device)
    try:
        for image, mask in supports:
            predictor.add_support(image, mask, class_name, label=label)
        result = predictor.predict(query[0])
    finally:
        model.train(training)
    return panel(
        [image for image, _ in supports],
        [object_mask(mask, label) for _, mask in supports],
        query[0],
        object_mask(query[1], label),
        result.mask,
        result.priors.get(class_name),
        result.correlations[class_name],
        class_name=class_name,
        title=title,
    )


def episode_figures(
    model: FewShotModel,
    cfg: Config,
    index: FoldIndex,
    scored: Sequence[tuple[float, Episode]],
    folder: str | Path,
    count: int,
) -> list[Path]:
    """Panels of the ``count`` best, median and worst episodes as ``best_1_<class>.png``, ...

    Args:
        scored: (IoU, episode) of one run; the model is asked again for the chosen ones.
    """
    paths = []
    chosen = choose_episodes([score for score, _ in scored], count)
    todo = [
        (kind, i + 1, scored[at][1]) for kind, at_ in chosen.items() for i, at in enumerate(at_)
    ]
    for kind, rank, episode in tqdm(todo, desc="figures", unit="episode", leave=False):
        name = index.names[episode.class_id]
        drawn = episode_panel(model, cfg, index, episode, name, f"{kind} {rank}")
        file = f"{kind}_{rank}_{file_name(name).replace(' ', '_')}.png"
        paths.append(write_png(Path(folder) / file, drawn))
    return paths
