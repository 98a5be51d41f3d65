"""A model as two ONNX files, for machines without PyTorch: ``python -m util.export onnx``.

The files are :mod:`util.weights.onnx_about`'s. They hold the methods' textbook form, for pictures
of any size and any number of supports, and are compared with it as they are written.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.fewshot import FewShotModel, Output, map_tensors
from model.layers import size_of
from util.config import Config
from util.data.transform import MEAN, STD, normalise, object_mask, val_transform
from util.runtime.errors import FewShotError
from util.runtime.files import write_atomically
from util.weights.fingerprint import fingerprint
from util.weights.identity import Use
from util.weights.load import load_model
from util.weights.onnx_about import QUERY, SUPPORT, About
from util.weights.onnx_forms import exportable
from util.weights.onnx_shrink import shrink

OPSET = 18
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # beyond it the files do not hold this model; what rounding makes is below 1e-4
PICTURES, PAIRS, SHOTS = 4, 2, 3  # of the example that is traced: all differ, none is 1
LARGE, SMALL, BETWEEN = 520, 296, 400  # its sides, and another: no map has a single row
OTHER = 150  # side of what is computed besides
Example = tuple[np.ndarray, np.ndarray]  # picture uint8 [H, W, 3] and mask uint8 [H, W]


class Written(NamedTuple):
    """Bytes of each file by its name; the largest difference from PyTorch over the largest value,
    by what it was measured on: always with float32 weights, then as they are stored."""

    sizes: dict[str, int]
    differences: dict[str, float]


class SupportHalf(nn.Module):
    """image [S, 3, H, W], normalised, and mask [S, H, W] -> tensors [S, ...]."""

    def __init__(self, model: FewShotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(named(self.encode(image, mask)).values())

    def encode(self, image: Tensor, mask: Tensor) -> Any:
        """What the model makes of a batch of supports, as a nested tuple."""
        return self.model.prepare_support(self.model.encode_support(image, mask))


class QueryHalf(nn.Module):
    """image [P, 3, H, W], normalised; picture [B], the image of each pair; the supports' tensors
    [B, K, ...] -> final [B, 2, H, W], and meta, prior and correlations where the model has them.

    ``form``: a nested tuple as the model makes it of supports.
    """

    def __init__(self, model: FewShotModel, form: Any) -> None:
        super().__init__()
        self.model = model
        self.form = form

    def forward(self, image: Tensor, picture: Tensor, *supports: Tensor) -> tuple[Tensor, ...]:
        query = self.model.prepare_query(self.model.encode_query(image))
        query = map_tensors(query, lambda tensor: tensor.index_select(0, picture))
        parts = iter(supports)
        support = map_tensors(self.form, lambda _: next(parts))
        return tuple(outputs(self.model.match(query, support, size_of(image))).values())


def named(value: Any, name: str = "support") -> dict[str, Tensor]:
    """The tensors of a nested tuple by their place in it: ``support_stages_1_keys``."""
    if value is None:
        return {}
    if isinstance(value, Tensor):
        return {name: value}
    fields = getattr(value, "_fields", range(1, 1 + len(value)))
    found: dict[str, Tensor] = {}
    for field, item in zip(fields, value, strict=True):
        found |= named(item, f"{name}_{field}" if name else str(field))
    return found


def outputs(out: Output) -> dict[str, Tensor]:
    """What the query's file gives of an output, by name."""
    return named(out._replace(base=None), "")


# -------------------------------------------------------------------------------------- writing


