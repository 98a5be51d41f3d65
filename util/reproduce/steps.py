"""What a table needs, step by step, as commands that one can type, and which steps are complete.

A step is complete exactly when its own output says so: a checkpoint that its training ended with, a
result of these settings, a picture. What lies in a folder and is of other settings is never taken
for it, and never written over: the step then fails with a sentence.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from model.registry import reads, requirements
from util.config import Config, config_from_dict
from util.config.schema import KEYS
from util.evaluate.result import settings
from util.report.tables import read_result
from util.reproduce.cells import FREE, Cell, Setting, place
from util.reproduce.tables import COSTS, Table
from util.runtime.errors import FewShotError
from util.weights.checkpoint import read_checkpoint

# Kinds of steps in the order in which a cell needs them: what a sentence calls them.
KINDS = {
    "measure": "cost",
    "base": "stage 1",
    "train": "stage 2",
    "test": "evaluation",
    "draw": "figure",
}
# Keys that a training does not depend on; its batch is compared apart.
OF_EVALUATION = {"runs", "seeds", "weight", "resized_val", "ori_resize", "merge", "merge_tau"}
APART = {*FREE, *OF_EVALUATION, "name", "batch_size", "accumulate"}


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
    output = setting.cfg.exp_dir() / "last.pth"
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
    complete = partial(has_result, setting.cfg, cell.result)
    return Step("test", title, command, cell.result, (needs,), complete, setting)


def _measure(cell: Cell) -> Step:
    output = ("--output", str(cell.cost))
    command = ("-m", "benchmark.cost", *output, *cell.train.arguments)

    def complete() -> bool:
        return costs_in(cell.cost) is not None

    return Step("measure", cell.row.name, command, cell.cost, (), complete, cell.train)


def _figure(table: Table, cells: Sequence[Cell], picture: Path) -> Step:
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.row.name, cell)
    several = list(first.values())
    names, output = list(first), ("--output", str(picture))
    folders = [cell.folder for cell in several]
    lasts = tuple(folder / "last.pth" for folder in folders)
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
        weights = [str(folder / "best.pth") for folder in folders]
        command = ("-m", "util.report", "sheet", *weights, "--names", *names, *output)
        needs = lasts
    return Step("draw", table.title, command, picture, needs, picture.is_file)


def _launcher(processes: int) -> tuple[str, ...]:
    """torchrun in front of a script, where there are several processes."""
    if processes == 1:
        return ()
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


def total_batch(cfg: Config) -> bool:
    """Whether the batch of a configuration file is that of all GPUs together (stage 1, HSNet), and
    not that of each, as the papers count it."""
    needs = requirements(cfg.arch)
    return needs.is_base or needs.joint_batch


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


# ---------------------------------------------------------------------------- what is complete


def trained(cfg: Config, last: Path) -> bool:
    """Whether the training of ``cfg`` has ended with ``last``.

    Raises FewShotError when a training of other settings has left its checkpoints there.
    """
    if not last.is_file() or last.with_name(".superseded").exists():
        return False
    status = last.stat()
    try:
        found = _ended(last, status.st_mtime_ns, status.st_size)
        other = config_from_dict(found["config"], str(last))
    except (FewShotError, KeyError):
        return False  # --resume auto takes another checkpoint, or says what is wrong
    differ = [k for k in KEYS if k not in APART and reads(cfg.arch, k) and _differ(k, cfg, other)]
    were = [f"{key} {getattr(other, key)} (here {getattr(cfg, key)})" for key in differ]
    batch, asked = other.batch_size * other.accumulate, cfg.batch_size * cfg.accumulate
    if total_batch(cfg):
        batch = found["batch"]
    if batch != asked:
        were.append(f"a batch of {batch} (here {asked})")
    if were:
        raise FewShotError(
            f"{last.parent} holds a training with {', '.join(were)}: move that folder away, and "
            "this one is made"
        )
    return found["complete"]


def _differ(key: str, one: Config, other: Config) -> bool:
    return getattr(one, key) != getattr(other, key)


@lru_cache(maxsize=256)
def _ended(last: Path, time: int, size: int) -> dict[str, Any]:
    state = read_checkpoint(last)
    config = state["config"]
    # A checkpoint of an earlier version does not say it.
    ended = state.get("epoch", 0) >= config["TRAIN"]["epochs"]
    complete = bool(state.get("complete", ended))
    return {"config": config, "complete": complete, "batch": state["effective_batch"]}


def has_result(cfg: Config, path: Path) -> bool:
    """Whether a result of exactly these settings, weights, episodes and seeds is there."""
    return result_of(cfg, path) is not None


def result_of(cfg: Config, path: Path) -> dict[str, Any] | None:
    """The content of a result of ``cfg``; None where there is none, or one of other settings."""
    try:
        content = read_result(path)
    except FewShotError:
        return None
    weight = Path(cfg.weight or cfg.exp_dir() / "best.pth")
    asked = {
        "dataset": cfg.data_set,
        "arch": cfg.arch,
        "backbone": cfg.backbone,
        "split": cfg.split,
        "shot": cfg.shot,
        "episodes": cfg.episodes,
        "settings": settings(cfg),
    }
    seeds = [run.get("seed") for run in content.get("runs", ())]
    same = all(content.get(key) == value for key, value in asked.items())
    of_weight = os.path.abspath(str(content.get("weight"))) == os.path.abspath(weight)
    if same and of_weight and seeds == cfg.seeds[: cfg.runs] and "swapped_supports" not in content:
        return content
    return None


def costs_in(path: Path) -> dict[str, Any] | None:
    """What ``benchmark.cost`` wrote; None where it has not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
