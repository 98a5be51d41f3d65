"""Generalized few-shot evaluation as BAM has it: base classes and the novel one in one map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from util.evaluate.metrics import ClassCounts, mean_of_defined

GENERALIZED = ("gfss_base", "gfss_novel", "gfss_all")  # mean IoU over base, novel, all classes


def fuse(probability: Tensor, base: Tensor, number: int, merge: str, tau: float) -> Tensor:
    """Labels [H, W]: ``number`` for the episode's class, elsewhere those of the base learner.

    probability: of the object, [H, W]; base: the base learner's labels [H, W], 0 background. The
    episode's class is where the probability is above ``tau``: everywhere (merge 'final'), or where
    the base learner sees background ('base').
    """
    novel = probability > tau
    if merge == "base":
        novel = novel & (base == 0)
    return base.masked_fill(novel, number)


class GeneralizedCounts(ClassCounts):
    """Counts of such labellings: columns 0 background, 1..N base, then the novel classes in turn.

    What another novel class than the episode's shows is background, as in the published code.
    """

    def __init__(
        self, runs: int, base: int, novel: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(runs, base + len(novel), device)
        self.first = base
        self.number = {class_id: base + place for place, class_id in enumerate(novel)}

    def means(self) -> dict[str, list[float]]:
        """For each run the mean IoU over base, novel and all classes, the background in none."""
        values, first = self.class_iou(), self.first
        parts = (values[:, 1:first], values[:, first:], values[:, 1:])
        return {
            name: [mean_of_defined(row) for row in part]
            for name, part in zip(GENERALIZED, parts, strict=True)
        }
