"""train.py in float64, where the order of a sum is too small a matter for AdamW to enlarge."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from util.errors import run

build_model, EpisodeStep = train.build_model, train.EpisodeStep


class DoubleStep(EpisodeStep):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        return super().forward(batch)


train.build_model = lambda cfg: build_model(cfg).double()
train.EpisodeStep = DoubleStep

if __name__ == "__main__":
    run(train.main)
