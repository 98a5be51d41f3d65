"""Evaluations side by side: how much the runs of each differ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.draw.charts import run_spread_chart
from util.evaluate import METRICS, grid, percent
from util.evaluate.generalized import GENERALIZED
from util.evaluate.metrics import spread
from util.report.tables import read_result
from util.runtime.errors import FewShotError
from util.runtime.files import refuse_input, user_path

SETTING = ("arch", "backbone", "dataset", "split", "shot")  # what a result is about


def run_groups(paths: Sequence[Path], metric: str = "miou") -> tuple[str, dict[str, list[float]]]:
    """(title, label -> ``metric`` of each run) of result files, one group a file.

    A label says the number of episodes and in what the file differs from the others; the title
    says what all have in common.
    """
    results = [read_result(path) for path in paths]
    differ = [key for key in SETTING if len({str(r.get(key)) for r in results}) > 1]
    groups: dict[str, list[float]] = {}
    for path, result in zip(paths, results, strict=True):
        values = [found.get(metric) for found in result.get("runs", ())]
        if not values or None in values:
            raise FewShotError(f"{path} does not say {metric} for every run")
        label = "\n".join([f"{result.get('episodes', 0):,} episodes", *_words(result, differ)])
        groups[f"{label}\n{path}" if label in groups else label] = values
    return ", ".join(_words(results[0], [key for key in SETTING if key not in differ])), groups


def _words(result: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    words = {"split": "split {}", "shot": "{} shot"}
    return [words.get(key, "{}").format(result.get(key)) for key in keys]


def spread_table(groups: Mapping[str, Sequence[float]]) -> str:
    """Mean, standard deviation and range over the runs of each group; per cent."""
    rows = [["", "runs", "mean", "std", "least", "most"]]
    for label, values in groups.items():
        mean, deviation, _ = spread(values)
        numbers = map(percent, (mean, deviation, min(values), max(values)))
        rows.append([label.replace("\n", ", "), str(len(values)), *numbers])
    return grid(rows)


def add_spread(commands: Any) -> None:
    """Add the command ``spread`` to a parser's subparsers."""
    add = commands.add_parser("spread", help="how much runs differ, a group a file").add_argument
    add(
        "results",
        type=user_path,
        nargs="+",
        metavar="FILE.json",
        help="what test.py --output wrote",
    )
    add("--output", type=user_path, required=True, metavar="FILE.png", help="the picture")
    add("--metric", choices=(*METRICS, *GENERALIZED), default="miou", help="default: miou")


def compare(options: argparse.Namespace) -> None:
    """``spread``: print the table and write the chart."""
    refuse_input(options.output, *options.results)
    title, groups = run_groups(options.results, options.metric)
    print(spread_table(groups))
    run_spread_chart(options.output, groups, title, options.metric)
    print(f"figure: {options.output}")