def export_onnx(
    cfg: Config,
    weight: str | Path,
    folder: str | Path,
    weights: str = "float32",
    head: str = "final",
    photographs: Sequence[Example] = (),
) -> Written:
    """Write the model of a weight file as ``support.onnx`` and ``query.onnx`` below ``folder``.

    Args:
        weights: as what they are stored, one of :data:`~util.weights.onnx_about.WEIGHTS`; the
            arithmetic is float32 in any case.
        head: the output that prediction takes where it is not told otherwise, 'final' or 'meta'.
        photographs: pictures with a mask, two or more, to compare on beside random ones.
    Raises:
        FewShotError: a package is missing, ``folder`` cannot be written in, the weights do not
            fit, or the model (most often its backbone) cannot be held by ONNX; there is no file
            then.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise FewShotError(
            f"exporting to ONNX needs {', '.join(missing)}: pip install {' '.join(NEEDED)}"
        )
    _prepare(Path(folder))
    model = load_model(cfg.replace(compute="textbook"), weight, use=Use.PREDICTION)
    what = f"{cfg.arch} over the backbone {cfg.backbone}"
    with torch.no_grad():
        try:
            graphs = _graphs(exportable(model))
        except Exception as error:  # whatever torch meets in a network of others
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise FewShotError(f"{what} cannot be exported to ONNX: {reason[0]:.200}") from error
        found = About(
            cfg.arch, cfg.backbone, fingerprint(model.state_dict()), weights, head,
            cfg.val_size, cfg.resized_val, cfg.ann_type, MEAN, STD,
        )  # fmt: skip
        differences: dict[str, float] = {}
        for kept in dict.fromkeys(("float32", weights)):  # rounding hides what is wrong besides
            about = found._replace(weights=kept)
            data = {name: _finished(graph, about, name) for name, graph in graphs.items()}
            with_them = "" if kept == "float32" else f", weights as {kept}"
            for kind, episodes in _episodes(model, cfg, photographs).items():
                difference = _difference(model, data, episodes)
                _check(f"{what} cannot be exported to ONNX{with_them}", difference, kept)
                differences[f"{kind}{with_them}"] = difference
    for name, content in data.items():
        write_atomically(Path(folder) / name, content)
    return Written({name: len(content) for name, content in data.items()}, differences)


def _prepare(folder: Path) -> None:
    """Make the folder and see that files can be written in it: what follows takes minutes."""
    if os.path.isfile(folder):
        raise FewShotError(f"{folder} is a file: name a folder for {SUPPORT} and {QUERY}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FewShotError(f"cannot write in {folder}: {error.strerror}") from error


def _check(failure: str, difference: float, weights: str) -> None:
    """Raise FewShotError with ``failure`` where results are not finite, or too far from PyTorch's
    for weights that are not rounded."""
    if not math.isfinite(difference):
        raise FewShotError(f"{failure}: results are not finite")
    if weights == "float32" and difference > TOLERANCE:
        raise FewShotError(
            f"{failure}: onnxruntime's results differ from PyTorch's by {difference:.1e}"
        )


def _graphs(model: FewShotModel) -> dict[str, Any]:
    """Both halves as ONNX models, without metadata."""
    sides = _fitting(model, LARGE), _fitting(model, SMALL)
    supports = SupportHalf(model)
    # What differs between two sizes follows the picture.
    forms = [
        supports.encode(torch.zeros(1, 3, *size), torch.ones(1, *size).byte())
        for size in (sides, (_fitting(model, BETWEEN),) * 2)
    ]
    first, second = map(named, forms)
    held = [
        torch.zeros(PAIRS, SHOTS, *tensor.shape[1:], dtype=tensor.dtype)
        for tensor in first.values()
    ]
    axes = [
        [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] != second[name].shape[axis]]
        for name, tensor in first.items()
    ]
    image, mask = torch.zeros(PICTURES, 3, *sides), torch.zeros(PICTURES, *sides).byte()
    arguments = (image, torch.zeros(PAIRS, dtype=torch.int64), *held)
    form = map_tensors(forms[0], lambda _: torch.empty(0))
    small = torch.zeros(1, 3, *[_fitting(model, OTHER)] * 2)
    answer = model(small, small[None], torch.ones_like(small[:, :1]).byte())
    any_image = _any(0, 2, 3)
    return {
        SUPPORT: _graph(
            supports,
            (image, mask),
            (any_image, _any(0, 1, 2)),
            ["image", "mask"],
            list(first),
        ),
        QUERY: _graph(
            QueryHalf(model, form),
            arguments,
            (any_image, _any(0), tuple(_any(0, 1, *(1 + axis for axis in each)) for each in axes)),
            ["image", "picture", *first],
            list(outputs(answer)),
        ),
    }


def _graph(
    half: nn.Module,
    arguments: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    inputs: list[str],
    results: list[str],
) -> Any:
    """One half as an ONNX model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch has to say about itself
        program = torch.export.export(
            half,
            arguments,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        written = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=results,
            opset_version=OPSET,
            verbose=False,
        )
    return written.model_proto


