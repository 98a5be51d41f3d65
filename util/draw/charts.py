"""Charts of an evaluation: plain numbers in, one PNG file out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from util.draw.overlays import PALETTE, Array, Colour
from util.draw.panels import plain
from util.runtime.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    found = np.asarray(labels)[np.asarray(prediction) == 1]
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
