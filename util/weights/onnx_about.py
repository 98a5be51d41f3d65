"""What the two ONNX files of a model say about themselves; PyTorch is not needed to read it.

``support.onnx``  image [S, 3, H, W], mask [S, H, W] -> what matching needs of each support
``query.onnx``    image [P, 3, H, W], picture [B], that of K supports [B, K, ...] -> logits, maps
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    def properties(self) -> dict[str, str]:
        """As ONNX keeps them: text, here JSON."""
        return {"format": FORMAT} | {k: json.dumps(v) for k, v in self._asdict().items()}


def about(properties: Mapping[str, str], name: object) -> About:
    """The metadata of the file ``name``. Raises FewShotError where it is no export."""
    if properties.get("format") != FORMAT:
        raise FewShotError(f"{name} was not written by util.export onnx")
    values: dict[str, Any] = {}
    for field in About._fields:
        try:
            values[field] = json.loads(properties[field])
        except (KeyError, ValueError) as error:
            raise FewShotError(f"{name} is a damaged export: {field} is missing") from error
    return About(**values)
