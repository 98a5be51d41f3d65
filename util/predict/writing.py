"""Files of a prediction: a label PNG, an overlay, probability and correlation maps, a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util.draw.files import write_jpeg, write_labels, write_png
from util.draw.overlays import heat_overlay, label_overlay
from util.predict.predictor import Prediction
from util.runtime.files import file_name


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


def _small(image: np.ndarray, side: int = 640) -> np.ndarray:
    """Correlation maps are coarse: a picture of 640 pixels holds all that they say."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return np.asarray(picture)
