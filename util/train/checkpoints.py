"""The folder of a run: its checkpoints, its lock, and the export of what was learned.

A checkpoint is written to a temporary file, read back, and renamed over the old one, so that at
every moment each name stands for a whole file. ``last.pth`` is the state to resume from,
``best.pth`` the one with the best validation score, ``epoch_N.pth`` the periodic ones, of which
the newest ``keep`` stay.

A new run in the folder leaves an earlier run's checkpoints alone until it has one of its own; only
then do they move to ``previous/``. A mistake that ends the new run costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.runtime.errors import FewShotError
from util.runtime.files import LOCK, SUPERSEDED, lock, write_atomically
from util.weights.checkpoint import read_checkpoint, serialise

FORMAT = "fewshot-checkpoint-1"
PERIODIC = re.compile(r"epoch_(\d+)\.pth")
# What a training state holds beside its format: entry -> type.
STATE = {
    "model": Mapping,
    "optimizer": Mapping,
    "scaler": Mapping,
    "config": Mapping,
    "epoch": int,
    "iteration": int,
    "best": (int, float),
    "best_epoch": int,
    "effective_batch": int,
}


class CheckpointStore:
    """Checkpoints of one run in ``folder`` (made when missing)."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self._lock = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FewShotError(f"cannot make the folder {folder}: {error.strerror}") from error

    def path(self, name: str) -> Path:
        """File of ``last``, ``best`` or ``epoch_N``."""
        return self.folder / f"{name}.pth"

    def lock(self) -> None:
        """Claim the folder for this process until it ends, however it ends.

        Also removes the temporary files of a run that was killed while saving.
        """
        advice = "wait for it, or keep the runs apart with --opts name NAME"
        self._lock = lock(self.folder / LOCK, advice)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def save(self, state: dict[str, Any], *names: str) -> None:
        """Write ``state`` under each of ``names``; prune the periodic ones beyond ``keep``."""
        data = serialise(state)
        if self._superseded.exists():
            self._set_aside()
        for name in names:
            write_atomically(self.path(name), data, check=read_checkpoint)
        for path in self._periodic()[self.keep :]:
            path.unlink(missing_ok=True)

    def _periodic(self) -> list[Path]:
        """Periodic checkpoints, latest epoch first."""
        found = {p: PERIODIC.fullmatch(p.name) for p in self.folder.glob("epoch_*.pth")}
        return sorted((p for p, m in found.items() if m), key=lambda p: -int(found[p][1]))

    def latest(self) -> dict[str, Any] | None:
        """The checkpoint furthest in training that reads back whole; None in an empty folder.

        Those that a new run is about to replace do not count. Raises FewShotError when there are
        checkpoints and none of them can be read.
        """
        if self._superseded.exists():
            return None
        paths = [p for p in (self.path("last"), self.path("best"), *self._periodic()) if p.exists()]
        newest, problems = None, []
        for path in paths:
            try:
                state = read_state(path)
            except FewShotError as error:
                problems.append(str(error))
                continue
            if newest is None or _position(state) > _position(newest):
                newest = state
        if problems and newest is None:
            raise FewShotError(f"no checkpoint in {self.folder} can be read: {problems[0]}")
        return newest

    def newest_path(self) -> str:
        """File of the newest checkpoint by its date, in words for a message."""
        paths = [] if self._superseded.exists() else self._checkpoints()
        return str(max(paths, key=lambda p: p.stat().st_mtime)) if paths else "none yet"

    def begin(self, resumed: bool) -> Path | None:
        """A run starts, or goes on from a checkpoint. Starting where checkpoints of an earlier run
        lie: they no longer count, and move to the folder returned when the first is saved."""
        over = not resumed and bool(self._checkpoints())
        try:
            if over:
                self._superseded.touch()
            else:
                self._superseded.unlink(missing_ok=True)
        except OSError as error:
            raise FewShotError(f"cannot write in {self.folder}: {error.strerror}") from error
        return self.folder / "previous" if over else None

    @property
    def _superseded(self) -> Path:
        """Says that the checkpoints here are an earlier run's; a kill does not make it forget."""
        return self.folder / SUPERSEDED

    def _checkpoints(self) -> list[Path]:
        return [p for p in self.folder.glob("*.pth") if p.is_file()]

    def _set_aside(self) -> None:
        """Move an earlier run's checkpoints to ``previous/`` (replacing what is there)."""
        previous = self.folder / "previous"
        try:
            previous.mkdir(exist_ok=True)
            for old in previous.glob("*.pth"):
                old.unlink()
            for path in self._checkpoints():
                os.replace(path, previous / path.name)
            self._superseded.unlink()
        except OSError as error:
            raise FewShotError(
                f"cannot move the earlier run's checkpoints to {previous}: {error.strerror}"
            ) from error


def read_state(path: str | Path) -> dict[str, Any]:
    """A full training state of this project (for resuming); FewShotError for anything else.

    Beside what was saved it holds ``file``, the path.
    """
    state = read_checkpoint(path)
    if state.get("format") != FORMAT or "optimizer" not in state:
        raise FewShotError(
            f"{path} holds weights but no training state: it can be evaluated or loaded, "
            "not resumed from"
        )
    for name, kind in STATE.items():
        if not isinstance(state.get(name), kind):
            what = type(state[name]).__name__ if name in state else "nothing"
            raise FewShotError(f"{path} is damaged: it holds {what} as {name}")
    return {**state, "file": str(path)}


def _position(state: dict[str, Any]) -> tuple[int, int]:
    return state["iteration"], state["epoch"]
