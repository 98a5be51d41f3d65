"""What the two ONNX files of a model say about themselves; PyTorch is not needed to read it.

``support.onnx``  image [S, 3, H, W], mask [S, H, W] -> what matching needs of each support
``query.onnx``    image [P, 3, H, W], picture [B], that of K supports [B, K, ...] -> logits, maps
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from util.runtime.errors import FewShotError

FORMAT = "fewshot-onnx-1"
SUPPORT, QUERY = "support.onnx", "query.onnx"
WEIGHTS = ("float32", "float16", "int8")


class About(NamedTuple):
    """The metadata of a file.

    model: the fingerprint of all weights, the same in both files; weights: one of
    :data:`WEIGHTS`, as which they are stored; head: 'final' or 'meta', the output that prediction
    takes; val_size, resized_val, ann_type: as in the configuration; mean, std: of ImageNet, for RGB
    values 0..255.
    """

    arch: str
    backbone: str
    model: str
    weights: str
    head: str
    val_size: int
    resized_val: bool
    ann_type: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def properties(self, name: str) -> dict[str, str]:
        """Of the file ``name``, which of the two it is among them; ONNX keeps text, here JSON."""
        values = {"half": Path(name).stem} | self._asdict()
        return {"format": FORMAT} | {k: json.dumps(v) for k, v in values.items()}


def _three(value: Any) -> bool:
    """Whether this is a list of three numbers, as mean and deviation of RGB are."""
    numbers = type(value) is list and all(type(each) in (int, float) for each in value)
    return numbers and len(value) == 3 and all(abs(each) < 1e6 for each in value)


# Field -> whether a value may be it; of the others any text.
FITS: dict[str, Callable[[Any], bool]] = {
    "half": lambda value: value in ("support", "query"),
    "head": lambda value: value in ("final", "meta"),
    "val_size": lambda value: type(value) is int and value > 0,
    "resized_val": lambda value: type(value) is bool,
    "ann_type": lambda value: value in ("mask", "bbox"),
    "mean": _three,
    "std": lambda value: _three(value) and min(value) > 0,
}


def both(folder: str | os.PathLike[str]) -> list[Path]:
    """The two files of an export. Raises FewShotError where one is missing."""
    paths = [Path(folder) / name for name in (SUPPORT, QUERY)]
    for path in paths:
        if not os.path.isfile(path):
            raise FewShotError(f"there is no {path}: python -m util.export onnx writes it")
    return paths


def about(properties: Mapping[str, str], name: object) -> About:
    """The metadata of the file ``name``. Raises FewShotError where it is no export."""
    if properties.get("format") != FORMAT:
        raise FewShotError(f"{name} was not written by util.export onnx")
    return About(**{field: _value(properties, field, name) for field in About._fields})


def check_half(properties: Mapping[str, str], inputs: Collection[str], path: Path) -> None:
    """Raise FewShotError where ``path`` holds the other half of an export, told by its inputs
    where it does not say which it is."""
    half = "query" if "picture" in inputs else "support"
    if "half" in properties:
        half = _value(properties, "half", path)
    if half != path.stem:
        raise FewShotError(f"{path} holds what belongs in {half}.onnx: export both files anew")


def _value(properties: Mapping[str, str], field: str, name: object) -> Any:
    if field not in properties:
        raise FewShotError(f"{name} is a damaged export: {field} is missing")
    text = properties[field]
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not FITS.get(field, lambda value: isinstance(value, str))(value):
        raise FewShotError(f"{name} is a damaged export: {field} cannot be {text:.40}")
    return value
