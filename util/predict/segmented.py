"""One picture that the web page has segmented, and the ZIP file of all of them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from util.draw.overlays import heat_overlay
from util.draw.panels import fit
from util.predict.base import Prediction
from util.predict.threshold import class_scores
from util.predict.writing import summarise, without_arrays
from util.runtime.files import write_json

CANVAS = 768  # longer side of the picture to mark: the network sees less than that
ARCHIVE = "results.zip"  # in the folder of one visitor's results
FILES = "files"  # beside it: what is in it
DECIDED = "decided"  # beside them: the labels at ``DECISION``
DECISION = 0.5  # the threshold that stands for the model's own decision
Tile = tuple[np.ndarray, str]
"""A picture, uint8 RGB [H, W, 3], and its caption."""


def fit_canvas(image: np.ndarray) -> np.ndarray:
    """``image`` shrunk until its longer side is at most ``CANVAS`` pixels."""
    return image if max(image.shape[:2]) <= CANVAS else fit(image, CANVAS)


class Segmented(NamedTuple):
    """What is kept of one picture while the page shows it.

    path: the upload. name: of its results. result: the prediction without its large arrays.
    summary: what the JSON says of it.
    small: the picture, uint8 RGB [h, w, 3] of at most ``CANVAS`` pixels a side.
    labels: at ``DECISION``, uint8 [h, w]. scores: float16 [C, h, w], see ``threshold``.
    maps: the correlation maps.
    """

    path: str
    name: str
    result: Prediction
    summary: dict[str, Any]
    small: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    maps: list[Tile]

    @classmethod
    def of(cls, path: str, name: str, image: np.ndarray, result: Prediction) -> Segmented:
        small = fit_canvas(image)
        size = small.shape[1::-1]
        labels = cv2.resize(result.mask, size, interpolation=cv2.INTER_NEAREST)
        planes = [cv2.resize(plane, size) for plane in result.probabilities]
        maps = [
            (heat_overlay(small, values), f"{class_name} · stage {stage} ({Path(path).name})")
            for class_name, stages in result.correlations.items()
            for stage, values in enumerate(stages, start=1)
        ]
        scores = class_scores(np.stack(planes)).astype(np.float16)
        summary = summarise(Path(Path(path).name), result)
        return cls(path, name, without_arrays(result), summary, small, labels, scores, maps)

    def caption(self, labels: np.ndarray) -> str:
        """Class and share first: there is little room on a telephone."""
        shares = (
            f"{name} · {self._share(name, np.count_nonzero(labels == number) / labels.size)}"
            for number, name in enumerate(self.result.classes, start=1)
        )
        return f"{', '.join(shares)} ({Path(self.path).name})"

    def _share(self, name: str, share: float) -> str:
        found = "not found" if name in self.result.absent else _percent(share)
        if name not in self.result.presence:
            return found
        return f"{found} ({100 * self.result.presence[name]:.0f} % likely)"


def pack(place: Path, summaries: list[dict[str, Any]]) -> None:
    """The files of results as a ZIP file beside them."""
    files = place / FILES
    write_json(files / "summary.json", summaries)
    with zipfile.ZipFile(place / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for part in sorted(files.rglob("*")):
            if part.is_file():
                archive.write(part, part.relative_to(files))


def _percent(share: float) -> str:
    """Whole per cents, but a class that is there is never 0 %."""
    return "< 1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"
