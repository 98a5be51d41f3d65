"""Run what is missing: one command after the other, beside other processes that do the same.

A step is claimed by a lock on a file beside its output, which the command inherits: nobody takes up
what is still going, even when the process that began it was killed. What the lock guards is looked
at again under it, so no step is done twice after it was complete. A step that fails leaves its
sentence beside its output, for the processes that run meanwhile, and is tried again the next time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import TextIO

from util.reproduce.steps import KINDS, Step, Steps
from util.reproduce.tables import ROOT
from util.runtime.errors import EXIT_INTERRUPTED, FewShotError, Interrupted, one_line
from util.runtime.files import LOCK, CannotWrite, appending, claim, in_use, write_atomically
from util.runtime.signals import StopRequest

PAUSE = 1.0  # seconds between two looks at what other processes are doing
REPEAT = 60.0  # seconds after which it is said again that they are waited for
_TAIL = 20_000  # bytes of a log that are searched for the reason of a failure


class Runner:
    """The steps of some tables. targets: the outputs that count as cells in what is said; only:
    the kinds of steps that are done, of the others it is known whether they are complete."""

    def __init__(
        self,
        steps: Steps,
        targets: Sequence[Path],
        stop: StopRequest,
        only: Iterable[str] = tuple(KINDS),
    ) -> None:
        self.steps, self.stop, self.only = steps, stop, frozenset(only)
        self.targets = [path for path in targets if path in steps]
        self.notes = {path: _told(path) for path in steps}  # of failures before this process
        self.done: set[Path] = set()
        self.failed: dict[Path, str] = {}
        self.elsewhere: set[Path] = set()
        self.seconds: dict[str, list[float]] = {}

    def run(self) -> None:
        """Do all that can be done. Raises Interrupted when asked to stop, and FewShotError at the
        end when something failed; what is said before that names it."""
        said, when = "", 0.0
        while self._look():
            text = f"{self.progress()}; waiting for {', '.join(map(str, sorted(self.elsewhere)))}"
            if text != said or time.monotonic() - when >= REPEAT:
                print(one_line(text), flush=True)
                said, when = text, time.monotonic()
            time.sleep(PAUSE)
        print(self.progress())
        for path, sentence in self.failed.items():
            step = self.steps[path]
            print(f"failed: {step.title} ({KINDS[step.kind]}): {sentence}")
        if self.failed:
            cells = len([path for path in self.targets if path in self.failed])
            raise FewShotError(
                f"{len(self.failed)} step(s) failed, {cells} of {len(self.targets)} cell(s) are "
                "missing for it; the same command tries them again"
            )

    def _look(self) -> bool:
        """Take what can be taken, until nothing is left here; whether others are still at work."""
        again = True
        while again:
            again, wanted = False, self.wanted()
            self.elsewhere &= set(wanted)
            for path in wanted:
                if self.stop.asked:
                    raise Interrupted(
                        f"stopped by {self.stop.name or 'a signal'}; the same command goes on"
                    )
                again |= self._take(path, self.steps[path])
        return bool(self.elsewhere)

    def wanted(self) -> list[Path]:
        """What is still to be done: all that nothing else is made of, and what that needs. The
        training behind a result that is there is not."""
        chosen = {path: step for path, step in self.steps.items() if step.kind in self.only}
        asked = set(chosen) - {need for step in chosen.values() for need in step.needs}
        wanted = []
        for path, step in reversed(self.steps.items()):
            if path in asked and not self._is_complete(path, step) and path not in self.failed:
                wanted.append(path)
                asked |= set(step.needs) if step.kind in self.only else set()
        return wanted[::-1]

    def todo(self) -> list[Step]:
        """What would be done, if every step ended well; the others are in ``failed``."""
        return [self.steps[path] for path in self.wanted() if not self._cannot(path)]

    def _cannot(self, path: Path) -> bool:
        """Whether a step has failed, or cannot be begun for what it needs or is."""
        step = self.steps[path]
        if blocker := next((need for need in step.needs if need in self.failed), None):
            other = self.steps[blocker]
            self.failed[path] = f"needs {KINDS[other.kind]} of {other.title}, which failed"
        elif step.kind not in self.only:
            self.failed[path] = "it is not complete, and --only leaves it out"
        return path in self.failed

    def _take(self, path: Path, step: Step) -> bool:
        """Do a step if it is its time; whether anything has changed."""
        if self._cannot(path):
            return True
        if any(need in self.steps and need not in self.done for need in step.needs):
            return False
        self.elsewhere.discard(path)
        try:
            held = claim(path.with_name(f".{path.name}.claim"))
            if held is None:
                self.elsewhere.add(path)
                return False
            with held:
                if _typed_elsewhere(step):
                    self.elsewhere.add(path)
                    return False
                if not self._is_complete(path, step) and not self._failed_elsewhere(path):
                    self._do(path, step, held)
        except FewShotError as error:  # its folder cannot be written
            self.failed[path] = str(error)
            print(f"failed: {error}", flush=True)
        return True

    def _is_complete(self, path: Path, step: Step) -> bool:
        try:
            complete = path in self.done or (path not in self.failed and step.complete())
        except FewShotError as error:
            self.failed[path] = str(error)
            return False
        if complete:
            self.done.add(path)
        return complete

    def _failed_elsewhere(self, path: Path) -> bool:
        """Whether it failed since this process began, in another."""
        told = _told(path)
        if path not in self.failed and told is not None and told != self.notes[path]:
            self.failed[path] = told[1]
        return path in self.failed

    def _do(self, path: Path, step: Step, held: TextIO) -> None:
        print(f"{self.progress(running=1)}\n{step.typed}", flush=True)
        log = path.with_name(f"reproduce_{step.kind}.log")
        begin = time.monotonic()
        with appending(log):
            output = open(log, "ab")
        with output:
            start = output.tell()
            status = self._call(step, output, held)
        if status == 0 and self._is_complete(path, step):
            with contextlib.suppress(OSError):
                _note(path).unlink(missing_ok=True)
            self.seconds.setdefault(step.kind, []).append(time.monotonic() - begin)
            return
        if self.stop.asked or (path not in self.failed and _typed_elsewhere(step)):
            return
        if path not in self.failed:
            self.failed[path] = reason(log, start, status)
        print(f"failed: {self.failed[path]} (see {log})", flush=True)
        with contextlib.suppress(CannotWrite):
            write_atomically(_note(path), self.failed[path].encode("utf-8", "backslashreplace"))

    def _call(self, step: Step, output: TextIO, held: TextIO) -> int:
        """Start the command and wait for it; a wish to stop is handed on to it."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            step.arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=(held.fileno(),),
        )
        told = False
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if self.stop.asked and not told:
                    told = True
                    process.send_signal(signal.SIGTERM)

    def progress(self, running: int = 0) -> str:
        """'3 of 8 cells done, 1 running, 0 failed; about 40 min left'."""
        done = sum(self._is_complete(path, self.steps[path]) for path in self.targets)
        failed = sum(path in self.failed for path in self.targets)
        running += len(self.elsewhere)
        text = f"{done} of {len(self.targets)} cells done, {running} running, {failed} failed"
        left = [self.steps[path].kind for path in self.wanted()]
        known = {kind: mean(seconds) for kind, seconds in self.seconds.items()}
        if left and all(kind in known for kind in left):
            text += f"; about {duration(sum(known[kind] for kind in left))} left"
        return text


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.failed")


