"""The order in which training meets its items, and the worker processes that read them.

A step uses ``batch_size * accumulate * processes`` items of the epoch's seeded permutation, in
that order whatever the split: micro-batch a of process r holds places (a * processes + r) *
batch_size and following. What is left at the end of an epoch and fills no whole step is left out
(another part every epoch); an epoch shorter than one step repeats items until the step is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from util import distributed
from util.errors import FewShotError, LostProcess
from util.rng import epoch_order
from util.signals import start_worker

WORKER_DIED = "a data-loading process died (killed, or out of memory: try fewer workers)"
GO_ON = "go on from the last checkpoint with --resume auto"
# What receiving a batch raises when its worker dies in the middle of handing it over.
LOST_WORKER = (OSError, EOFError)


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


def make_plan(items: int, cfg: Any) -> StepPlan:
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


class Guarded(Dataset):
    """Hand a FewShotError out as an item: a worker's exception would come with its traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> Any:
        try:
            return self.dataset[int(item)]
        except FewShotError as error:
            return error


def collate(items: list[Any]) -> Any:
    """Stack tensors and numbers; ``files`` stays a list of lists; the first error wins."""
    for item in items:
        if isinstance(item, FewShotError):
            return item
    return {
        key: [item[key] for item in items]
        if key == "files"
        else default_collate([item[key] for item in items])
        for key in items[0]
    }


def load_steps(
    dataset: Any, plan: StepPlan, cfg: Any, epoch: int, first: int, last: int
) -> Iterator[list[dict[str, Any]]]:
    """Steps first..last-1 of ``epoch``, each a list of ``accumulate`` batches (dicts of tensors).

    A bad file (FewShotError in the dataset) and a worker process that died end the iteration
    with one sentence.
    """
    if first >= last:
        return
    dataset.set_epoch(epoch)
    # An own generator: making a loader's iterator would otherwise draw from torch's global one.
    batches = DataLoader(
        Guarded(dataset),
        batch_sampler=plan.micro_batches(epoch, first, last),
        num_workers=min(cfg.workers, (last - first) * plan.accumulate),
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )
    yield from _grouped(whole(batches), plan.accumulate)


def _grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(batches, size)):
        yield group


def whole(loader: DataLoader) -> Iterator[Any]:
    """Iterate over a loader of a :class:`Guarded` data set; an item's FewShotError is raised."""
    try:
        for item in loader:
            if isinstance(item, FewShotError):
                raise item
            yield item
    except LOST_WORKER as error:
        if loader.num_workers == 0:
            raise
        raise LostProcess(f"{WORKER_DIED} ({error}); {GO_ON}") from error


@contextmanager
def dead_workers() -> Iterator[None]:
    """Turn the death of a worker process into one sentence.

    torch raises it wherever the main process happens to be (from the handler of SIGCHLD), so this
    goes around everything.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LostProcess(f"{WORKER_DIED}; {GO_ON}") from error
