"""The training that weights come from: what it was asked for, and whether it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from util.config import Config
from util.runtime.errors import FewShotError
from util.runtime.files import SUPERSEDED
from util.weights.checkpoint import read_checkpoint
from util.weights.fingerprint import fingerprint

# What is told of a training: entry -> types.
TOLD = {
    "config": dict,
    "batch": int,
    "data": (str, type(None)),
    "start": (str, type(None)),
    "complete": bool,
}


def training_of(last: Path) -> dict[str, Any] | None:
    """What a training's last checkpoint says of it.

    config: by section; batch: items a step; data: the digest of its list
    (:func:`util.data.sources.names_digest`), or None; start: the fingerprint of the weights that it
    began with, or None; complete: whether it ended there. None where there is no such checkpoint,
    or none that counts.
    """
    if last.with_name(SUPERSEDED).exists():
        return None
    return told(_training_in(last, _stamp(last)))


def told(content: Any) -> dict[str, Any] | None:
    """The same from elsewhere; None where an entry is missing or of another type."""
    if not isinstance(content, dict):
        return None
    right = all(isinstance(content.get(name), types) for name, types in TOLD.items())
    return content if right else None


def is_complete(last: Path) -> bool:
    """Whether a training has ended with its last checkpoint."""
    found = training_of(last)
    return found is not None and found["complete"]


def weights_in(path: Path) -> str | None:
    """The fingerprint of the weights in a checkpoint of this project; None for other files."""
    return _weights_in(path, _stamp(path))


def weights_of(content: Mapping[str, Any]) -> str | None:
    """The fingerprint of the weights in the content of a checkpoint, as :func:`weights_in`."""
    try:
        return fingerprint(content["model"])
    except (LookupError, AttributeError, TypeError):
        return None


def started_from(cfg: Config) -> str | None:
    """The fingerprint of the base learner that a training begins with, where it has one."""
    return weights_in(Path(cfg.base_weight)) if cfg.base_weight else None


Stamp = tuple[int, int] | None


def _stamp(path: Path) -> Stamp:
    """Changes with the file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def _training_in(last: Path, stamp: Stamp) -> dict[str, Any] | None:
    try:
        state = read_checkpoint(last)
        config = state["config"]
        # A checkpoint of an earlier version does not say it.
        ended = state.get("epoch", 0) >= config["TRAIN"]["epochs"]
        return {
            "config": config,
            "batch": state["effective_batch"],
            "data": state.get("data"),
            "start": state.get("start"),
            "complete": bool(state.get("complete", ended)),
        }
    except (FewShotError, LookupError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _weights_in(path: Path, stamp: Stamp) -> str | None:
    try:
        return weights_of(read_checkpoint(path))
    except FewShotError:
        return None