def _told(path: Path) -> tuple[int, str] | None:
    """Time and sentence of the note of a failure; None where there is none."""
    note = _note(path)
    try:
        return note.stat().st_mtime_ns, note.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _typed_elsewhere(step: Step) -> bool:
    """Whether a training that none of these commands has begun is at work in a step's folder."""
    return step.kind in ("base", "train") and in_use(step.output.with_name(LOCK))


def standing(steps: Steps, path: Path) -> str:
    """'done', 'failed' or 'missing': failed where it is not there and a failure of it, or of what
    it needs, is known."""
    step = steps[path]
    try:
        if step.complete():
            return "done"
    except FewShotError:
        return "failed"
    needs = (need for need in step.needs if need in steps)
    bad = _told(path) is not None or any(standing(steps, need) == "failed" for need in needs)
    return "failed" if bad else "missing"


def reason(log: Path, start: int, status: int) -> str:
    """Why a command ended with ``status``, in its own words: what it wrote into ``log`` from byte
    ``start`` on."""
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    said = next((text for text in reversed(errors) if text), "")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    if said:
        return one_line(said)
    if status < 0:
        return f"killed by signal {-status}; {one_line(last)}"
    if status == 0:
        return "it ended well, and what it should have made is not there"
    stopped = " (stopped by a signal)" if status == EXIT_INTERRUPTED else ""
    return f"it ended with status {status}{stopped}; {one_line(last)}"


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h', '12 days'."""
    for size, unit, digits in ((86400 * 2, "days", 0), (5400, "h", 1), (90, "min", 0)):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def others_at_work(steps: Iterable[Path]) -> int:
    """How many of the outputs some process is working on."""
    working = 0
    for path in steps:
        lock = path.with_name(f".{path.name}.claim")
        if lock.is_file():
            with contextlib.suppress(FewShotError):  # a folder of somebody else's
                held = claim(lock)
                working += held is None
                if held is not None:
                    held.close()
    return working
