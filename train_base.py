"""Stage 1: the base learner (PSPNet) learns the base classes of a fold.

    python train_base.py --config config/pascal/pascal_split0_resnet50_base.yaml
    torchrun --nproc_per_node 4 train_base.py --config ... --resume auto

Writes checkpoints (stage 2 starts from ``best.pth``), log and TensorBoard events to
``exp/<data set>/PSPNet/split<i>/<backbone>``. Exit status: see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model import build_model
from model.fewshot import Loss
from model.pspnet import PSPNet
from util.config import Config
from util.data.dataset import SegmentationDataset
from util.data.index import build_index
from util.evaluate.base import base_counts
from util.runtime import distributed
from util.runtime.errors import run, told_of
from util.train.log import RunLog
from util.train.loop import run_stage
from util.train.stage import Score, Stage
from util.weights.pretrained import load_pretrained


class BaseStage(Stage):
    """Crops with the base classes' numbers; validated on whole pictures of the validation list."""

    target = "mask"

    def __init__(self, cfg: Config, device: torch.device) -> None:
        with told_of(cfg.source):
            model = build_model(cfg)
            if not isinstance(model, PSPNet):
                raise ValueError(
                    f"arch {cfg.arch} is not a base learner; train_base.py takes the *_base.yaml "
                    "files, train.py the others"
                )
            model.check_size(cfg.train_h, cfg.train_w)
            if cfg.evaluate:
                model.check_size(cfg.val_size, cfg.val_size)
        self.start = load_pretrained(model, cfg)
        train_index, self.val_index = distributed.on_main(
            lambda: (build_index(cfg, "train"), build_index(cfg, "base") if cfg.evaluate else None)
        )
        dataset = SegmentationDataset(cfg, train_index)
        model.to(device, memory_format=torch.channels_last)  # the quicker layout for convolutions
        super().__init__(cfg, device, model, dataset)
        self.about = f"{cfg.num_base} base classes, {len(dataset):,} pictures an epoch"

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Loss]:
        return self.model.losses(self.model(batch["image"]), batch["mask"])

    def validate(self, epoch: int, log: RunLog, heed: Callable[[], None]) -> Score:
        counts = base_counts(self.model, self.cfg, self.val_index, self.device, heed)
        miou, whole = counts.miou()[0], counts.miou(background=True)[0]
        told = f"mIoU {miou:.4f} over base classes, {whole:.4f} with background"
        return Score(miou, {"miou_base": miou, "miou_with_background": whole}, told)


def main() -> None:
    run_stage(BaseStage, __doc__.split("\n")[0])


if __name__ == "__main__":
    run(main)
