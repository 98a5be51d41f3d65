"""What an evaluation had counted when it was stopped: a file beside the result, to go on from."""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from util.data.index import Pair
from util.evaluate.tally import Tally
from util.evaluate.walk import Way
from util.runtime import distributed
from util.runtime.errors import FewShotError, Interrupted
from util.runtime.files import write_atomically
from util.runtime.signals import StopRequest
from util.weights.checkpoint import read_checkpoint, serialise

SECONDS = 30.0  # between two writings: what a process that is killed loses at most


class Partial:
    """The counts of an evaluation that has not ended, kept beside its result file.

    The order of a walk follows from its plan alone and counts are integers, so a number of episodes
    and the counts are all that a later process needs to come to exactly the undisturbed result.
    Under torchrun each process keeps its own share.

    output: the result file; stop: whether the walk shall end; program: what else the counts depend
    on, such as versions. ``work`` and ``seconds`` are those of earlier processes.
    """

    def __init__(self, output: Path, stop: StopRequest, program: Any = None) -> None:
        self.output, self.stop, self.program = output, stop, program
        share = f".{distributed.rank()}of{distributed.world_size()}"
        share = share if distributed.world_size() > 1 else ""
        self.path = output.with_name(f"{output.name}{share}.partial")
        self.marks: dict[str, str] = {}
        self.work, self.seconds = (0, 0, 0), 0.0
        self.begun = self.written = time.monotonic()

    def begin(self, facts: Mapping[str, Any], tally: Tally) -> int:
        """Fill ``tally`` with what an earlier process counted; returns for how many episodes.

        facts: name -> plain value, all that the counts depend on. Where one has changed, or where
        the file is damaged, nothing is taken from it, and the screen says so.
        """
        facts = {**facts, "program": self.program}
        self.marks = {name: _digest(value) for name, value in facts.items()}
        self.begun = self.written = time.monotonic()
        done, why = 0, ""
        if self.path.exists():
            try:
                content = read_checkpoint(self.path)
                old = content["marks"]
                changed = [name for name, mark in self.marks.items() if old.get(name) != mark]
                if changed:
                    why = f"another evaluation (changed: {', '.join(changed)})"
                else:
                    work, seconds = tuple(content["work"]), float(content["seconds"])
                    so_far = int(content["done"])
                    tally.load_state(content["tally"])  # last: all of it or nothing
                    self.work, self.seconds, done = work, seconds, so_far
            except (FewShotError, KeyError, AttributeError, TypeError, ValueError):
                why = "no use: it is damaged"
        if why:
            tqdm.write(f"note: {self.path} is of {why}; all episodes are evaluated anew")
        return done

    def after(self, walk: Way) -> None:
        """To be called after every batch of episodes: keeps the counts from time to time.

        Raises :class:`Interrupted` with the counts on disk when the walk shall end, and
        :class:`FewShotError` when they cannot be written then.
        """
        if self.stop.asked:
            self._write(walk)
            raise Interrupted(
                f"stopped by {self.stop.name or 'a signal'}; what was evaluated is kept in "
                f"{self.path}, the same command goes on from there"
            )
        if time.monotonic() - self.written >= SECONDS:
            self.save(walk)

    def save(self, walk: Way) -> None:
        """Keep the counts; an evaluation does not end because that is impossible."""
        try:
            self._write(walk)
        except FewShotError as error:
            tqdm.write(f"warning: {error}; the evaluation goes on")
        self.written = time.monotonic()

    def _write(self, walk: Way) -> None:
        content = {
            "marks": self.marks,
            "done": walk.done,
            "work": [a + b for a, b in zip(self.work, walk.work, strict=True)],
            "seconds": self.seconds + time.monotonic() - self.begun,
            "tally": walk.tally.state(),
        }
        write_atomically(self.path, serialise(content))

    def remove(self) -> None:
        """The result is written, or can never be: forget the counts of all processes."""
        if distributed.is_main():
            for path in self.output.parent.glob(f"{glob.escape(self.output.name)}*.partial"):
                path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def files_state(pairs: Iterable[Pair]) -> list[Any]:
    """Path, size and time of every picture and mask; a file that is gone has none."""
    found: list[Any] = []
    for path in (path for pair in pairs for path in pair):
        try:
            status = path.stat()
            found.append([str(path), status.st_size, status.st_mtime_ns])
        except OSError:
            found.append([str(path)])
    return found
