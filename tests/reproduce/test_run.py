"""A table made for real on tiny pictures: shared by two processes, killed, with a planted failure.

``KILLS=10 pytest tests/reproduce/test_run.py`` kills two rows ten times instead of one row twice.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.reproduce.small import (
    ROWS,
    arguments,
    commands_in,
    end,
    kill,
    make_small,
    results,
    start,
)  # fmt: skip
from util.reproduce.__main__ import main
from util.reproduce.runner import others_at_work

KILLS = int(os.environ.get("KILLS", 2))


def outputs(folder: Path) -> dict[Path, float]:
    """The results that are there, and when they were written."""
    return {path: path.stat().st_mtime for path in (folder / "exp").rglob("result.json")}


@pytest.mark.slow
def test_shared_by_two_killed_and_after_a_planted_failure_the_results_are_the_same(
    tmp_path, monkeypatch, capsys
):
    """Twice the same table: by two processes at once, of which a broken checkpoint fails a cell,
    and by one that is killed at random moments, alone or with all that it has started."""
    shared, killed = tmp_path / "shared", tmp_path / "killed"
    for folder in (shared, killed):
        folder.mkdir()
        make_small(folder)

    broken = shared / "exp/tiny/HDMNet/split0/resnet18/1shot"
    broken /= "distill-False+ensemble-False+hierarchy-stacked+matching-attention/last.pth"
    broken.parent.mkdir(parents=True)
    broken.write_text("planted")
    both = [start(shared), start(shared)]
    ended = [end(process) for process in both]
    said = "".join(text for _, text in ended)
    assert [status for status, _ in ended] == [2, 2], said
    assert "can be read" in said and "1 of 2 cells done" in said
    begun = commands_in(said)
    assert len(begun) == len(set(begun)) == 4, "stage 1, a failure, a training, its evaluation"
    assert len(results(shared)) == 1
    broken.unlink()
    status, said = end(start(shared))
    assert status == 0 and len(commands_in(said)) == 2, said
    expected = results(shared)
    assert len(expected) == 2

    moments, rows = random.Random(0), ROWS if KILLS > 2 else ROWS[1:]
    wanted = {path: found for path, found in expected.items() if "ensemble-" not in path}
    wanted = expected if KILLS > 2 else wanted
    made: dict[Path, float] = {}
    kills = 0
    while kills < KILLS:
        process = start(killed, rows=rows)
        try:
            process.wait(timeout=moments.uniform(3, 9))
        except subprocess.TimeoutExpired:
            kill(process, everything=kills % 2 == 0)
            kills += 1
            now = outputs(killed)
            assert made.items() <= now.items(), "a result was written again"
            made = now
        else:  # all was done before the last kill: once more from the beginning
            process.communicate()
            assert results(killed) == wanted
            shutil.rmtree(killed / "exp")
            made = {}
    status, said = end(start(killed, rows=rows))
    assert status == 0, said
    assert made.items() <= outputs(killed).items()
    assert results(killed) == wanted
    monkeypatch.chdir(killed)
    main(arguments(killed, rows=rows))
    assert commands_in(capsys.readouterr().out) == [], "nothing is left to do"


@pytest.mark.slow
def test_a_second_command_waits_for_what_an_orphan_still_does(tmp_path, monkeypatch, capsys):
    """Killed alone, its training goes on: the next one does not begin it again."""
    make_small(tmp_path, epochs=3)
    monkeypatch.chdir(tmp_path)
    first = start(tmp_path)
    log = tmp_path / "exp/tiny/PSPNet/split0/resnet18/train.log"
    while not log.is_file() and first.poll() is None:
        time.sleep(0.05)
    kill(first, everything=False)
    assert others_at_work([log.with_name("last.pth")]) == 1
    main(arguments(tmp_path, "--only", "base"))
    assert commands_in(capsys.readouterr().out) == []
    assert log.read_text().count("effective batch") == 1
