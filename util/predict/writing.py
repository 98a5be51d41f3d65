"""Files of a prediction: a label PNG, an overlay, probability and correlation maps, a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util.data.reading import read_mask
from util.draw.files import write_jpeg, write_labels, write_png
from util.draw.legend import with_legend
from util.draw.overlays import class_colour, heat_overlay, label_overlay
from util.predict.base import Prediction
from util.runtime.files import file_name


def summarise(path: Path, result: Prediction) -> dict[str, Any]:
    """What the JSON says of one picture: per class its area, its box, how sure the model is of it,
    and how likely the picture shows it.
    """
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
        if name in result.presence:
            entry |= {"presence": result.presence[name], "found": name not in result.absent}
        classes[name] = entry
    height, width = result.mask.shape
    return {"file": str(path), "height": height, "width": width, "classes": classes}


def write_results(output: Path, name: str, image: np.ndarray, result: Prediction) -> list[Path]:
    """Write every picture of one query below ``output``; returns their paths."""
    small = _small(image)
    files = write_mask(output, name, image, result)
    levels_of = zip(_probability_files(output, name, result), result.probabilities[1:], strict=True)
    for file, probability in levels_of:
        files.append(write_png(file, cv2.convertScaleAbs(probability, alpha=255)))  # rounds
    for number, class_name in enumerate(result.classes, start=1):
        for stage, values in enumerate(result.correlations[class_name], start=1):
            heat = heat_overlay(small, values)
            target = f"{name}/{number}_{file_name(class_name)}_stage{stage}.jpg"
            files.append(write_jpeg(output / "correlations" / target, heat))
    return files


def write_mask(output: Path, name: str, image: np.ndarray, result: Prediction) -> list[Path]:
    """Write what the mask of one query decides: its labels, and an overlay with a legend."""
    colours = {name: class_colour(number) for number, name in enumerate(result.classes, start=1)}
    overlay = with_legend(label_overlay(image, result.mask), colours, result.mask)
    return [
        write_labels(output / "labels" / f"{name}.png", result.mask),
        write_jpeg(output / "overlays" / f"{name}.jpg", overlay),
    ]


def read_probabilities(output: Path, name: str, result: Prediction) -> np.ndarray:
    """The probabilities that :func:`write_results` wrote, float32 [1 + C, H, W], to 1/255.

    Raises:
        FewShotError: they are no longer there.
    """
    levels = [read_mask(file) for file in _probability_files(output, name, result)]
    probabilities = np.stack([np.zeros_like(levels[0]), *levels]).astype(np.float32) / 255
    np.clip(1 - probabilities.sum(0), 0, 1, out=probabilities[0])
    return probabilities


def without_arrays(result: Prediction) -> Prediction:
    """What a prediction says beside its mask and maps."""
    nothing = np.zeros((0, 0), np.uint8)
    return result._replace(mask=nothing, probabilities=nothing, priors={}, correlations={})


def _probability_files(output: Path, name: str, result: Prediction) -> list[Path]:
    return [
        output / "probabilities" / name / f"{number}_{file_name(class_name)}.png"
        for number, class_name in enumerate(result.classes, start=1)
    ]


def _small(image: np.ndarray, side: int = 640) -> np.ndarray:
    """Correlation maps are coarse: a picture of 640 pixels holds all that they say."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return np.asarray(picture)
