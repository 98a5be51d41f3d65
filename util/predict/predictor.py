"""Segment your own pictures: encode the supports once, then predict any number of pictures.

predictor = FewShotPredictor.from_config(load_config("config/..."), weight="best.pth")
predictor.add_support("mug1.jpg", "mug1.png", "mug")
predictor.add_support("desk.jpg", box=(40, 60, 200, 180), class_name="mug")
result = predictor.predict("kitchen.jpg")
result.mask            uint8 [H, W], 0 = background, 1.. = predictor.classes in order
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.fewshot import FewShotModel, Output, join_shots
from model.layers import size_of
from util.config import Config
from util.data.annotations import annotation_file, object_on
from util.data.held import object_in, pixels_of, source_of
from util.data.reading import fit_pair
from util.data.shapes import box_mask, polygon_mask
from util.data.transform import (
    normalise,
    object_mask,
    restore,
    val_transform,
)
from util.evaluate import AMP
from util.predict.supports import supports_in
from util.runtime.errors import FewShotError, told_of
from util.weights.identity import Use
from util.weights.load import load_model, weight_file

Picture = np.ndarray | Tensor | Image.Image | str | bytes | os.PathLike
MAX_CLASSES = 254  # 0 is background and 255 means ignored


class Prediction(NamedTuple):
    """What the model sees in one picture of H × W pixels, with C classes.

    mask: uint8 [H, W], 0 = background, i = ``classes[i - 1]``.
    probabilities: float32 [1 + C, H, W], background first; they sum to 1 at every pixel.
    classes: the C class names.
    priors: class -> float32 [2, h, w] in [-1, 1] over the picture; empty for models without one.
    correlations: class -> one float32 [h_l, w_l] over the picture a stage, finest first.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    priors: dict[str, np.ndarray]
    correlations: dict[str, list[np.ndarray]]


def strongest(odds: Tensor) -> Tensor:
    """Index of the largest of [C, H, W] along C, the first of equals: uint8 [H, W].

    The same as argmax, which is many times slower along a first dimension.
    """
    best, index = odds[0].clone(), torch.zeros_like(odds[0], dtype=torch.uint8)
    for number in range(1, len(odds)):
        index.masked_fill_(odds[number] > best, number)
        torch.maximum(best, odds[number], out=best)
    return index


def softmax_(odds: Tensor) -> Tensor:
    """Softmax of [C, H, W] along C, in place: pictures of many megapixels need the room."""
    odds.sub_(odds.amax(dim=0)).exp_()
    return odds.div_(odds.sum(dim=0))


