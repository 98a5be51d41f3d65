"""Stage 2: episodic training of a few-shot model (HDMNet, HSNet).

    python train.py --config config/pascal/pascal_split0_resnet50.yaml
    torchrun --nproc_per_node 4 train.py --config ... --opts shot 5 --resume auto

Writes checkpoints (``last.pth``, ``best.pth``, ``epoch_N.pth``), log and TensorBoard events to
``exp/<data set>/<arch>/split<i>/<backbone>/<shot>shot``. Exit status: see docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model import build_model
from model.fewshot import FewShotModel, Loss
from util.config import Config
from util.data.dataset import EpisodeDataset
from util.data.episodes import EpisodeSampler
from util.data.index import build_index
from util.evaluate import METRICS, Evaluator
from util.evaluate.result import learnable_parameters
from util.predict.figures import episode_panel
from util.runtime import distributed
from util.runtime.errors import FewShotError, run, told_of
from util.train.log import RunLog
from util.train.loop import run_stage
from util.train.stage import Score, Stage
from util.weights.pretrained import load_pretrained

PICTURES = 4  # validation episodes shown in TensorBoard
HALF_EPOCH_LIMIT = 100  # SubEpoch_val is for runs of at most so many epochs, as published


class EpisodicStage(Stage):
    """Episodes of the base classes; validated by episodes of the fold's other classes."""

    target = "query_mask"

    def __init__(self, cfg: Config, device: torch.device) -> None:
        with told_of(cfg.source):
            model = build_model(cfg)
            if not isinstance(model, FewShotModel):
                raise ValueError(f"arch {cfg.arch} is trained with train_base.py")
            model.check_size(cfg.train_h, cfg.train_w)
            model.check_size(cfg.val_size, cfg.val_size)
        self.start = load_pretrained(model, cfg)
        train_index, self.val_index = distributed.on_main(
            lambda: (build_index(cfg, "train"), build_index(cfg, "val") if cfg.evaluate else None)
        )
        dataset = EpisodeDataset(cfg, train_index, shot=getattr(model, "train_shot", cfg.shot))
        model.to(device).derive()  # what is frozen; the rest is about to learn
        super().__init__(cfg, device, model, dataset)
        self.about = (
            f"{cfg.shot} shot: {learnable_parameters(model, cfg):,} learnable parameters, "
            f"{len(dataset):,} episodes an epoch"
        )
        self.notes = [dataset.sampler.dropped_message()]
        try:
            if cfg.evaluate:
                keep = "encoder" in model.frozen
                self.evaluator = Evaluator(cfg, self.val_index, device, keep_frozen=keep)
        except FewShotError as error:
            raise FewShotError(f"{error}; evaluate: False trains without validation") from error

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Loss]:
        out = self.model(
            batch["query_image"],
            batch["support_images"],
            batch["support_masks"],
            batch["class_index"],
        )
        return self.model.losses(out, batch["query_mask"], batch["base_mask"])

    def validate(self, epoch: int, log: RunLog, heed: Callable[[], None]) -> Score:
        seed = self.cfg.manual_seed + (0 if self.cfg.fix_random_seed_val else epoch)
        result = self.evaluator.run(self.model, [seed], self.cfg.episodes, say=log.say, heed=heed)
        scores = {name: result.mean.get(name) for name in METRICS}
        known = {name: value for name, value in scores.items() if value is not None}
        told = ", ".join(f"{name} {value:.4f}" for name, value in known.items())
        return Score(known.get("miou", math.nan), scores, told)

    def validates_halfway(self, epoch: int) -> bool:
        """``SubEpoch_val`` as published: in short runs, from the second epoch on."""
        return self.cfg.SubEpoch_val and epoch > 0 and self.cfg.epochs <= HALF_EPOCH_LIMIT

    def show(self, log: RunLog, iteration: int) -> None:
        """The same few validation episodes every time: supports, truth, prediction."""
        cfg, index = self.cfg, self.val_index
        sampler = EpisodeSampler(index, cfg.fold.classes("val"), cfg.shot, cfg.manual_seed)
        for number in range(min(PICTURES, len(sampler))):
            episode = sampler.episode(0, number)
            name = index.names[episode.class_id]
            try:
                panel = episode_panel(self.model, cfg, index, episode, name)
            except FewShotError as error:  # an object that vanishes at val_size, ...
                log.say(f"no picture of validation episode {number + 1}: {error}")
            else:
                log.picture(f"validation/{number + 1} {name}", panel, iteration)


def main() -> None:
    run_stage(EpisodicStage, __doc__.split("\n")[0])


if __name__ == "__main__":
    run(main)
