"""torchrun --max-restarts: a dead process is started anew, a final failure is not tried again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys
sys.path.append("{root}")
from util.runtime.errors import FewShotError, LostProcess, NonFiniteLoss, run

def main():
    with open("tried" + os.environ["RANK"], "a") as file:
        file.write("x")
    if sys.argv[1] == "killed" and os.path.getsize("tried" + os.environ["RANK"]) < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    errors = {"mistake": FewShotError, "diverged": NonFiniteLoss, "lost": LostProcess}
    if sys.argv[1] in errors:
        raise errors[sys.argv[1]]("it ended")

run(main)
"""


@pytest.mark.parametrize(
    ("end", "times", "status"),
    [("mistake", 1, 1), ("diverged", 1, 1), ("lost", 2, 1), ("killed", 2, 0)],
)
def test_what_is_tried_again(tmp_path, end, times, status):
    (tmp_path / "script.py").write_text(SCRIPT.replace("{root}", str(ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "1", "--max-restarts", "1", "script.py", end]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "tried0").read_text() == "x" * times
