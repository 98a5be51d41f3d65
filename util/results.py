"""Files of a prediction: label PNG, overlay, probability and correlation maps, JSON summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util import visualize
from util.predictor import Prediction
from util.store import write_atomically


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
    overlay = visualize.label_overlay(image, result.mask)
    small = _small(image)
    files = [
        visualize.write_labels(output / "labels" / f"{name}.png", result.mask),
        visualize.write_jpeg(output / "overlays" / f"{name}.jpg", overlay),
    ]
    for number, class_name in enumerate(result.classes, start=1):
        levels = cv2.convertScaleAbs(result.probabilities[number], alpha=255)  # rounds
        file = f"{name}/{number}_{_safe(class_name)}"
        files.append(visualize.write_png(output / "probabilities" / f"{file}.png", levels))
        for stage, values in enumerate(result.correlations[class_name], start=1):
            heat = visualize.heat_overlay(small, values)
            target = output / "correlations" / f"{file}_stage{stage}.jpg"
            files.append(visualize.write_jpeg(target, heat))
    return files


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a killed run leaves the old file or the new one, never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)


def _small(image: np.ndarray, side: int = 640) -> np.ndarray:
    """Correlation maps are coarse: a picture of 640 pixels holds all that they say."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    return np.asarray(picture)
