"""Files of a prediction, and result files of evaluations side by side.

A prediction becomes a label PNG, an overlay, probability and correlation maps and a JSON summary.
Of evaluations with different numbers of episodes

    python -m util.results spread 1k.json 10k.json --output spread.png

prints and draws how much their runs differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util.draw.charts import run_spread_chart
from util.draw.files import write_jpeg, write_labels, write_png
from util.draw.overlays import heat_overlay, label_overlay
from util.errors import FewShotError, run
from util.evaluate import METRICS, grid, percent
from util.metrics import spread
from util.predictor import Prediction
from util.report import read_result
from util.runtime.files import file_name, refuse_input, user_path, write_atomically

SETTING = ("arch", "backbone", "dataset", "split", "shot")  # what a result is about


def summarise(path: Path, result: Prediction) -> dict[str, Any]:
    """What the JSON says of one picture: per class its area, its box and how sure the model is."""
    classes = {}
    for number, name in enumerate(result.classes, start=1):
        found = result.mask == number
        pixels = int(np.count_nonzero(found))
        entry: dict[str, Any] = {"pixels": pixels, "fraction": pixels / found.size}
        if pixels:
            rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            entry["box"] = [int(value) for value in box]
            entry["probability"] = float(result.probabilities[number][found].mean())
        classes[name] = entry
    height, width = result.mask.shape
    return {"file": str(path), "height": height, "width": width, "classes": classes}


def write_results(output: Path, name: str, image: np.ndarray, result: Prediction) -> list[Path]:
    """Write every picture of one query below ``output``; returns their paths."""
    overlay = label_overlay(image, result.mask)
    small = _small(image)
    files = [
        write_labels(output / "labels" / f"{name}.png", result.mask),
        write_jpeg(output / "overlays" / f"{name}.jpg", overlay),
    ]
    for number, class_name in enumerate(result.classes, start=1):
        levels = cv2.convertScaleAbs(result.probabilities[number], alpha=255)  # rounds
        file = f"{name}/{number}_{file_name(class_name)}"
        files.append(write_png(output / "probabilities" / f"{file}.png", levels))
        for stage, values in enumerate(result.correlations[class_name], start=1):
            heat = heat_overlay(small, values)
            target = output / "correlations" / f"{file}_stage{stage}.jpg"
            files.append(write_jpeg(target, heat))
    return files


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a killed run leaves the old file or the new one, never half a file."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Half a letter, out of a file name that is not UTF-8, is its escape in JSON too.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _small(image: np.ndarray, side: int = 640) -> np.ndarray:
    """Correlation maps are coarse: a picture of 640 pixels holds all that they say."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return np.asarray(picture)


# ---------------------------------------------------------------------------- result files


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m util.results", description="Compare results.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("spread", help="how much runs differ, a group a file").add_argument
    add(
        "results",
        type=user_path,
        nargs="+",
        metavar="FILE.json",
        help="what test.py --output wrote",
    )
    add("--output", type=user_path, required=True, metavar="FILE.png", help="the picture")
    add("--metric", choices=METRICS, default="miou", help="default: miou")
    args = parser.parse_args()
    refuse_input(args.output, *args.results)
    title, groups = run_groups(args.results, args.metric)
    print(spread_table(groups))
    run_spread_chart(args.output, groups, title, args.metric)
    print(f"figure: {args.output}")


if __name__ == "__main__":
    run(main)
