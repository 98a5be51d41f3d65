"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from util.runtime import distributed


def progress(items: Iterable[Any], total: int, title: str, done: int = 0) -> tqdm:
    """A tqdm bar in the main process; refreshed rarely when the screen is a file or a pipe."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        items,
        desc=title,
        total=total,
        initial=done,
        disable=not distributed.is_main(),
        mininterval=interval,
        dynamic_ncols=True,
        leave=False,
    )
