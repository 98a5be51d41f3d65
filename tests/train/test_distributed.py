"""Two processes on gloo against one: training, validation, and what happens when one dies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.equality import bits, worst
from tests.training_case import call, command, environment, make_data
from util.train.checkpoints import read_state


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "tiny"
    make_data(folder, ignored=True)
    done = call("train_base.py", folder / "stage1.yaml", "--opts", "max_iterations", 2)
    assert done.returncode == 0, done.stderr
    return folder


def start(case: Path, script: str, stage: str, processes: int, *options) -> list[subprocess.Popen]:
    """The ranks of one run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            command(script, case / f"{stage}.yaml", "--opts", *options),
            cwd=case,
            env=environment(
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                WORLD_SIZE=str(processes),
                RANK=str(rank),
                LOCAL_RANK=str(rank),
            ),  # fmt: skip
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(ranks: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(status, stderr) of each rank; none is left behind."""
    try:
        return [
            (rank.returncode, err) for rank in ranks for _, err in [rank.communicate(timeout=200)]
        ]
    finally:
        for rank in ranks:
            rank.kill()


def state(case: Path, arch: str, name: str) -> dict:
    middle = "PSPNet/split0/resnet18" if arch == "PSPNet" else "HDMNet/split0/resnet18/1shot"
    return read_state(case / "exp" / "tiny" / middle / name / "last.pth")


@pytest.mark.parametrize(
    "script, stage, arch, options, limit",
    [
        ("train.py", "stage2", "HDMNet", ("optimizer", "sgd"), 1e-5),
        (
            "tests/train_in_double.py",
            "stage2",
            "HDMNet",
            ("optimizer", "adamw", "evaluate", False),
            1e-9,
        ),
        pytest.param("train_base.py", "stage1", "PSPNet", (), 1e-5, marks=pytest.mark.slow),
    ],
    ids=["SGD", "AdamW-float64", "stage1"],
)  # fmt: skip
def test_two_processes_follow_one_with_the_joint_batch(case, script, stage, arch, options, limit):
    """20 steps, batch norms fixed, dropout on, parts with different numbers of valid pixels.

    AdamW makes a whole step of a gradient that is rounding noise around zero, whatever its size:
    in float32 a sum in another order shows, in one process as in two. So here it is in float64.
    """
    options = ("max_iterations", 20, "epochs", 9, "fix_bn", True, *options)
    joint = (1, "batch_size", 2, "name", "joint")
    split = (2, "batch_size", 1, "name", "split")
    for processes, *more in (joint, split):
        for status, errors in finish(start(case, script, stage, processes, *options, *more)):
            assert status == 0, errors
    one, two = (state(case, arch, name) for name in ("joint", "split"))
    assert one["iteration"] == two["iteration"] == 20
    difference, name = worst(two["model"], one["model"])
    assert difference <= limit, name
    if script.endswith("in_double.py"):
        assert all(x.dtype != torch.float32 for x in one["model"].values())
        return
    # The validation that chose the best was shared by the two. Weights as close as these decide a
    # few of its 7,000 pixels otherwise; of equal weights it is exactly the same (test_evaluate.py).
    assert one["best"] == pytest.approx(two["best"], abs=0.02)


@pytest.mark.slow
def test_two_processes_equal_accumulated_steps_to_the_last_bit(case):
    """AdamW: the same parts computed one after the other or side by side, sums of two terms."""
    options = ("max_iterations", 4, "batch_size", 1)
    runs = ((1, "accumulate", 2, "name", "parts"), (2, "name", "ranks"))
    for processes, *more in runs:
        for status, errors in finish(start(case, "train.py", "stage2", processes, *options, *more)):
            assert status == 0, errors
    one, two = (state(case, "HDMNet", name) for name in ("parts", "ranks"))
    assert bits(two["model"], one["model"])
    facts = case / "exp/tiny/HDMNet/split0/resnet18/1shot/ranks/run.json"
    assert json.loads(facts.read_text())["effective_batch"] == 2
    assert (one["best"], one["best_epoch"]) == (two["best"], two["best_epoch"])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_exactly(case):
    options = ("max_iterations", 6, "batch_size", 1, "print_freq", 1)
    ranks = start(case, "train.py", "stage2", 2, *options, "name", "stopped")
    wait_for(ranks[0], "iteration 1/")
    ranks[1].send_signal(signal.SIGTERM)
    results = finish(ranks)
    assert [status for status, _ in results] == [75, 75], results
    assert "--resume auto" in results[0][1] and "error" not in results[1][1]
    for name, more in (("stopped", ("--resume", "auto")), ("straight", ())):
        ranks = start(case, "train.py", "stage2", 2, *options, "name", name, *more)
        assert [status for status, _ in finish(ranks)] == [0, 0]
    one, two = (state(case, "HDMNet", name) for name in ("straight", "stopped"))
    assert bits(two["model"], one["model"])


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


def test_a_dead_process_ends_the_others(case):
    """Gloo sees the connection close: the others end at once, here well within a minute."""
    ranks = start(case, "train.py", "stage2", 2, "epochs", 90, "batch_size", 1, "print_freq", 1,
                  "name", "dead", "save_every", 1)  # fmt: skip
    wait_for(ranks[0], "iteration 2/")
    ranks[1].kill()
    died = time.monotonic()
    (status, errors), _ = finish(ranks)
    assert time.monotonic() - died < 60
    assert status == 2 and "lost another process" in errors, errors
    assert "Traceback" not in errors
    assert state(case, "HDMNet", "dead")["iteration"] >= 1


def test_a_mistake_is_told_once_and_ends_all(case):
    results = finish(start(case, "train.py", "stage2", 2, "min_pixels", 100_000))
    assert [status for status, _ in results] == [2, 2]
    assert [errors.count("error:") for _, errors in results] == [1, 0]


def test_a_failure_of_the_main_process_at_the_start_ends_all(case):
    """The others would wait for it at the first step."""
    folder = case / "exp/tiny/HDMNet/split0/resnet18/1shot/blocked"
    (folder / ".superseded").mkdir(parents=True)  # where a file may have to go
    results = finish(start(case, "train.py", "stage2", 2, "max_iterations", 1, "name", "blocked"))
    assert [status for status, _ in results] == [2, 2], results
    assert [errors.count("error: cannot write in") for _, errors in results] == [1, 0], results


@pytest.mark.slow
def test_stage_one_validation_is_the_same_on_two_and_three_processes(case):
    """Integer counts, each picture on one process: equal scores, 16 pictures on 3 processes too."""
    scores = []
    for processes in (1, 2, 3):
        name = f"shared{processes}"
        options = ("base_lr", 1e-12, "batch_size", 6 // processes, "max_iterations", 1,
                   "name", name, "weight_decay", 0, "fix_bn", True)  # fmt: skip
        for status, errors in finish(start(case, "train_base.py", "stage1", processes, *options)):
            assert status == 0, errors
        scores.append(state(case, "PSPNet", name)["best"])
    assert scores[0] == scores[1] == scores[2]
