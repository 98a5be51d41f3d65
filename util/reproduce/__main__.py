"""Every table and figure of the papers, one command each.

    python -m util.reproduce                            what there is, and how far each is
    python -m util.reproduce hdmnet-table3              do what is missing, then draw it
    python -m util.reproduce hdmnet-table3 --dry-run    the commands, and what they need
    python -m util.reproduce hdmnet-table3 --slurm FILE one array job instead
    python -m util.reproduce hdmnet-table3 --data demo --folds 0      in small, on data at hand

Every step is a command of the ordinary scripts. What is complete is not done again, whoever made
it; several of these commands at once share the work: docs/reproduce.md. Exit status: 2 when
something failed, 75 after SIGTERM or SIGINT; the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from util.evaluate import grid
from util.report import papers
from util.reproduce.cells import (
    Cell,
    NotThere,
    Options,
    cells_of,
    free_options,
    in_small,
    refuse_mixed,
)  # fmt: skip
from util.reproduce.estimate import Estimator, free_disk, size
from util.reproduce.runner import Runner, duration, others_at_work, standing
from util.reproduce.slurm import array_job, refuse_other
from util.reproduce.steps import KINDS, Step, Steps, steps_of
from util.reproduce.tables import Table, load_tables, table_of
from util.runtime.errors import FewShotError, run
from util.runtime.files import LAST, check_folder, user_path, write_atomically
from util.runtime.signals import StopRequest


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m util.reproduce", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help="names; without any: list what there is")
    papers.add_selection(parser)
    add("--rows", nargs="+", metavar="NAME", help="these rows alone")
    add("--gpus", type=int, metavar="N", help="processes of each training, a GPU each (1)")
    add("--only", nargs="+", choices=KINDS, default=list(KINDS), help="these steps alone")
    add("--dry-run", action="store_true", help="print the commands and what they need")
    add("--slurm", type=user_path, metavar="FILE", help="write one SLURM array job")
    options = parser.parse_args(arguments)
    if options.gpus is not None and options.gpus < 0:
        raise FewShotError(f"--gpus must be 0 or more, not {options.gpus}")
    more = free_options(options.opts)
    if not options.tables:
        print(overview(load_tables(), options.data, more))
        return
    works = [work_of(name, options, more) for name in dict.fromkeys(options.tables)]
    refuse_mixed((cell for work in works for cell in work.cells), more)
    steps: Steps = {}
    for work in works:
        for path, step in work.steps.items():
            steps.setdefault(path, step)
    if not steps:
        raise FewShotError("nothing of this is made by a command: choose other rows or steps")
    stop = StopRequest()
    targets = [path for work in works for path in work.targets]
    runner = Runner(steps, targets, stop, options.only)
    if options.dry_run:
        dry_run(runner)
    elif options.slurm:
        slurm(options, works, runner)
    else:
        for work in works:
            check_folder(papers.place(work.table, work.cells, options).parent)
        with stop:
            each(runner.run, *(partial(papers.draw, work.table.name, options) for work in works))


def each(*actions: Callable[[], None]) -> None:
    """Do all; the first error is raised when the last has ended, the others are printed."""
    first: FewShotError | None = None
    for action in actions:
        try:
            action()
        except FewShotError as error:
            if first is not None:
                print(f"error: {error}", file=sys.stderr, flush=True)
            first = first or error
    if first is not None:
        raise first


@dataclass(frozen=True)
class Work:
    """A table as far as it was asked for."""

    table: Table
    cells: list[Cell]
    steps: Steps
    only: Sequence[str] = tuple(KINDS)

    @property
    def targets(self) -> list[Path]:
        """What counts as a cell: results; where there are none, whatever is made."""
        kinds = {path: step.kind for path, step in self.steps.items() if step.kind in self.only}
        results = [path for path, kind in kinds.items() if kind == "test"]
        return results or list(kinds)


def work_of(name: str, options: argparse.Namespace, more: Options) -> Work:
    """The table of that name with the rows, folds and shots chosen, and all its steps."""
    whole = table_of(name)
    table = papers.selected(whole, options)
    cells = cells_of(table, options.data, more)
    # A picture sets rows side by side: part of them is another picture, which nobody asked for.
    picture = papers.place(table, cells, options) if len(table.rows) == len(whole.rows) else None
    return Work(table, cells, steps_of(table, cells, picture, options.gpus), options.only)


def overview(tables: dict[str, Table], data: str | None, more: Options) -> str:
    """A line a table: where it stands, its cells, those that are there, those in work."""
    rows = [["table", "of", "cells", "done", "running", "failed"]]
    problem: NotThere | None = None
    for name, table in tables.items():
        table = in_small(table, data)
        try:
            cells = cells_of(table, data, more)
        except NotThere as error:
            problem = error
            continue
        steps = steps_of(table, cells, papers.place(table, cells, argparse.Namespace(data=data)))
        work = Work(table, cells, steps)
        found = Counter(standing(steps, path) for path in work.targets)
        numbers = (len(work.targets), found["done"], others_at_work(steps), found["failed"])
        rows.append([name, f"{table.paper}, {table.place}", *map(str, numbers)])
    if problem and len(rows) == 1:
        raise problem
    return grid(rows)


def planned(runner: Runner) -> list[Step]:
    """What would be done; says of the rest why it cannot be."""
    steps = runner.todo()
    for path, sentence in runner.failed.items():
        print(f"cannot: {runner.steps[path].title}: {sentence}")
    return steps


def dry_run(runner: Runner) -> None:
    """Print what would be done, and the time and disk that it needs."""
    wanted = planned(runner)
    for step in wanted:
        print(step.typed, flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"\n{len(wanted)} command(s); measuring on {device} ...", flush=True)
    estimator = Estimator(device)
    needs = {step.output: estimator.need(step) for step in wanted}
    rows = [["step", "commands", "time", "disk"]]
    for kind, words in KINDS.items():
        found = [needs[step.output] for step in wanted if step.kind == kind]
        if found:
            known = [need.seconds for need in found if need.seconds is not None]
            time = duration(sum(known)) if len(known) == len(found) else "not known"
            disk = size(sum(need.disk for need in found))
            rows.append([words, str(len(found)), time, disk])
    print(grid(rows))
    unknown = dict.fromkeys(need.why for need in needs.values() if need.seconds is None)
    seconds = sum(need.seconds or 0 for need in needs.values())
    disk = sum(need.disk for need in needs.values())
    for why in unknown:
        print(f"time not known: {why}")
    folder = wanted[0].output.parent if wanted else Path(".")
    in_all = f"about {duration(seconds)}"
    if unknown:
        in_all = f"more than {duration(seconds)}" if seconds else "an unknown time"
    print(
        f"in all {in_all} on one {device}, "
        f"{size(disk)} of disk ({size(free_disk(folder))} free); from one step of each network at "
        "batch 1, every listed picture in every epoch, no early stop"
    )


def slurm(options: argparse.Namespace, works: Sequence[Work], runner: Runner) -> None:
    """Write the array job for what is missing: a task does what a table asks of one folder."""
    refuse_other(options.slurm)
    wanted = {step.output for step in planned(runner)}
    common = ["--data", options.data] if options.data else []
    common += ["--gpus", str(options.gpus)] if options.gpus else []
    common += ["--output", str(options.output)] if options.output else []
    common += ["--opts", *options.opts] if options.opts else []
    bases: dict[Path, list[str]] = {}
    others: list[list[str]] = []
    for work in works:
        missing = wanted & set(work.steps)
        folders: dict[Path, list[Cell]] = {}
        for cell in work.cells:
            fold = ["--folds", str(cell.fold)]
            last = cell.base.cfg.exp_dir() / LAST if cell.base else None
            if last in missing:
                task = [work.table.name, *fold, "--rows", cell.row.name, "--only", "base", *common]
                bases.setdefault(last, task)
            if {cell.result, cell.cost, cell.folder / LAST} & missing:
                folders.setdefault(cell.folder, []).append(cell)
        for cells in folders.values():
            fold = ["--folds", str(cells[0].fold)]
            rows = ["--rows", *dict.fromkeys(cell.row.name for cell in cells)]
            shots = ["--shots", ",".join(dict.fromkeys(str(cell.shot) for cell in cells))]
            kinds = [kind for kind in KINDS if kind in options.only and kind != "draw"]
            if cells[0].cost not in missing and "measure" in kinds:
                kinds.remove("measure")
            others.append([work.table.name, *fold, *rows, *shots, "--only", *kinds, *common])
    if not bases and not others:
        raise FewShotError("nothing is missing that a job could make")
    name = "+".join(work.table.name for work in works)
    gpus = 1 if options.gpus is None else options.gpus
    text = array_job(name, list(bases.values()), others, gpus)
    write_atomically(options.slurm, text.encode())
    print(f"written: {options.slurm} ({len(bases)} tasks of stage 1, {len(others)} others)")


if __name__ == "__main__":
    run(main)
