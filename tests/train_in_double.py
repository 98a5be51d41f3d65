"""train.py in float64, where the order of a sum is too small a matter for AdamW to enlarge."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import EpisodicStage
from util.config import Config
from util.runtime.errors import run
from util.train.loop import run_stage


class DoubleStage(EpisodicStage):
    def __init__(self, cfg: Config, device: torch.device) -> None:
        super().__init__(cfg, device)
        self.model.double()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        return super().forward(batch)


if __name__ == "__main__":
    run(lambda: run_stage(DoubleStage, "in float64"))