class FewShotPredictor:
    """A trained few-shot model, ready for pictures of any size.

    Any number of supports a class works without retraining. Where the model holds a network that
    was trained for one number of shots (HDMNet's K-shot reweighting), it is used for exactly that
    number; for every other number the supports count alike.

    Args:
        model: a trained few-shot model; it is moved to ``device`` and put in evaluation mode.
        cfg: the configuration that belongs to it (input size, ``resized_val``, ``ann_type``).
        device: 'cpu', 'cuda', 'cuda:1', ...; None takes a GPU when there is one.
        output: 'final', or 'meta' for the prediction without the base learner. The base learner
            suppresses the classes that it was trained on: use 'meta' to look for one of those.
    """

    def __init__(
        self,
        model: FewShotModel,
        cfg: Config,
        device: str | torch.device | None = None,
        output: str = "final",
    ) -> None:
        if output not in ("final", "meta"):
            raise FewShotError(f"output is 'final' or 'meta', not '{output}'")
        _expect(Config, cfg, "cfg is what load_config returns")
        _expect(torch.nn.Module, model, "model is what build_model returns")
        if not isinstance(model, FewShotModel):
            raise FewShotError(f"{cfg.arch} is a base learner; prediction needs a few-shot model")
        with told_of("val_size"):
            model.check_size(cfg.val_size, cfg.val_size)
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.model.derive()
        self.cfg = cfg
        self.output = output
        self._fit = val_transform(cfg)
        self._supports: dict[str, list[Any]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their first support: label i is classes[i - 1]."""
        return tuple(self._supports)

    @property
    def shots(self) -> dict[str, int]:
        """Number of supports of each class."""
        return {name: len(supports) for name, supports in self._supports.items()}

    @classmethod
    def from_config(
        cls,
        cfg: Config,
        weight: str | Path | None = None,
        device: str | torch.device | None = None,
        output: str = "final",
    ) -> FewShotPredictor:
        """Build the model of ``cfg`` and load its weights.

        Args:
            weight: a checkpoint of this project or in the released layout; None takes the one
                that ``test.py`` would take for this configuration.
        Raises:
            FewShotError: no such file, or it does not fit the configuration, or was trained with
                other options of the network.
        """
        _expect(Config, cfg, "cfg is what load_config returns")
        _expect(str | Path | None, weight, "weight is the path of a checkpoint")
        model = load_model(cfg, weight_file(cfg, weight), use=Use.PREDICTION)
        return cls(model, cfg, device, output)

    def add_support(
        self,
        image: Picture,
        mask: Picture | None = None,
        class_name: str = "object",
        *,
        label: int | None = None,
        box: Sequence[float] | None = None,
        polygons: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add one annotated picture of a class; it is encoded now and never again.

        Args:
            image: uint8 RGB, RGBA or grey [H, W, 3 | 4] or [H, W], a tensor of such or [3, H, W],
                a Pillow image, or the path of a picture (EXIF rotation is applied).
            mask: bool or whole numbers [H, W] (see :func:`binary_mask` for the values), a tensor
                or Pillow image of such, or the path of a mask or of labelme's or COCO's JSON.
            class_name: the class; classes are numbered in the order of their first support.
            label: which value of a labelled mask is the object, a whole number.
            box: instead of a mask, (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
            polygons: instead of a mask, COCO-style polygons, each ``[x1, y1, x2, y2, ...]``.
        Raises:
            FewShotError: another type than these, unreadable file, sizes that differ, no object,
                or an object too small to be left at the network's input size.
        """
        if sum(given is not None for given in (mask, box, polygons)) != 1:
            raise FewShotError("a support needs exactly one of mask, box and polygons")
        if not isinstance(class_name, str) or not class_name.strip():
            raise FewShotError(f"a class name is text that is not empty, not {class_name!r:.40}")
        if len(self._supports) == MAX_CLASSES and class_name not in self._supports:
            raise FewShotError(f"more than {MAX_CLASSES} classes do not fit a mask of bytes")
        label = _label(label, mask)
        image = source_of(image, "a picture")
        named = f"'{image}'" if isinstance(image, Path) else None
        what = f"support {named}" if named else f"a support of class '{class_name}'"
        if mask is not None:
            mask = source_of(mask, f"the mask of {what}")
            if isinstance(mask, Path) and mask.suffix.lower() == ".json":
                if not isinstance(image, Path) or label is not None:
                    raise FewShotError(f"{mask} goes with the path of its picture, and no label")
                mask = object_on(image, annotation_file(mask), class_name)[0]
            name = f"mask '{mask}'" if isinstance(mask, Path) else f"the mask of {what}"
            pixels, annotation = fit_pair(
                partial(pixels_of, image), partial(object_in, mask, label, name), what, name
            )
        else:
            pixels = pixels_of(image)
            size = pixels.shape[:2]
            try:
                if box is not None:
                    annotation = box_mask(size, box)
                elif polygons is not None:
                    annotation = polygon_mask(size, polygons)
            except FewShotError as error:
                raise FewShotError(f"{what}: {error}") from error
        small = self._fit(pixels, annotation)
        if not (small[1] == 1).any():
            raise FewShotError(
                f"{what}: the object ({int((annotation == 1).sum())} pixels) vanishes at the "
                f"network's input size of {self.cfg.val_size}; crop the picture around it"
            )
        mask_tensor = torch.from_numpy(object_mask(small[1], 1, self.cfg.ann_type))[None]
        if not self.model.host_masks:
            mask_tensor = mask_tensor.to(self.device)
        with torch.inference_mode(), self._precision():
            encoding = self.model.encode_support(self._tensor(small[0]), mask_tensor)
            encoding = self.model.prepare_support(encoding)
        self._supports.setdefault(class_name, []).append(encoding)

    def add_supports(self, path: str | Path) -> list[str]:
        """Add all that a folder, or an annotation file of labelme or COCO, holds.

        Returns:
            Sentences on what was left out, see :func:`util.predict.supports.supports_in`.
        """
        read = cache(annotation_file)
        found, left_out = supports_in(Path(path), read)
        for support in found:
            annotation = support.annotation(read)
            self.add_support(support.image, class_name=support.class_name, **annotation)
        return left_out

    def remove_support(self, class_name: str) -> None:
        """Forget the last support of a class; with its only one goes the class."""
        if self.shots.get(class_name, 0) > 1:
            self._supports[class_name].pop()
        else:
            self.remove_class(class_name)

    def remove_class(self, class_name: str) -> None:
        """Forget a class and its supports; the classes after it move up by one label."""
        if class_name not in self.classes:
            raise FewShotError(f"no class '{class_name}'; there are: {', '.join(self.classes)}")
        del self._supports[class_name]

    def reset(self) -> None:
        """Forget every support."""
        self._supports.clear()

    def predict(self, image: Picture) -> Prediction:
        """Segment one picture with all classes at once.

        The query is encoded once and matched with each class. With one class the mask is the
        model's own decision. With several, each class gives the log-odds z_c of object against
        background; probabilities are softmax(0, z_1, ..., z_C), so that background wins where every
        class alone would say background, and elsewhere the class that is surest.

        Args:
            image: as for :meth:`add_support`.
        Raises:
            FewShotError: no support yet, no picture, or an output that is not finite.
        """
        if not self._supports:
            raise FewShotError("no support yet: call add_support before predict")
        pixels = pixels_of(source_of(image, "a picture"))
        size = pixels.shape[:2]
        tensor = self._tensor(self._fit(pixels)[0])
        content = self._fit.content(*size)
        with torch.inference_mode(), self._precision():
            query = self.model.prepare_query(self.model.encode_query(tensor))
            odds = torch.zeros(1 + len(self._supports), *size, device=self.device)
            priors, correlations = {}, {}
            for number, (name, supports) in enumerate(self._supports.items(), start=1):
                joined = join_shots([supports])
                out = self.model.match(query, joined, size_of(tensor))
                logits = restore(self._logits(out), content, size)[0]
                torch.sub(logits[1], logits[0], out=odds[number])
                if not odds[number].isfinite().all():
                    raise FewShotError(
                        f"the model's output for class '{name}' is not finite; the weights are "
                        "damaged, or amp: fp16 overflows"
                    )
                if out.prior is not None:
                    priors[name] = self._over_picture(out.prior[0], content)
                correlations[name] = [self._over_picture(c[0], content) for c in out.correlations]
            mask = strongest(odds).cpu().numpy()
            probabilities = softmax_(odds).cpu().numpy()
        return Prediction(mask, probabilities, self.classes, priors, correlations)

    def without_supports(self) -> FewShotPredictor:
        """Another predictor with the same model (shared, not copied) and no supports yet."""
        other = copy.copy(self)
        other._supports = {}
        return other

    def _tensor(self, image: np.ndarray) -> Tensor:
        return normalise(image)[None].to(self.device)

    def _logits(self, out: Output) -> Tensor:
        return out.meta if self.output == "meta" and out.meta is not None else out.final

    def _over_picture(self, values: Tensor, content: tuple[int, int]) -> np.ndarray:
        """A map [..., h, w] over the network's input without the part that shows padding."""
        kept = [
            math.ceil(length * part / self.cfg.val_size)
            for length, part in zip(values.shape[-2:], content, strict=True)
        ]
        return values[..., : kept[0], : kept[1]].float().cpu().numpy()

    def _precision(self) -> torch.autocast:
        dtype = AMP[self.cfg.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _device(name: str | torch.device | None) -> torch.device:
    """The device of that name, or the best there is; FewShotError when it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise FewShotError(f"device '{name}' cannot be used here ({reason})") from error
    return device


def _expect(kind: Any, value: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise FewShotError(f"{what}, not {type(value).__name__}")


def _label(label: Any, mask: Any) -> int | None:
    """The value of a labelled mask that the caller asks for, checked."""
    if label is None:
        return None
    if mask is None:
        raise FewShotError("label says which value of a mask is the object; there is no mask")
    try:
        return operator.index(label)
    except TypeError as error:
        raise FewShotError(f"label is a whole number, not {label!r:.40}") from error
