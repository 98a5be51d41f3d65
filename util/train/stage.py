"""What a stage of training says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from util.config import Config
from util.train.log import RunLog
from util.weights.pretrained import Start


class Score(NamedTuple):
    """A validation: the number that chooses the best checkpoint (NaN: none), what the log shows."""

    value: float
    scalars: Mapping[str, float | None]
    told: str


class Stage(nn.Module):
    """What one stage trains. Its forward takes a batch on ``device`` and gives the losses by name,
    as ``model.losses`` does: what DDP and torch.compile must see.

    model is on ``device`` and has the weights that training starts from, of which ``start`` tells;
    dataset: items as dicts of tensors, with ``files``. target: which entry of a batch holds the
    labels (255 = ignored); about, notes: what the log says first.
    """

    target: str
    about: str
    start: Start = Start()
    notes: Sequence[str] = ()

    def __init__(
        self, cfg: Config, device: torch.device, model: nn.Module, dataset: Dataset
    ) -> None:
        super().__init__()
        self.cfg, self.device, self.model, self.dataset = cfg, device, model, dataset

    def validate(self, epoch: int, log: RunLog, heed: Callable[[], None]) -> Score:
        """Score the model; every process calls it. Only with ``evaluate``. ``heed`` is called from
        time to time; it raises Interrupted when the run shall end."""
        raise TypeError(f"{type(self).__name__} must define validate")

    def validates_halfway(self, epoch: int) -> bool:
        """Whether to validate in the middle of ``epoch`` as well."""
        return False

    def show(self, log: RunLog, iteration: int) -> None:
        """Pictures for the log after an epoch's validation, in the main process."""
