"""Pictures for a walk over episodes: read by worker processes ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from util.cache import ByteCache
from util.errors import FewShotError
from util.loader import LOST_WORKER, WORKER_DIED
from util.signals import start_worker

HOST = torch.device("cpu")


class _Guarded(Dataset):
    """Hand a FewShotError out as an item: a worker's exception would come with its traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except FewShotError as error:
            return error


class _Ahead:
    """A sampler that asks for the next position only when a worker is about to read it."""

    def __init__(self, positions: Iterator[int], in_flight: list[int]) -> None:
        self.positions, self.in_flight = positions, in_flight

    def __iter__(self) -> Iterator[int]:
        for position in self.positions:
            self.in_flight.append(position)
            yield position


def _same(item: Any) -> Any:
    return item


class PictureReader:
    """Reads pictures in the order of a lazily computed demand and keeps them for later uses.

    dataset: ``dataset[position]`` is a named tuple of tensors; needed: whether a position will be
    used (again); room: bytes for pictures to keep until then. ``reads`` counts what was read.
    """

    def __init__(
        self,
        dataset: Any,
        needed: Callable[[int], bool],
        workers: int,
        room: int,
        pin: bool = False,
    ) -> None:
        self.dataset, self.needed = _Guarded(dataset), needed
        self.workers, self.pin = workers, pin
        self.kept = ByteCache([(HOST, room)])
        self.in_flight: list[int] = []
        self.loaded: Iterator[Any] = iter(())
        self.reads = 0

    def start(self, demand: Iterable[int]) -> None:
        """Begin to read ahead. ``demand`` is consulted a few pictures before each is needed."""
        demand = iter(demand)
        first = next(demand, None) if self.workers else None
        if first is None:
            return  # nothing to read: no worker process is started
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=_Ahead(chain([first], demand), self.in_flight),
            num_workers=self.workers,
            collate_fn=_same,
            worker_init_fn=start_worker,
            prefetch_factor=4,
            pin_memory=self.pin,
            # An own generator: torch's global one stays where training left it.
            generator=torch.Generator().manual_seed(0),
        )
        self.loaded = iter(loader)

    def stop(self) -> None:
        """End the worker processes and forget all pictures."""
        self.loaded = iter(())
        self.in_flight.clear()
        self.kept.clear()

    def expects(self, position: int) -> bool:
        """True when the picture is kept or on its way."""
        return position in self.kept or position in self.in_flight

    def get(self, position: int) -> Any:
        """The picture; kept for later when there is room (until :meth:`drop`).

        Raises FewShotError when it cannot be read or a worker process died.
        """
        picture = self.kept.get(position, HOST)
        while picture is None and position in self.in_flight:
            arrived, item = self.in_flight[0], self._next()
            del self.in_flight[0]
            if arrived == position or not isinstance(item, FewShotError):
                self._keep(arrived, item)
            if arrived == position:
                picture = item
        if picture is None:
            # Expected in an encoding cache that turned out to be full when its turn came.
            picture = self.dataset[position]
            self._keep(position, picture)
        return picture

    def drop(self, position: int) -> None:
        """The picture is not needed again."""
        self.kept.drop(position)

    def _keep(self, position: int, item: Any) -> None:
        if isinstance(item, FewShotError):
            raise item
        self.reads += 1
        if self.needed(position):
            self.kept.put(position, item)

    def _next(self) -> Any:
        try:
            return next(self.loaded)
        except LOST_WORKER as error:  # there are workers, or nothing would be in flight
            raise FewShotError(f"{WORKER_DIED} ({error})") from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise FewShotError(WORKER_DIED) from error
