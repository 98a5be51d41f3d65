"""Worker processes: what they hand over, starting them where room is short, noticing a death.

torch's data loader puts tensors into shared memory, of which a container has little (64 MB in
Docker): a worker that finds it full loses its item, and the reader waits for ever. Every tensor
there also keeps a file open as long as it lives. Here items travel through the loader's pipe
instead, as arrays (:class:`Parcel`); that costs the main process about as much as mapping them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from util.runtime.errors import NO_FILES_LEFT, FewShotError, LostProcess, too_many_files
from util.runtime.memory import return_freed_memory
from util.runtime.signals import start_worker

PATIENCE = 900.0  # seconds without a picture: no disk that works is so slow
WORKER_DIED = "a data-loading process died (killed, or out of memory: try fewer workers)"
WORKER_HANGS = (
    f"no data-loading process has handed over anything for {PATIENCE:.0f} seconds (a network drive "
    "that does not answer?)"
)


class Guarded(Dataset):
    """Hand a FewShotError out as an item: a worker's exception would come with its traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> Any:
        try:
            return self.dataset[int(item)]
        except FewShotError as error:
            return error


class Parcel:
    """An item of nested dicts and tuples with its CPU tensors as arrays."""

    def __init__(self, item: Any) -> None:
        self.item = _map(item, Tensor, Tensor.numpy)

    def open(self) -> Any:
        """The item, with tensors of its own memory."""
        return _map(self.item, np.ndarray, torch.from_numpy)

    def pin_memory(self) -> Any:
        """The item with tensors in pinned memory: what torch's pinning thread calls."""
        return _map(self.open(), Tensor, Tensor.pin_memory)


def _map(item: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to what is of ``kind`` in nested dicts and (named) tuples."""
    if isinstance(item, kind):
        return function(item)
    if isinstance(item, dict):
        return {key: _map(value, kind, function) for key, value in item.items()}
    if isinstance(item, tuple):
        items = [_map(value, kind, function) for value in item]
        return type(item)(*items) if hasattr(item, "_fields") else tuple(items)
    return item


class _Packed:
    """A loader's ``collate_fn`` whose result is a parcel."""

    def __init__(self, collate: Callable[[Any], Any] | None) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Parcel:
        return Parcel(items if self.collate is None else self.collate(items))


def read_ahead(
    dataset: Any, workers: int, *, collate: Callable[[Any], Any] | None = None, **options: Any
) -> Iterator[Any]:
    """The items of torch's DataLoader with ``options``, read by ``workers`` processes from now on.

    An item that raised a FewShotError is that error. The main process's random state stays.

    Raises:
        FewShotError: the processes cannot be started.
        LostProcess: on the way, one of them died, or none answers any more.
    """
    loader = DataLoader(
        Guarded(dataset),
        num_workers=workers,
        collate_fn=_Packed(collate),
        worker_init_fn=start_worker,
        timeout=PATIENCE if workers else 0,
        # An own generator: making the iterator would otherwise draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    with starting(workers):
        _rehearse(workers)
        items = iter(loader)
    return received(items) if workers else map(_opened, items)


def _rehearse(workers: int) -> None:
    """Take the locks and open files that ``workers`` processes need, and give them back.

    torch's loader, when it fails half-way, complains a second time as it is thrown away.
    """
    context = torch.multiprocessing.get_context()
    with ExitStack() as held:
        if workers:
            held.callback(context.Event().clear)
        for _ in range(workers + 1 if workers else 0):
            held.callback(context.Queue().close)
            for end in os.pipe():
                held.callback(os.close, end)


def received(items: Iterator[Any]) -> Iterator[Any]:
    """What worker processes hand over; a death in the middle of it is LostProcess."""
    with dead_workers():
        try:
            yield from map(_opened, items)
        except (OSError, EOFError) as error:
            if str(error).startswith("Caught "):  # in the worker, by torch, which passes it on
                raise
            raise LostProcess(f"{WORKER_DIED} ({error})") from error


def _opened(item: Any) -> Any:
    return item.open() if isinstance(item, Parcel) else item  # pinned: it is open already


@contextmanager
def starting(workers: int) -> Iterator[None]:
    """Around the start of processes: what they lack is one sentence; what was freed goes back."""
    if workers:
        return_freed_memory()
    try:
        yield
    except OSError as error:
        if error.errno in NO_FILES_LEFT:
            raise FewShotError(too_many_files()) from error
        raise FewShotError(
            f"cannot start {workers} processes that read files ({error.strerror or error}); "
            f"{shared_memory()}; fewer processes need less (--opts workers 0: none)"
        ) from error


def shared_memory() -> str:
    """The state of /dev/shm, where processes keep their locks, in words."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError as error:
        return f"/dev/shm cannot be used ({error.strerror})"
    free, size = (blocks * room.f_frsize / 1e6 for blocks in (room.f_bavail, room.f_blocks))
    return f"/dev/shm has {free:.1f} of {size:.1f} MB free (docker run --shm-size 1g gives more)"


@contextmanager
def dead_workers(advice: str = "") -> Iterator[None]:
    """Turn the death of a worker process into one sentence, which ends with ``advice``.

    torch raises it wherever the main process happens to be (from the handler of SIGCHLD), so this
    goes around everything.
    """
    try:
        yield
    except (RuntimeError, LostProcess) as error:
        said = str(error)
        if "DataLoader worker (pid" in said:  # not an error that one has met and passes on
            said = WORKER_DIED
        elif "DataLoader timed out" in said:
            said = WORKER_HANGS
        elif isinstance(error, RuntimeError):
            raise
        raise LostProcess(f"{said}; {advice}" if advice else said) from error
