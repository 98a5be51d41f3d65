"""Prediction without PyTorch: the files of ``python -m util.export onnx`` on onnxruntime.

predictor = OnnxPredictor("model/")
predictor.add_support("mug1.jpg", "mug1.png", "mug")
result = predictor.predict("kitchen.jpg")
"""

from __future__ import annotations

import operator
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from util.data.fit import ValTransform
from util.predict.base import Prediction, Predictor, not_finite
from util.runtime.errors import FewShotError
from util.weights.onnx_about import About, about, both, check_half

if TYPE_CHECKING:
    from util.predict.base import Picture

MOST_THREADS = 1024
TOGETHER = 8  # supports that one call compares: classes wait for the next, which costs an encoding


class OnnxPredictor(Predictor):
    """A model that was exported, ready for pictures of any size.

    It does what :class:`~util.predict.predictor.FewShotPredictor` does, in the same words, without
    PyTorch; presence is not exported, so every class is looked for in every picture.

    Args:
        folder: with ``support.onnx`` and ``query.onnx``.
        output: 'final', or 'meta' for the prediction without the base learner; None takes the one
            that the export names.
        threads: for one picture, 1 or more; None takes as many as there are cores.
    Raises:
        FewShotError: onnxruntime or a file is missing, or the files are no export, or of two.
    """

    def __init__(
        self, folder: str | os.PathLike[str], output: str | None = None, threads: int | None = None
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise FewShotError(f"folder is the path of an export, not {type(folder).__name__}")
        threads = _threads(threads)
        paths = both(folder)
        self._support, self._query = (_session(path, threads) for path in paths)
        self.about, other = map(_about, (self._support, self._query), paths)
        if self.about != other:
            raise FewShotError(f"{paths[0]} and {paths[1]} are of two exports: export them anew")
        fit = ValTransform(self.about.val_size, self.about.resized_val)
        super().__init__(fit, self.about.ann_type, output or self.about.head)
        self._held = [each.name for each in self._support.get_outputs()]
        self._found = [each.name for each in self._query.get_outputs()]
        mean, std = (np.array(values, np.float32) for values in (self.about.mean, self.about.std))
        self._mean, self._std = mean[:, None, None], std[:, None, None]

    def _encode(self, image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        return self._support.run(self._held, {"image": self._tensor(image), "mask": mask[None]})

    def _tensor(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] -> float32 [1, 3, H, W], normalised."""
        planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
        return ((planes - self._mean) / self._std)[None]

    def predict(self, image: Picture) -> Prediction:
        """Segment one picture with all classes at once, as
        :meth:`~util.predict.predictor.FewShotPredictor.predict` does.

        Args:
            image: as for :meth:`add_support`.
        Raises:
            FewShotError: no support yet, no picture, or an output that is not finite.
        """
        pixels = self._queried(image)
        size = pixels.shape[:2]
        content = self._fit.content(*size)
        tensor = self._tensor(self._fit(pixels)[0])
        logits_of = "meta" if self.output == "meta" and "meta" in self._found else "final"
        odds = np.zeros((1 + len(self._supports), *size), np.float32)
        priors, correlations = {}, {}
        for number, (name, found) in enumerate(self._answers(tensor), start=1):
            logits = found[logits_of][:, : content[0], : content[1]]
            odds[number] = enlarged(logits[1] - logits[0], size)
            if not np.isfinite(odds[number]).all():
                raise not_finite(name)
            if "prior" in found:
                priors[name] = self._on_picture(found["prior"], content)
            correlations[name] = [
                self._on_picture(values, content)
                for key, values in found.items()
                if key.startswith("correlations")
            ]
        mask, largest = strongest(odds)
        odds -= largest
        probabilities = np.exp(odds, out=odds)
        probabilities /= probabilities.sum(axis=0)
        return Prediction(mask, probabilities, self.classes, priors, correlations)

    def _answers(self, image: np.ndarray) -> Any:
        """(class, output by name) for each class, in order; the picture is encoded once for those
        that are asked about together, which have equally many supports."""
        waiting: list[str] = []
        for name, shots in self.shots.items():
            if waiting and (
                shots != self.shots[waiting[0]] or (len(waiting) + 1) * shots > TOGETHER
            ):
                yield from self._compared(image, waiting)
                waiting = []
            waiting.append(name)
        yield from self._compared(image, waiting)

    def _compared(self, image: np.ndarray, names: list[str]) -> Any:
        columns = zip(
            *(map(np.concatenate, zip(*self._supports[name], strict=True)) for name in names),
            strict=True,
        )
        given = dict(zip(self._held, map(np.stack, columns), strict=True))
        given |= {"image": image, "picture": np.zeros(len(names), np.int64)}
        found = self._query.run(self._found, given)
        for number, name in enumerate(names):
            yield name, {key: each[number] for key, each in zip(self._found, found, strict=True)}


def strongest(odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the largest of [C, H, W] along C, the first of equals, as uint8 [H, W], and that
    largest; argmax is slow along a first dimension, and its indices take eight times the room."""
    largest, index = odds[0].copy(), np.zeros(odds.shape[1:], np.uint8)
    for number, each in enumerate(odds[1:], start=1):
        np.putmask(index, each > largest, number)
        np.maximum(largest, each, out=largest)
    return index, largest


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of [h, w] with aligned corners, as ``restore`` does with tensors; OpenCV
    has other corners, and fewer levels between two values."""
    for axis, length in enumerate(size):
        high = values.shape[axis] - 1
        if length == high + 1:
            continue
        at = np.arange(length, dtype=np.float64) * (high / max(1, length - 1))
        low = np.minimum(at.astype(np.int64), max(0, high - 1))
        share = (at - low).astype(values.dtype)
        share = share[:, None] if axis == 0 else share
        first = values.take(low, axis)
        second = values.take(np.minimum(low + 1, high), axis)
        values = first + share * (second - first)
    return values


def _threads(number: Any) -> int:
    """The number of threads as onnxruntime takes it: 0 for as many as there are cores."""
    if number is None:
        return 0
    try:
        count = operator.index(number)
    except TypeError:
        count = 0
    if not 1 <= count <= MOST_THREADS:
        raise FewShotError(f"threads is None or from 1 to {MOST_THREADS}, not {number!r:.40}")
    return count


def _session(path: Path, threads: int) -> Any:
    """One of the files, ready to run."""
    if find_spec("onnxruntime") is None:
        raise FewShotError("onnxruntime is missing: pip install -r requirements-onnx.txt")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: what it thinks of a graph is nothing for a user
    try:
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each reason
        raise FewShotError(
            f"{path} cannot be read as an ONNX file by onnxruntime {onnxruntime.__version__}: "
            + _reason(error)
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what onnxruntime says, without the place in its source."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = line.rpartition(" failed:")[2]
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", line)[:200]


def _about(session: Any, path: Path) -> About:
    properties = session.get_modelmeta().custom_metadata_map
    found = about(properties, path)
    check_half(properties, [each.name for each in session.get_inputs()], path)
    return found
