"""Table 3 on a few tiny pictures, and the command that makes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.training_case import ROOT, environment, make_data
from util.evaluate.result import settings
from util.reproduce.cells import Cell
from util.runtime.files import write_json

ROWS = ("baseline", "+ correlation")


def make_small(folder: Path, **changes: Any) -> Path:
    """Pictures and the configurations ``tiny/tiny.yaml``, ``tiny_base.yaml``; ``changes``: keys of
    both. Returns the folder to run in."""
    make_data(folder / "made", pictures=10)
    (folder / "tiny").mkdir()
    for old, new in (("stage1", "tiny_base"), ("stage2", "tiny")):
        keys = yaml.safe_load((folder / "made" / f"{old}.yaml").read_text())
        keys.pop("stages", None)
        keys |= {"exp_root": str(folder / "exp"), "runs": 2, "save_every": 1, **changes}
        (folder / "tiny" / f"{new}.yaml").write_text(yaml.safe_dump(keys))
    return folder


def arguments(folder: Path, *more: str, rows: tuple[str, ...] = ROWS) -> list[str]:
    """Of ``util.reproduce``: fold 0 of the rows."""
    data = str(folder / "tiny")
    return ["hdmnet-table3", "--data", data, "--folds", "0", "--rows", *rows, *more]


def start(folder: Path, **options: Any) -> subprocess.Popen:
    """In a session of its own, so that it can be killed with all that it has started."""
    return subprocess.Popen(
        [sys.executable, "-m", "util.reproduce", *arguments(folder, **options)],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    """(status, what it said)."""
    said, _ = process.communicate(timeout=900)
    return process.returncode, said


def kill(process: subprocess.Popen, everything: bool) -> None:
    """-9 for the command alone, or for all that it has started too."""
    if everything:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def commands_in(said: str) -> list[str]:
    """The commands that a run has started."""
    return [line for line in said.splitlines() if line.startswith("python ")]


def results(folder: Path) -> dict[str, Any]:
    """Every result without what differs from run to run: time, and where the folder is."""
    found = {}
    for path in sorted((folder / "exp").rglob("result.json")):
        content = json.loads(path.read_text().replace(str(folder), ""))
        del content["timing"]
        found[str(path.relative_to(folder))] = content
    return found


def write_result(cell: Cell, miou: float, **changes: Any) -> Path:
    """A result as ``test.py`` would leave it for a cell."""
    cfg, asked = cell.test.cfg, cell.train.cfg
    content = {
        "dataset": cfg.data_set, "arch": cfg.arch, "backbone": cfg.backbone, "split": cfg.split,
        "shot": cfg.shot, "weight": str(cfg.weight or cfg.exp_dir() / "best.pth"),
        "episodes": cfg.episodes, "settings": settings(cfg),
        "runs": [{"seed": seed, "miou": miou} for seed in cfg.seeds[: cfg.runs]],
        "mean": {"miou": miou, "fb_iou": miou + 0.1, "miou_meta": None},
        "training": {"config": asked.to_dict(), "batch": asked.batch_size,
                     "data": None, "start": None, "complete": True},
        **changes,
    }  # fmt: skip
    write_json(cell.result, content)
    return cell.result
