"""What a table needs, step by step, as commands that one can type, and which steps are complete.

A step is complete exactly when its own output says so (:mod:`util.reproduce.complete`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.registry import requirements
from util.reproduce.cells import Cell, Setting, place
from util.reproduce.complete import costs_of, drawn, result_of, total_batch, trained
from util.reproduce.tables import COSTS, Table
from util.runtime.files import BEST, LAST

# Kinds of steps in the order in which a cell needs them: what a sentence calls them.
KINDS = {
    "measure": "cost",
    "base": "stage 1",
    "train": "stage 2",
    "test": "evaluation",
    "draw": "figure",
}


@dataclass(frozen=True)
class Step:
    """One command. output: what it makes; needs: outputs of steps before it; setting: what it is
    about, where it is one; complete: whether the output is there, and of these settings."""

    kind: str
    title: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[Path, ...]
    complete: Callable[[], bool]
    setting: Setting | None = None

    @property
    def typed(self) -> str:
        """The command as one types it."""
        return shlex.join(["python", *self.command])

    @property
    def arguments(self) -> list[str]:
        """The command as it is started here."""
        return [sys.executable, *self.command]


Steps = dict[Path, Step]


def steps_of(
    table: Table,
    cells: Sequence[Cell],
    picture: Path | None,
    gpus: int | None = None,
) -> Steps:
    """Output -> step, each behind those that it needs; equal ones of several cells once.

    picture: where the table's figure goes, None: it is not drawn; gpus: processes of a training or
    evaluation.
    """
    steps: Steps = {}

    def add(step: Step) -> None:
        steps.setdefault(step.output, step)

    if set(COSTS) & set(table.measures):
        for cell in cells:
            if (cell.shot, cell.fold) == (table.shots[0], table.folds[0]):
                add(_measure(cell))
    for cell in cells if table.figure != "categories" else ():
        about = f"{cell.row.name}, fold {cell.fold}"
        needs: tuple[Path, ...] = ()
        if cell.base is not None:
            base = _training("base", about, cell.base, (), gpus)
            add(base)
            needs = (base.output,)
        train = _training("train", about, cell.train, needs, gpus)
        add(train)
        if table.figure not in ("sheet", "curves"):
            add(_evaluation(cell, train.output, gpus))
    if table.figure and picture:
        add(_figure(table, cells, picture))
    return steps


def _training(
    kind: str, about: str, setting: Setting, needs: tuple[Path, ...], gpus: int | None
) -> Step:
    script = {"base": "train_base.py", "train": "train.py"}[kind]
    output = setting.cfg.exp_dir() / LAST
    complete = partial(trained, setting.cfg, output)
    setting, launcher = _spread(setting, gpus)
    command = (*launcher, place(Path(script)), "--resume", "auto", *setting.arguments)
    return Step(kind, about, command, output, needs, complete, setting)


def _evaluation(cell: Cell, needs: Path, gpus: int | None) -> Step:
    setting = cell.test
    output = [] if cell.result.name == "result.json" else ["--output", str(cell.result)]
    launcher = _launcher(gpus or 1)
    command = (*launcher, place(Path("test.py")), *output, *setting.arguments)
    title = f"{cell.row.name}, {cell.shot} shot, fold {cell.fold}"

    def complete() -> bool:
        return result_of(cell) is not None

    return Step("test", title, command, cell.result, (needs,), complete, setting)


def _measure(cell: Cell) -> Step:
    output = ("--output", str(cell.cost))
    command = ("-m", "benchmark.cost", *output, *cell.train.arguments)

    def complete() -> bool:
        return costs_of(cell) is not None

    return Step("measure", cell.row.name, command, cell.cost, (), complete, cell.train)


def _figure(table: Table, cells: Sequence[Cell], picture: Path) -> Step:
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.row.name, cell)
    several = list(first.values())
    names, output = list(first), ("--output", str(picture))
    folders = [cell.folder for cell in several]
    lasts = tuple(folder / LAST for folder in folders)
    results = tuple(cell.result for cell in several)
    if table.figure == "categories":
        first_of_all = several[0].train
        others = dict.fromkeys(cell.train.config for cell in several)
        others.pop(first_of_all.config)
        chart = ("--chart", str(picture), *(("--beside", *others) if others else ()))
        command = ("-m", "util.lists", *chart, *first_of_all.arguments)
        needs: tuple[Path, ...] = ()
    elif table.figure == "spread":
        command = ("-m", "util.report", "spread", *map(str, results), *output)
        needs = results
    elif table.figure == "curves":
        command = ("-m", "util.report", "curves", *map(str, folders), "--names", *names, *output)
        needs = lasts
    else:
        weights = [str(folder / BEST) for folder in folders]
        command = ("-m", "util.report", "sheet", *weights, "--names", *names, *output)
        needs = lasts
    return Step("draw", table.title, command, picture, needs, partial(drawn, picture, needs))


def _launcher(processes: int) -> tuple[str, ...]:
    """torchrun in front of a script, where there are several processes."""
    if processes == 1:
        return ()
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


def _spread(setting: Setting, gpus: int | None) -> tuple[Setting, tuple[str, ...]]:
    """A training on ``gpus`` GPUs, or on as many of them as share its batch evenly."""
    cfg, processes = setting.cfg, gpus or 1
    if processes > 1 and total_batch(cfg):
        least = 2 if requirements(cfg.arch).is_base and not cfg.fix_bn else 1
        shares = [n for n in range(1, processes + 1) if cfg.batch_size % n == 0]
        processes = max(n for n in shares if n == 1 or cfg.batch_size // n >= least)
        if processes > 1:
            setting = setting.over(batch_size=cfg.batch_size // processes)
    return setting, _launcher(processes)
