"""Learning curves of several runs, out of their logs: loss and validation mIoU by epoch.

python -m util.report curves exp/.../1shot exp/.../1shot/backbone_lr-0.01 --output curves.png
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from util.runtime.errors import FewShotError
from util.runtime.files import user_path

LOSS = re.compile(r"epoch (\d+) iteration (\d+)/\d+: main ([\d.e+-]+)")
VALIDATION = re.compile(r"epoch (\d+) validation: miou ([\d.]+)")
Curve = Mapping[int, float]


def curves_of(folder: Path) -> tuple[Curve, Curve]:
    """(mean of the logged losses, last validation mIoU) of each epoch of a run's ``train.log``.

    A run that went on from a checkpoint tells of some iterations twice: the later time counts.
    """
    try:
        text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FewShotError(f"{folder}/train.log cannot be read: {error.strerror}") from error
    steps = {int(step): (int(epoch), float(loss)) for epoch, step, loss in LOSS.findall(text)}
    losses: dict[int, list[float]] = {}
    for epoch, loss in steps.values():
        losses.setdefault(epoch, []).append(loss)
    scores = {int(epoch): float(score) for epoch, score in VALIDATION.findall(text)}
    if not losses and not scores:
        raise FewShotError(f"{folder}/train.log tells of no iteration and no validation")
    return {epoch: mean(values) for epoch, values in losses.items()}, scores


def add_curves(commands: Any) -> None:
    """Add the command ``curves`` to a parser's subparsers."""
    parser = commands.add_parser("curves", help="loss and validation of runs, by epoch")
    add = parser.add_argument
    add("runs", nargs="+", type=user_path, metavar="DIR", help="folders with a train.log")
    add("--names", nargs="+", metavar="NAME", help="what to call them (their folders)")
    add("--output", type=user_path, required=True, metavar="FILE.png", help="the picture")


def curves(options: argparse.Namespace) -> None:
    """``curves``: draw them."""
    # matplotlib takes its time, and a mistake needs no picture
    from util.draw.charts import label, new_figure, write_figure

    names = options.names or [str(run) for run in options.runs]
    if len(names) != len(options.runs):
        raise FewShotError(f"{len(options.runs)} runs and {len(names)} names")
    figure = new_figure(9, 3.6)
    panels = figure.subplots(1, 2)
    for name, run in zip(names, options.runs, strict=True):
        for axes, curve in zip(panels, curves_of(run), strict=True):
            epochs = sorted(curve)
            axes.plot(epochs, [curve[epoch] for epoch in epochs], marker=".", label=label(name))
    for axes, what in zip(panels, ("training loss", "validation mIoU"), strict=True):
        axes.set(xlabel="epoch", ylabel=what)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    print(f"figure: {write_figure(figure, options.output)}")
