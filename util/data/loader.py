"""The order in which training meets its items, and the worker processes that read them.

A step uses ``batch_size * accumulate * processes`` items of the epoch's seeded permutation, in
that order whatever the split: micro-batch a of process r holds places (a * processes + r) *
batch_size and following. What is left at the end of an epoch and fills no whole step is left out
(another part every epoch); an epoch shorter than one step repeats items until the step is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from util.config import Config
from util.runtime import distributed
from util.runtime.errors import FewShotError
from util.runtime.rng import epoch_order
from util.runtime.workers import read_ahead

GO_ON = "go on from the last checkpoint with --resume auto"


@dataclass(frozen=True)
class StepPlan:
    """How ``items`` are cut into steps for process ``rank`` of ``processes``."""

    items: int
    batch: int
    accumulate: int
    processes: int
    rank: int
    seed: int

    @property
    def effective_batch(self) -> int:
        """Items behind one optimiser step."""
        return self.batch * self.accumulate * self.processes

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return max(1, self.items // self.effective_batch)

    def places(self, micro: int) -> range:
        """Where micro-batch ``micro`` of this process stands in the step's batch."""
        start = (micro * self.processes + self.rank) * self.batch
        return range(start, start + self.batch)

    def micro_batches(self, epoch: int, first: int, last: int) -> list[np.ndarray]:
        """Item numbers of this process for steps first..last-1, a micro-batch each."""
        order = epoch_order(self.items, self.steps * self.effective_batch, self.seed, epoch)
        by_step = order.reshape(self.steps, self.effective_batch)
        return [
            by_step[step, self.places(micro)]
            for step in range(first, last)
            for micro in range(self.accumulate)
        ]


def make_plan(items: int, cfg: Config) -> StepPlan:
    """The plan of this process from ``batch_size``, ``accumulate`` and the process group."""
    if items == 0:
        raise FewShotError(
            f"no training item in {cfg.train_list} for split {cfg.split}: no picture shows "
            f"{cfg.min_pixels} pixels of a base class"
        )
    return StepPlan(
        items=items,
        batch=cfg.batch_size,
        accumulate=cfg.accumulate,
        processes=distributed.world_size(),
        rank=distributed.rank(),
        seed=cfg.manual_seed,
    )


def collate(items: list[Any]) -> Any:
    """Stack tensors and numbers; ``files`` stays a list of lists; the first error wins."""
    for item in items:
        if isinstance(item, FewShotError):
            return item
    return {
        key: [item[key] for item in items] if key == "files" else _stack([i[key] for i in items])
        for key in items[0]
    }


def _stack(values: list[Any]) -> torch.Tensor:
    # Not torch's default_collate: in a worker it allocates the batch in shared memory.
    tensors = isinstance(values[0], torch.Tensor)
    return torch.stack(values) if tensors else torch.tensor(values)


def load_steps(
    dataset: Any, plan: StepPlan, cfg: Config, epoch: int, first: int, last: int
) -> Iterator[list[dict[str, Any]]]:
    """Steps first..last-1 of ``epoch``, each a list of ``accumulate`` batches (dicts of tensors).

    A bad file (FewShotError in the dataset) and a worker process that died end the iteration
    with one sentence.
    """
    if first >= last:
        return
    dataset.set_epoch(epoch)
    batches = read_ahead(
        dataset,
        min(cfg.workers, (last - first) * plan.accumulate),
        collate=collate,
        batch_sampler=plan.micro_batches(epoch, first, last),
        pin_memory=torch.cuda.is_available(),
    )
    yield from _grouped(whole(batches), plan.accumulate)


def _grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(batches, size)):
        yield group


def whole(items: Iterator[Any]) -> Iterator[Any]:
    """The items of :func:`read_ahead`; one that is a FewShotError is raised."""
    for item in items:
        if isinstance(item, FewShotError):
            raise item
        yield item
