"""Segment your own pictures: encode the supports once, then predict any number of pictures.

predictor = FewShotPredictor.from_config(load_config("config/..."), weight="best.pth")
predictor.add_support("mug1.jpg", "mug1.png", "mug")
predictor.add_support("desk.jpg", box=(40, 60, 200, 180), class_name="mug")
result = predictor.predict("kitchen.jpg")
result.mask            uint8 [H, W], 0 = background, 1.. = predictor.classes in order
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.fewshot import FewShotModel, Output, join_shots
from model.hdmnet import HDMNet
from model.layers import size_of
from model.presence import Description, describe, given_presence, look_at
from util.config import Config
from util.data.transform import normalise, restore, val_transform
from util.predict.base import Prediction, Predictor, not_finite
from util.runtime.errors import FewShotError, told_of
from util.runtime.processor import precision
from util.weights.checkpoint import read_checkpoint
from util.weights.identity import Use
from util.weights.load import SHIPPED_HEAD, load_model, presence_of, shipped, weight_file

if TYPE_CHECKING:
    from util.predict.base import Picture


def strongest(odds: Tensor, without: Collection[int] = ()) -> Tensor:
    """Index of the largest of [C, H, W] along C, the first of equals: uint8 [H, W].

    The same as argmax, which is many times slower along a first dimension. ``without``: of these
    none is taken.
    """
    best, index = odds[0].clone(), torch.zeros_like(odds[0], dtype=torch.uint8)
    for number in range(1, len(odds)):
        if number in without:
            continue
        index.masked_fill_(odds[number] > best, number)
        torch.maximum(best, odds[number], out=best)
    return index


def softmax_(odds: Tensor) -> Tensor:
    """Softmax of [C, H, W] along C, in place: pictures of many megapixels need the room."""
    odds.sub_(odds.amax(dim=0)).exp_()
    return odds.div_(odds.sum(dim=0))


class _Support(NamedTuple):
    """A support prepared for matching, and its object as presence describes it."""

    encoding: Any
    description: Description | None


class FewShotPredictor(Predictor):
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
        presence: what tells whether a picture shows a class at all (``python -m util.presence``).
        least_presence: below it a class is not found; None: the threshold fitted with it, 0:
            probabilities and masks are the model's own, whatever the presence.
    """

    def __init__(
        self,
        model: FewShotModel,
        cfg: Config,
        device: str | torch.device | None = None,
        output: str = "final",
        presence: Any = None,
        least_presence: float | None = None,
    ) -> None:
        _expect(Config, cfg, "cfg is what load_config returns")
        super().__init__(val_transform(cfg), cfg.ann_type, output)
        _expect(torch.nn.Module, model, "model is what build_model returns")
        if not isinstance(model, FewShotModel):
            raise FewShotError(f"{cfg.arch} is a base learner; prediction needs a few-shot model")
        with told_of("val_size"):
            model.check_size(cfg.val_size, cfg.val_size)
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.model.derive()
        self.cfg = cfg
        if presence is not None and (
            not isinstance(model, HDMNet) or len(presence.centre) != model.encoder.channels[2]
        ):
            raise FewShotError(f"the presence is not of this {cfg.arch} with {cfg.backbone}")
        self.presence: Any = None if presence is None else presence.to(self.device)
        self.least_presence = least_presence
        if presence is not None and least_presence is None:
            self.least_presence = float(presence.threshold)

    @classmethod
    def from_config(
        cls,
        cfg: Config,
        weight: str | Path | None = None,
        device: str | torch.device | None = None,
        output: str = "final",
        least_presence: float | None = None,
    ) -> FewShotPredictor:
        """Build the model of ``cfg`` and load its weights, and what tells presence with them.

        Args:
            weight: a checkpoint of this project or in the released layout; None takes the one
                that ``test.py`` would take for this configuration.
        Raises:
            FewShotError: no such file, or it does not fit the configuration, or was trained with
                other options of the network.
        """
        _expect(Config, cfg, "cfg is what load_config returns")
        _expect(str | Path | None, weight, "weight is the path of a checkpoint")
        file = weight_file(cfg, weight)
        content = read_checkpoint(file)
        model = load_model(cfg, file, use=Use.PREDICTION, content=content)
        return cls(model, cfg, device, output, presence_of(content, file), least_presence)

    @classmethod
    def shipped(
        cls, device: str | torch.device | None = None, least_presence: float | None = None
    ) -> FewShotPredictor:
        """The model for photographs that comes with the project, ready for supports.

        Raises:
            FewShotError: the package that carries its encoder is not installed.
        """
        return cls.from_config(*shipped(), device, SHIPPED_HEAD, least_presence)

    def predict(self, image: Picture) -> Prediction:
        """Segment one picture with all classes at once.

        The query is encoded once and matched with each class. With one class the mask is the
        model's own decision. With several, each class gives the log-odds z_c of object against
        background; probabilities are softmax(0, z_1, ..., z_C), so that background wins where every
        class alone would say background, and elsewhere the class that is surest. Where presence is
        asked, the probability of each place is multiplied by it, though what is found stays object
        where it is surest (:func:`~model.presence.given_presence`), and a class whose presence is
        below the threshold is in no mask; its probabilities are told all the same.

        Args:
            image: as for :meth:`add_support`.
        Raises:
            FewShotError: no support yet, no picture, or an output that is not finite.
        """
        pixels = self._queried(image)
        size = pixels.shape[:2]
        tensor = self._tensor(self._fit(pixels)[0])
        content = self._fit.content(*size)
        with torch.inference_mode(), precision(self.cfg.amp, self.device):
            query = self.model.prepare_query(self.model.encode_query(tensor))
            odds = torch.zeros(1 + len(self._supports), *size, device=self.device)
            priors, correlations, presence = {}, {}, {}
            absent: list[str] = []
            for number, (name, supports) in enumerate(self._supports.items(), start=1):
                joined = join_shots([[support.encoding for support in supports]])
                out = self.model.match(query, joined, size_of(tensor))
                logits = restore(self._logits(out), content, size)[0]
                torch.sub(logits[1], logits[0], out=odds[number])
                if not odds[number].isfinite().all():
                    raise not_finite(name)
                if self.presence is not None:
                    look = look_at(query, out, content)
                    known = [support.description for support in supports]
                    presence[name] = float(self.presence(look, known))
                    if self.least_presence:
                        found = presence[name] >= self.least_presence
                        odds[number] = given_presence(odds[number], presence[name], found)
                        absent += [name] * (not found)
                if out.prior is not None:
                    priors[name] = self._over_picture(out.prior[0], content)
                correlations[name] = [self._over_picture(c[0], content) for c in out.correlations]
            without = [number for number, name in enumerate(self.classes, 1) if name in absent]
            mask = strongest(odds, without).cpu().numpy()
            probabilities = softmax_(odds).cpu().numpy()
        return Prediction(
            mask, probabilities, self.classes, priors, correlations, presence, tuple(absent)
        )

    def with_same_supports(self) -> FewShotPredictor:
        """Another predictor with the same model and these supports; later ones are its own."""
        other = self.without_supports()
        other._supports = {name: list(supports) for name, supports in self._supports.items()}
        return other

    def _encode(self, image: np.ndarray, mask: np.ndarray) -> Any:
        mask_tensor = torch.from_numpy(mask)[None]
        if not self.model.host_masks:
            mask_tensor = mask_tensor.to(self.device)
        with torch.inference_mode(), precision(self.cfg.amp, self.device):
            tensor = self._tensor(image)
            encoding = self.model.encode_support(tensor, mask_tensor)
            encoding = self.model.prepare_support(encoding)
            description = None
            if self.presence is not None:
                region = (mask_tensor == 1).to(self.device)
                description = describe(self.model.encode_query(tensor), region)
        return _Support(encoding, description)

    def _tensor(self, image: np.ndarray) -> Tensor:
        return normalise(image)[None].to(self.device)

    def _logits(self, out: Output) -> Tensor:
        return out.meta if self.output == "meta" and out.meta is not None else out.final

    def _over_picture(self, values: Tensor, content: tuple[int, int]) -> np.ndarray:
        return self._on_picture(values.float().cpu().numpy(), content)


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
