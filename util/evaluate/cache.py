"""A store of tensors with a byte budget, and how many bytes a machine can spare."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")


def _number(path: Path) -> int | None:
    """The integer in a kernel file, None when there is no such file or no limit in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def free_host_memory() -> int:
    """Bytes that this process may still use: the system's and the container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        entries = dict(line.split(":") for line in lines)
        free = int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 4 * GB  # not Linux: a size that any machine for this work has
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _number(CGROUP / limit), _number(CGROUP / used)
        if most is not None and now is not None:
            free = min(free, max(0, most - now))
    return free


def free_memory(device: torch.device) -> int:
    """Bytes free on a device; what torch holds in reserve without using it counts as free."""
    if device.type != "cuda":
        return free_host_memory()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def budgets(device: torch.device, cache_gb: float | None) -> list[tuple[torch.device, int]]:
    """Where encodings may be kept and how many bytes there: the model's device first, then host.

    Without ``cache_gb`` half of what is free in each place, shared by the processes of this
    machine; with it, that many GiB for each process, on a GPU as far as half of its free memory
    goes and on the host beyond.
    """
    host = torch.device("cpu")
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_host = free_host_memory() // 2 // neighbours
    total = None if cache_gb is None else int(cache_gb * GB)
    if device.type == "cpu":
        return [(host, on_host if total is None else total)]
    on_device = free_memory(device) // 2
    if total is None:
        return [(device, on_device), (host, on_host)]
    on_device = min(on_device, total)
    return [(device, on_device), (host, total - on_device)]


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to the tensors of a nested (named) tuple; other values stay."""
    if isinstance(value, Tensor):
        return function(value)
    if not isinstance(value, tuple):
        return value
    items = [_map(item, function) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def own(tensor: Tensor) -> Tensor:
    """The tensor, copied when it is a view that would keep a larger storage alive."""
    return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()


def held_bytes(value: Any, pinned: bool = False) -> int:
    """Bytes that a tensor or nested tuple takes once :func:`own` was applied to its tensors.

    pinned: as copies in pinned host memory, which torch hands out in powers of two.
    """
    if isinstance(value, Tensor):
        size = min(value.nbytes, value.untyped_storage().nbytes())
        return 1 << max(0, size - 1).bit_length() if pinned else size
    return sum(held_bytes(item, pinned) for item in value) if isinstance(value, tuple) else 0


def _to_host(tensor: Tensor) -> Tensor:
    # Pinned and not waited for: copying to pageable memory would stop the GPU's queue.
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class ByteCache:
    """Keeps values until its budgets are full; what does not fit is refused, nothing is evicted.

    A walk whose uses are known in advance has no better victim than the value that is never used
    again, and that one its user drops (:meth:`drop`).

    room: (device, bytes) in order of preference. Values are tensors in nested (named) tuples.
    """

    def __init__(self, room: Sequence[tuple[torch.device, int]]) -> None:
        self.devices = [device for device, _ in room]
        self.left = [limit for _, limit in room]
        self.entries: dict[Hashable, tuple[Any, int, int]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: Hashable, device: torch.device) -> Any:
        """The value with its tensors on ``device``, or None."""
        if key not in self.entries:
            return None
        return _map(self.entries[key][0], lambda t: t.to(device, non_blocking=True))

    def put(self, key: Hashable, value: Any) -> bool:
        """Keep the value if there is room; False when it was refused."""
        if key in self.entries:
            return True
        for place, device in enumerate(self.devices):
            moved = device.type == "cpu" and _on_gpu(value)
            needed = held_bytes(value, pinned=moved)
            if needed <= self.left[place]:
                kept = _map(value, _to_host if moved else own)
                self.entries[key] = (kept, place, needed)
                self.left[place] -= needed
                return True
        return False

    def drop(self, key: Hashable) -> None:
        """Forget a value, if it is there, and give its bytes back."""
        if key in self.entries:
            _, place, size = self.entries.pop(key)
            self.left[place] += size

    def clear(self) -> None:
        for key in list(self.entries):
            self.drop(key)


def _on_gpu(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_cuda
    return isinstance(value, tuple) and any(map(_on_gpu, value))