def _any(*axes: int) -> dict[int, Any]:
    """The axes of a tensor that may have any length."""
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def _fitting(model: FewShotModel, side: int) -> int:
    """The first side from ``side`` on that the model takes."""
    for length in range(side, side + 1024):
        try:
            model.check_size(length, length)
        except ValueError:
            continue
        return length
    raise FewShotError(f"{type(model).__name__} takes no pictures of about {side} pixels")


def _finished(graph: Any, about: About, name: str) -> bytes:
    """The file ``name``: metadata, and weights as they are to be stored, in ``graph`` too."""
    import onnx

    onnx.helper.set_model_props(graph, about.properties(name))
    return shrink(graph, about.weights).SerializeToString()


# ------------------------------------------------------------------------------------ comparison


class Episode(NamedTuple):
    """A picture [3, H, W] with K supports, [K, 3, H, W] and [K, H, W], as the model takes them."""

    query: Tensor
    images: Tensor
    masks: Tensor


def _difference(model: FewShotModel, data: dict[str, bytes], episodes: Iterable[Episode]) -> float:
    """The largest difference of any output from PyTorch's, over that output's largest value."""
    import onnxruntime

    support, query = (onnxruntime.InferenceSession(data[name]) for name in (SUPPORT, QUERY))
    held = [each.name for each in support.get_outputs()]
    worst = 0.0
    for episode in episodes:
        expected = outputs(model(*(tensor[None] for tensor in episode)))
        encoded = support.run(
            held, {"image": episode.images.numpy(), "mask": episode.masks.numpy()}
        )
        given = dict(zip(held, (tensor[None] for tensor in encoded), strict=True))
        given["image"] = episode.query[None].numpy()
        given["picture"] = np.zeros(1, np.int64)
        for value, found in zip(expected.values(), query.run(None, given), strict=True):
            worst = max(worst, apart(value.numpy(), found))
    return worst


def apart(expected: np.ndarray, found: np.ndarray) -> float:
    """How far two arrays lie apart: the largest difference over the largest value; of decisions
    that are 0 or 1, as HSNet's K supports make them, the part that differs. Infinitely far where
    either is not finite."""
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    if np.isin(expected, (0, 1)).all():
        return float((expected != found).mean())
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def _episodes(
    model: FewShotModel, cfg: Config, photographs: Sequence[Example]
) -> dict[str, Iterable[Episode]]:
    """What is compared on, by what it is called."""
    random = {"random pictures": _random(model, cfg)}
    return random | ({"photographs": [_fitted(cfg, photographs)]} if photographs else {})


def _random(model: FewShotModel, cfg: Config) -> Iterator[Episode]:
    """One support at the size of use; five at another, one of them empty and one full."""
    generator = torch.Generator().manual_seed(0)
    other = _fitting(model, OTHER + 50), _fitting(model, OTHER)
    for shots, (height, width) in ((1, (cfg.val_size, cfg.val_size)), (5, other)):
        pictures = torch.randn(1 + shots, 3, height, width, generator=generator)
        masks = torch.zeros(shots, height, width, dtype=torch.uint8)
        masks[:, height // 4 : height // 2, width // 3 :] = 1
        masks[:, :, : width // 8] = 255
        for mask, value in zip(masks[1:], (0, 1), strict=False):
            mask.fill_(value)
        yield Episode(pictures[0], pictures[1:], masks)


def _fitted(cfg: Config, photographs: Sequence[Example]) -> Episode:
    """The last photograph with the others as supports."""
    fit = val_transform(cfg)
    pairs = [fit(*photograph) for photograph in photographs]
    *images, query = (normalise(image) for image, _ in pairs)
    masks = [torch.from_numpy(object_mask(mask, 1, cfg.ann_type)) for _, mask in pairs[:-1]]
    return Episode(query, torch.stack(images), torch.stack(masks))
