"""glibc's allocator keeps freed memory: what went back to the system is cleared when asked anew."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

MIB = 1 << 20


class Threshold(NamedTuple):
    """A threshold of glibc's ``malloc``, and what sets it before a program starts.

    number: in ``<malloc.h>``; values: in bytes, the largest that this glibc takes is set
    (``mallopt`` takes an int, 2³¹ − 1 at most).
    """

    number: int
    values: tuple[int, ...]
    variable: str
    tunable: str


# Free memory at the heap's end that is kept; the size from which a block is a mapping of its own,
# given back as soon as it is freed (before glibc 2.35, 32 MiB at most).
TRIM = Threshold(-1, (2**31 - 1,), "MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold")
MMAP = Threshold(
    -3, (1024 * MIB, 32 * MIB), "MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"
)


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory for what is asked for next, blocks of up to 1 GiB included.

    For this process and those forked from it. What the user set by an environment variable stays;
    without glibc nothing happens. False where a threshold is neither set now nor by the user.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return all([_by_user(each) or _set(mallopt, each) for each in (TRIM, MMAP)])


def return_freed_memory() -> None:
    """Hand all freed memory to the system: before a process is forked.

    A fork shares it with this process only until either writes there: kept, it would be needed a
    second time for as long as the other lives. Without glibc nothing happens.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """glibc's function of that name (``mallopt`` returns 1 for a value that it takes); None where
    there is no glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return getattr(libc, name) if hasattr(libc, "gnu_get_libc_version") else None


def _by_user(threshold: Threshold) -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "").split(":")
    return threshold.variable in os.environ or any(
        each.split("=")[0] == threshold.tunable for each in tunables
    )


def _set(mallopt: Callable[[int, int], int], threshold: Threshold) -> bool:
    return any(mallopt(threshold.number, value) == 1 for value in threshold.values)
