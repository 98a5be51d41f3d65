"""A table of two rows on a few tiny pictures, and the command that makes it."""

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

ROWS = ("baseline", "+ correlation")  # of Table 3
ARGUMENTS = ("hdmnet-table3", "--folds", "0", "--rows", *ROWS)


def make_small(folder: Path, **changes: Any) -> Path:
    """Pictures and the configurations ``tiny/tiny.yaml``, ``tiny_base.yaml``; ``changes``: keys of
    both. Returns the folder to run in."""
    make_data(folder / "made", pictures=10)
    (folder / "tiny").mkdir()
    for old, new in (("stage1", "tiny_base"), ("stage2", "tiny")):
        keys = yaml.safe_load((folder / "made" / f"{old}.yaml").read_text())
        keys.pop("stages", None)
        keys |= {"exp_root": str(folder / "exp"), "runs": 1, "min_pixels": 20, "save_every": 1}
        keys |= changes
        (folder / "tiny" / f"{new}.yaml").write_text(yaml.safe_dump(keys))
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    data = ("--data", str(folder / "tiny"))
    return [sys.executable, "-m", "util.reproduce", *ARGUMENTS, *data, *arguments]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """In a session of its own, so that it can be killed with all that it has started."""
    return subprocess.Popen(
        command(folder, *arguments),
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *arguments: str) -> str:
    """Run to the end; what it said."""
    process = start(folder, *arguments)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def results(folder: Path) -> dict[str, Any]:
    """Every result without what differs from run to run: time, and where the folder is."""
    found = {}
    for path in sorted((folder / "exp").rglob("result.json")):
        text = path.read_text().replace(str(folder), "")
        content = json.loads(text)
        del content["timing"]
        found[str(path.relative_to(folder))] = content
    return found


def commands_run(said: str) -> list[str]:
    """The commands that a run has started."""
    return [line for line in said.splitlines() if line.startswith("python ")]


def kill(process: subprocess.Popen, everything: bool) -> None:
    """-9 for the command alone, or for all that it has started too."""
    if everything:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def kill_again_and_again(folder: Path, delays: list[float]) -> str:
    """Start, kill after each delay (the whole session and the command alone in turn), then finish.

    Returns what the last, undisturbed command said.
    """
    for number, delay in enumerate(delays):
        process = start(folder)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            pass
        kill(process, everything=number % 2 == 0)
    return finish(folder)
