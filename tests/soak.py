"""Soak run: 2,000 episodes and 500 steps at small size, with memory that stays where it is.

    python -m tests.soak [--episodes 2000] [--steps 500] [--json FILE]

Runs train_base.py, train.py and test.py as a user would, each with two reader processes, and looks
at the main process while it works: resident memory and open files. Memory may grow by 2 % after a
warm-up of the first fifth. When a command has ended, no process of it and no temporary file may be
left. Exit status 1 when anything of that is not so. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.training_case import command, environment, make_data

GROWTH = 0.02
WARM_UP = 0.2
FILES = 3  # more open files than after the warm-up: a pipe to a worker that is just starting
PAGE = os.sysconf("SC_PAGE_SIZE")
STEP = re.compile(r"iteration (\d+)/(\d+)")
EPISODE = re.compile(r"evaluate:.*?(\d+)/(\d+) \[")
PROC = Path("/proc")


class Sample(NamedTuple):
    """State of a running command: share of its work done, bytes of memory, open files."""

    done: float
    memory: int
    files: int


class Report(NamedTuple):
    """What one command did to the machine; ``memory`` in bytes after warm-up and at the end."""

    name: str
    seconds: float
    samples: int
    memory: tuple[float, float]
    files: tuple[float, float]
    processes: int
    left_processes: list[int]
    left_files: list[str]

    @property
    def growth(self) -> float:
        """Relative growth of resident memory after the warm-up."""
        return self.memory[1] / self.memory[0] - 1

    def problems(self, allowed: float = GROWTH) -> list[str]:
        """Sentences about what is not as it should be."""
        found = []
        if self.growth > allowed:
            found.append(f"{self.name}: memory grew by {self.growth:.1%}, allowed {allowed:.0%}")
        if self.files[1] > self.files[0] + FILES:
            found.append(f"{self.name}: {self.files[0]:g} open files became {self.files[1]:g}")
        if self.left_processes:
            found.append(f"{self.name}: processes {self.left_processes} were left running")
        if self.left_files:
            found.append(f"{self.name}: left {', '.join(self.left_files[:5])}")
        return found

    def line(self) -> str:
        first, last = (value / 2**20 for value in self.memory)
        return (
            f"{self.name:<14}{self.seconds:>7.0f} s   {first:>7.1f} -> {last:>7.1f} MiB "
            f"({self.growth:+.2%})   open files {self.files[0]:g} -> {self.files[1]:g}   "
            f"{self.samples} samples, {self.processes} processes seen"
        )


def ends(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The fifth of the work after the warm-up, and its last fifth.

    Medians, but of the open files the fewest: a batch that came before its turn holds a file for
    each of its tensors until it is used, whereas files that leak are open in every sample.
    """
    early = [s for s in samples if WARM_UP <= s.done < 2 * WARM_UP]
    late = [s for s in samples if s.done >= 1 - WARM_UP]
    if not early or not late:
        raise ValueError(f"{len(samples)} samples are too few")
    return tuple(
        Sample(
            statistics.median(s.done for s in part),
            statistics.median(s.memory for s in part),
            min(s.files for s in part),
        )
        for part in (early, late)
    )


def look(pid: int, done: float) -> Sample | None:
    """The process as it is now; None when it has just ended."""
    try:
        memory = int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
        return Sample(done, memory, len(os.listdir(PROC / str(pid) / "fd")))
    except (OSError, IndexError):
        return None


def session_of(pid: int) -> list[int]:
    """Living processes of the session that ``pid`` leads."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def watch(name: str, argv: list[str], folder: Path, pattern: re.Pattern[str]) -> Report:
    """Run a command to its end, sampling it whenever it tells of progress by ``pattern``."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    samples: list[Sample] = []
    seen: set[int] = set()
    said: list[str] = []
    begin = time.perf_counter()
    process = subprocess.Popen(
        argv,
        cwd=folder,
        # torch makes its lasting cache of compiled kernels in TMPDIR when not told otherwise.
        env=environment(
            TMPDIR=str(temporary),
            TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
            PYTHONUNBUFFERED="1",
            TQDM_MININTERVAL="0.01",  # many samples of short runs too
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in process.stdout:
            said.append(line)
            if found := pattern.search(line):
                seen.update(session_of(process.pid))
                sample = look(process.pid, int(found[1]) / int(found[2]))
                samples += [sample] if sample else []
        status = process.wait()
    finally:
        process.kill()  # does nothing when it has ended
        process.wait()
    if status:
        raise RuntimeError(f"{name} ended with status {status}:\n{''.join(said[-30:])}")
    first, last = ends(samples)
    return Report(
        name,
        time.perf_counter() - begin,
        len(samples),
        (first.memory, last.memory),
        (first.files, last.files),
        len(seen),
        session_of(process.pid),
        left_files(folder, temporary, seen),
    )


def left_files(folder: Path, temporary: Path, pids: Iterable[int]) -> list[str]:
    """Temporary files below ``folder``, in ``temporary``, and in the shared memory of ``pids``."""
    mine = tuple(f"torch_{pid}_" for pid in pids)
    shared = Path("/dev/shm")
    found = [p for p in folder.rglob("*") if p.suffix in (".tmp", ".part")]
    found += temporary.iterdir()
    found += [p for p in shared.iterdir() if p.name.startswith(mine)] if shared.is_dir() else []
    return [str(path) for path in found]


def soak(folder: Path, episodes: int, steps: int) -> list[Report]:
    """All three commands on a small generated data set in the new folder ``folder``."""
    make_data(folder)
    options: list[Any] = ["--opts", "workers", 2, "print_freq", 1, "epochs", steps, "keep", 2]
    options += ["save_every", 20, "save_freq", 5, "stop_interval", 0]
    training = [*options, "max_iterations", steps]
    runs = 10
    test = ["--runs", runs, "--episodes", episodes // runs, *options]
    commands = (
        ("train_base.py", "stage1.yaml", training, STEP),
        ("train.py", "stage2.yaml", training, STEP),
        ("test.py", "stage2.yaml", test, EPISODE),
    )
    return [
        watch(name, command(name, folder / config, *arguments), folder, pattern)
        for name, config, arguments, pattern in commands
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        reports = soak(Path(place) / "soak", args.episodes, args.steps)
    for report in reports:
        print(report.line())
    if args.json:
        rows = [{**report._asdict(), "growth": report.growth} for report in reports]
        args.json.write_text(json.dumps(rows, indent=1))
    problems = [problem for report in reports for problem in report.problems()]
    print("\n".join(problems) or "steady: nothing grew, nothing was left")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
