"""Pictures for a walk over episodes: read by worker processes ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from util.evaluate.cache import ByteCache
from util.runtime.errors import FewShotError
from util.runtime.workers import read_ahead

HOST = torch.device("cpu")


class _Ahead:
    """A sampler that asks for the next position only when a worker is about to read it."""

    def __init__(self, positions: Iterator[int], in_flight: list[int]) -> None:
        self.positions, self.in_flight = positions, in_flight

    def __iter__(self) -> Iterator[int]:
        for position in self.positions:
            self.in_flight.append(position)
            yield position


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
        self.dataset, self.needed = dataset, needed
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
        self.loaded = read_ahead(
            self.dataset,
            self.workers,
            batch_size=None,
            sampler=_Ahead(chain([first], demand), self.in_flight),
            prefetch_factor=4,
            pin_memory=self.pin,
        )

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
            arrived, item = self.in_flight[0], next(self.loaded)
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
