"""The soak run in short, and that it would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import EPISODE, STEP, Sample, ends, left_files, look, session_of, soak, watch

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def test_a_leak_is_seen(tmp_path):
    """A command that keeps 1 MiB a step, opens a file a step and leaves a process and a file."""
    code = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
open(os.path.join(os.environ["TMPDIR"], "forgotten"), "w").close()
kept = []
for step in range(1, 41):
    kept.append((bytearray(os.urandom(1 << 20)), open(os.devnull)))
    print(f"iteration {step}/40", flush=True)
    time.sleep(0.01)
"""
    report = watch("leaky", [sys.executable, "-c", code], tmp_path, STEP)
    try:
        assert report.growth > 0.1 and report.samples > 30 and report.processes == 2
        assert len(report.left_processes) == 1
        problems = " ".join(report.problems())
        for words in ("memory grew", "open files", "left running", "forgotten"):
            assert words in problems
    finally:
        for pid in report.left_processes:
            os.kill(pid, 9)


def test_a_steady_command_passes(tmp_path):
    code = """
import time
for step in range(1, 31):
    print(f"evaluate: 10%|#  | {step}/30 [00:01<00:02, 3.0ep/s]", flush=True)
    time.sleep(0.01)
"""
    report = watch("steady", [sys.executable, "-c", code], tmp_path, EPISODE)
    assert report.problems() == [] and report.processes == 1
    assert "steady" in report.line()


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="status 3"):
        watch("failing", [sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path, STEP)


def test_helpers():
    samples = [Sample(i / 10, 100 + i, 5 + 7 * (i in (3, 9, 10))) for i in range(11)]
    assert ends(samples) == (Sample(0.25, 102.5, 5), Sample(0.9, 109, 5))
    with pytest.raises(ValueError, match="too few"):
        ends(samples[:2])
    assert look(os.getpid(), 0.5).memory > 1 << 20
    ended = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    ended.wait()
    assert look(ended.pid, 0.5) is None and session_of(ended.pid) == []


def test_left_files_are_found(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / ".last.pth.7.tmp").touch()
    (tmp_path / "exp" / "last.pth").touch()
    assert left_files(tmp_path, tmp_path / "tmp", [1]) == [str(tmp_path / "exp/.last.pth.7.tmp")]


@pytest.mark.slow
def test_short_soak(tmp_path):
    """Few steps leave the allocator's warm-up in the figures, hence the wider limit."""
    reports = soak(tmp_path / "soak", episodes=600, steps=60)
    assert [report.name for report in reports] == ["train_base.py", "train.py", "test.py"]
    assert [p for report in reports for p in report.problems(allowed=0.05)] == []
    assert all(report.processes >= 2 for report in reports)  # the reader processes were there
