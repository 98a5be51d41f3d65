"""What steps need of time and disk, from one step of each network, measured here and now."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model import build_model
from model.fewshot import FewShotModel, split_shots, total
from model.layers import size_of
from model.registry import requirements
from util.config import Config
from util.config.schema import ROLES
from util.data.sources import find_pairs
from util.reproduce.steps import Step
from util.runtime.errors import FewShotError
from util.runtime.processor import precision

SLOTS = {"sgd": 1, "adam": 2, "adamw": 2}  # numbers that an optimiser keeps beside each it learns
_OBJECT = 0.1  # share of the object in the support that is measured with
_NETWORK = (*ROLES["encoder"], *ROLES["network"], "num_base", "shot", "amp", "compute")


class Need(NamedTuple):
    """seconds: None where the data that decide it are not here, as ``why`` says; bytes of disk."""

    seconds: float | None
    disk: int
    why: str = ""


class Estimator:
    """Measures each network once, on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[Any, Any] = {}

    def need(self, step: Step) -> Need:
        """Of one step; of costs and figures none."""
        if step.setting is None or step.kind == "measure":
            return Need(0.0, 0)
        cfg = step.setting.cfg
        try:
            validated = len(find_pairs(cfg, cfg.fold, "val").pairs)
            if step.kind == "test":
                return Need(self.evaluation(cfg, cfg.episodes * cfg.runs, validated), 100_000)
            trained = len(find_pairs(cfg, cfg.fold, "train").pairs)
        except FewShotError as error:
            return Need(None, self.disk(cfg) if step.kind != "test" else 0, str(error))
        return Need(self.training(cfg, trained, validated), self.disk(cfg))

    def training(self, cfg: Config, pictures: int, validated: int) -> float:
        """Seconds of all steps and validations, were every listed picture used in every epoch."""
        steps = max(1, pictures // (cfg.batch_size * cfg.accumulate))
        iterations = min(cfg.max_iterations or cfg.epochs * steps, cfg.epochs * steps)
        validations = max(1, iterations // steps) if cfg.evaluate else 0
        seconds = iterations * self._of("step", cfg) * cfg.batch_size * cfg.accumulate
        if requirements(cfg.arch).is_base:
            return seconds + validations * validated * self._of("encode", cfg)
        # What depends on the frozen encoder is kept from one validation to the next.
        first = self.evaluation(cfg, cfg.episodes, validated)
        later = cfg.episodes * self._of("match", cfg)
        return seconds + min(1, validations) * first + max(0, validations - 1) * later

    def evaluation(self, cfg: Config, episodes: int, pictures: int) -> float:
        """Seconds of ``episodes`` about so many pictures, each encoded once a role."""
        encodings = min(episodes * (1 + cfg.shot), 2 * pictures)
        return encodings * self._of("encode", cfg) + episodes * self._of("match", cfg)

    def disk(self, cfg: Config) -> int:
        """Bytes of a training's checkpoints: last, best, and those that stay."""
        with torch.device("meta"):
            model = build_model(cfg)
        weights = sum(t.numel() for t in model.state_dict().values())
        groups = (p for group in model.param_groups(cfg) for p in group["params"])
        learned = sum(p.numel() for p in groups if p.requires_grad)
        files = 2 + min(cfg.keep, cfg.epochs // cfg.save_freq)
        return 4 * files * (weights + SLOTS[cfg.optimizer] * learned)

    def _of(self, what: str, cfg: Config) -> float:
        """Seconds of a picture's or an episode's share: 'step', 'encode' or 'match'."""
        side = cfg.train_h if what == "step" else cfg.val_size
        key = (what, side, *(str(getattr(cfg, name)) for name in _NETWORK))
        if key not in self._seconds:
            self._seconds |= self._measured(key, cfg, side)
        return self._seconds[key]

    def _measured(self, key: tuple[Any, ...], cfg: Config, side: int) -> dict[Any, float]:
        model = build_model(cfg).to(self.device)
        if key[0] == "step":
            return {key: self._step(model, cfg, side)}
        model.eval()
        image = torch.randn(1, 3, side, side, device=self.device)
        with torch.inference_mode(), precision(cfg.amp, self.device):
            if not isinstance(model, FewShotModel):
                return {key: self._seconds_of(partial(model, image))}
            model.derive()
            mask = square(1, side) if model.host_masks else square(1, side).to(self.device)
            support = model.encode_support(image, mask)
            supports = split_shots(model.prepare_support(support), 1)
            query = model.prepare_query(model.encode_query(image))
            encode = partial(model.encode_support, image, mask)
            match = partial(model.match, query, supports, size_of(image))
            return {
                ("encode", *key[1:]): self._seconds_of(encode),
                ("match", *key[1:]): self._seconds_of(match) * cfg.shot,
            }

    def _step(self, model: nn.Module, cfg: Config, side: int) -> float:
        """Seconds of forward and backward, for each item of the batch."""
        if not isinstance(model, FewShotModel):
            images = torch.randn(2, 3, side, side, device=self.device)
            target = torch.zeros(2, side, side, dtype=torch.long, device=self.device)
            model.train()
            return self._seconds_of(lambda: self._backward(cfg, lambda: model.losses(
                model(images), target))) / 2  # fmt: skip
        model.derive()
        model.train()
        shots = getattr(model, "train_shot", cfg.shot)
        query = torch.randn(1, 3, side, side, device=self.device)
        images = torch.randn(1, shots, 3, side, side, device=self.device)
        masks = square(shots, side)[None]
        number = torch.zeros(1, dtype=torch.long, device=self.device)
        target = square(1, side).long().to(self.device)

        def losses() -> Any:
            out = model(query, images, masks.to(self.device), number)
            return model.losses(out, target, torch.zeros_like(target))

        return self._seconds_of(lambda: self._backward(cfg, losses))

    def _backward(self, cfg: Config, losses: Callable[[], Any]) -> None:
        with precision(cfg.amp, self.device):
            terms = losses()
        total(terms).backward()

    def _seconds_of(self, function: Callable[[], object]) -> float:
        """Of the second of two calls."""
        for _ in range(2):
            begin = time.perf_counter()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


def square(count: int, side: int) -> Tensor:
    """uint8 masks [count, side, side] with a square object, in host memory."""
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    edge = round(side * _OBJECT**0.5)
    masks[:, side // 4 : side // 4 + edge, side // 4 : side // 4 + edge] = 1
    return masks


def size(count: int) -> str:
    """'1.2 GB', '300 MB'."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def free_disk(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free
