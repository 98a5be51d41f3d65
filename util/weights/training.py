"""The training that weights come from: what it was asked for, and whether it has ended."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from util.runtime.errors import FewShotError
from util.weights.checkpoint import read_checkpoint
from util.weights.fingerprint import fingerprint

BEST, LAST = "best.pth", "last.pth"
SUPERSEDED = ".superseded"  # stands in the folder of a run that a new one is about to replace


def training_of(last: Path) -> dict[str, Any] | None:
    """What a training's last checkpoint says of it.

    config: by section; batch: items a step; data: the digest of its list
    (:func:`util.data.sources.names_digest`), or None; complete: whether it ended there.

    None where there is no such checkpoint, or none that counts.
    """
    if not last.is_file() or last.with_name(SUPERSEDED).exists():
        return None
    status = last.stat()
    try:
        return _training_of(last, status.st_mtime_ns, status.st_size)
    except (FewShotError, KeyError, TypeError):
        return None


@lru_cache(maxsize=256)
def _training_of(last: Path, time: int, size: int) -> dict[str, Any]:
    state = read_checkpoint(last)
    config = state["config"]
    # A checkpoint of an earlier version does not say it.
    ended = state.get("epoch", 0) >= config["TRAIN"]["epochs"]
    return {
        "config": config,
        "batch": state["effective_batch"],
        "data": state.get("data"),
        "complete": bool(state.get("complete", ended)),
    }


def weights_in(path: Path) -> str | None:
    """The fingerprint of the weights in a checkpoint of this project; None for other files."""
    status = path.stat()
    return _weights_in(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _weights_in(path: Path, time: int, size: int) -> str | None:
    try:
        return fingerprint(read_checkpoint(path)["model"])
    except (FewShotError, KeyError, AttributeError, TypeError):
        return None
