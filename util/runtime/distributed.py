"""One process or many: what torchrun's environment says, and the few collectives training needs.

Every function works in a single process too, where it does nothing, so that callers need no
``if``. NCCL carries CUDA tensors, gloo CPU tensors; :func:`reduce_counts` and friends move what
they are given to where the backend wants it.

A process that dies is noticed at once by gloo (its connections close) and after at most
``TIMEOUT`` by NCCL; the others then end with one sentence (:func:`guard`) instead of hanging.
torchrun ends them within its own 30 seconds as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from util.runtime.errors import FewShotError, Interrupted, LostProcess

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
LOST_PEER = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")


def init_from_env() -> torch.device:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_* describe; the device.

    Without these variables this is a single process: no group, GPU 0 when there is one, else CPU.
    ``CUDA_VISIBLE_DEVICES=""`` trains on the CPU.
    """
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise FewShotError(
                f"process {local} has no GPU of its own: {torch.cuda.device_count()} visible; "
                "start as many processes as GPUs"
            )
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    return device


def rank() -> int:
    """Number of this process, 0 when there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that writes files and speaks."""
    return rank() == 0


def _backend_device() -> torch.device:
    return torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")


def reduce_counts(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, same shape, type and device; integers stay exact."""
    if world_size() == 1:
        return values
    total = values.detach().to(_backend_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def sum_floats(values: Sequence[float]) -> list[float]:
    """Each value summed over all processes."""
    return reduce_counts(torch.tensor(values, dtype=torch.float64)).tolist()


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def fail(error: FewShotError) -> NoReturn:
    """End all processes for a reason they all know: the main one tells it, all have its status."""
    if is_main():
        raise error
    sys.exit(error.status)


def gather_objects(value: T) -> list[T]:
    """The values of all processes in rank order (small plain data, never files from disk)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(failure: FewShotError | None) -> None:
    """All processes go on, or all stop; nobody waits for one that failed. Each gives what it failed
    with, or None; a mistake counts before an interruption."""
    with guard():
        failures = [found for found in gather_objects(failure) if found is not None]
    if not failures:
        return
    first = min(failures, key=lambda found: found.status)
    if isinstance(first, Interrupted):
        fail(first)
    raise first if failure is None or isinstance(failure, Interrupted) else failure


def on_main(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process alone; every process gets its result.

    A :class:`FewShotError` there ends all processes with its status; only the main one tells it.
    """
    result: list[Any] = [None, None]
    failure: FewShotError | None = None
    if is_main():
        try:
            result[0] = function()
        except FewShotError as error:
            failure, result[1] = error, error.status
    if world_size() > 1:
        dist.broadcast_object_list(result, src=0)
    if failure is not None:
        raise failure
    if result[1] is not None:
        sys.exit(result[1])
    return result[0]


@contextmanager
def guard() -> Iterator[None]:
    """Turn the failure of a collective (another process died) into one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world_size() > 1 and any(mark in text for mark in LOST_PEER):
            raise LostProcess(
                f"process {rank()} lost another process of this run ({str(error).splitlines()[0]});"
                " go on from the last checkpoint with --resume auto"
            ) from error
        raise


@contextmanager
def process_group() -> Iterator[torch.device]:
    """:func:`init_from_env`, and leave the group in good order whatever happens inside.

    Gloo's threads would abort an interpreter that exits while they run. NCCL's group is not taken
    down after a failure: that waits for processes that may be gone.
    """
    device = init_from_env()
    try:
        yield device
    except BaseException:
        if dist.is_initialized() and dist.get_backend() == "gloo":
            cleanup()
        raise
    cleanup()


def cleanup() -> None:
    """Leave the process group, when there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
