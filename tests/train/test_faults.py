"""Bad days: kill -9, signals, dead workers, broken pictures, full disks, hostile files."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.train.test_loop import same_run
from tests.training_case import ROOT, call, command, environment, make_data, train
from util.train.checkpoints import read_state

ARGUMENTS = {
    "stage1": ("train_base.py", "PSPNet/split0/resnet18"),
    "stage2": ("train.py", "HDMNet/split0/resnet18/1shot"),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "tiny"
    make_data(folder)
    done = call("train_base.py", folder / "stage1.yaml", "--opts", "max_iterations", 2)
    assert done.returncode == 0, done.stderr
    return folder


def folder_of(case: Path, stage: str, name: str) -> Path:
    return case / "exp" / "tiny" / ARGUMENTS[stage][1] / name


def launch(case: Path, stage: str, name: str, *more, **extra: str) -> subprocess.Popen:
    """A run in a process group of its own."""
    return subprocess.Popen(
        command(ARGUMENTS[stage][0], case / f"{stage}.yaml", "--opts", "name", name, *more),
        cwd=case,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


def contents(folder: Path) -> dict[str, bytes]:
    """Every result of a run (logs apart), to see that nothing touched them."""
    return {p.name: p.read_bytes() for p in folder.glob("*.pth")}


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


# ------------------------------------------------------------------------ kill -9


@pytest.mark.slow
@pytest.mark.parametrize("stage, iterations", [("stage1", 40), ("stage2", 30)])
def test_killed_at_random_moments_and_resumed_equals_undisturbed(case, stage, iterations):
    """Steps, saves (one after every step) and validations are all hit; two workers read ahead."""
    options = ("save_every", 1, "max_iterations", iterations, "epochs", 99, "workers", 2, "keep", 1,
               "save_freq", 1, "print_freq", 1)  # fmt: skip
    script = ARGUMENTS[stage][0]
    done = call(script, case / f"{stage}.yaml", "--opts", "name", "undisturbed", *options)
    assert done.returncode == 0, done.stderr

    moments = random.Random(5)
    for _ in range(6):
        run = launch(case, stage, "killed", *options, "--resume", "auto")
        wait_for(run, "steps an epoch")
        for _ in range(moments.randrange(3)):
            wait_for(run, "iteration ")
        time.sleep(moments.uniform(0.0, 0.3))
        os.killpg(run.pid, signal.SIGKILL)
        _, errors = run.communicate()
        assert run.returncode == -signal.SIGKILL, "finished too soon to be killed"
        assert "error" not in errors, errors
    done = call(script, case / f"{stage}.yaml", "--opts", "name", "killed", *options,
                "--resume", "auto")  # fmt: skip
    assert done.returncode == 0, done.stderr
    undisturbed, after = (folder_of(case, stage, name) for name in ("undisturbed", "killed"))
    assert same_run(read_state(undisturbed / "last.pth"), read_state(after / "last.pth"))
    best = [read_state(folder / "best.pth") for folder in (undisturbed, after)]
    assert same_run(*best)
    assert sorted(contents(undisturbed)) == sorted(contents(after))
    assert not list(after.glob(".*.tmp"))


@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename"])
def test_killed_during_a_save(tmp_path, moment):
    """Whatever part of a save was done, the folder holds one whole checkpoint and goes on."""
    code = f"""
import os, signal, sys, torch
from pathlib import Path
from tests.train.test_checkpoints import state
from util.train import checkpoints as module
from util.runtime import files
store = module.CheckpointStore(Path({str(tmp_path)!r}))
store.save(state(1), "last")
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
class Half:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data): self.file.write(data[: len(data) // 2]); self.file.flush(); die()
moment = {moment!r}
if moment == "half written":
    files.open = lambda *a: Half(open(*a))
elif moment == "before the rename":
    os.replace = die
else:
    files._sync_folder = die
store.save(state(2), "last")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGKILL
    from util.train.checkpoints import CheckpointStore

    store = CheckpointStore(tmp_path)
    store.lock()
    assert store.latest()["iteration"] == (2 if moment == "after the rename" else 1)
    assert not list(tmp_path.glob(".*.tmp"))


# ------------------------------------------------------------------------ signals, workers


@pytest.mark.parametrize(
    "stage, number",
    [
        ("stage2", signal.SIGTERM),
        pytest.param("stage1", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group_saves_and_leaves(case, stage, number):
    """As Ctrl-C and batch systems send it: the workers get it too."""
    run = launch(case, stage, "signal", "workers", 2, "print_freq", 1, "epochs", 500)
    wait_for(run, "iteration 2/")
    os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75, errors
    assert "Traceback" not in errors
    (iteration,) = re.findall(rf"error: stopped by {number.name} at iteration (\d+)", errors)
    saved = read_state(folder_of(case, stage, "signal") / "last.pth")
    assert saved["iteration"] == int(iteration) >= 2


def test_workers_ignore_strangers_and_obey_their_main_process():
    code = """
import multiprocessing, os, subprocess, time
from util.runtime.signals import start_worker
def work(ready):
    start_worker(0)
    ready.set()
    time.sleep(100)
ready = multiprocessing.get_context("fork").Event()
worker = multiprocessing.get_context("fork").Process(target=work, args=(ready,))
worker.start()
ready.wait()
subprocess.run(["kill", "-TERM", str(worker.pid)])
subprocess.run(["kill", "-INT", str(worker.pid)])
worker.join(1)
assert worker.is_alive()
worker.terminate()
worker.join(30)
assert worker.exitcode == 0, worker.exitcode
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), timeout=60)
    assert done.returncode == 0


def cut():
    """What a loader yields whose worker dies while it hands a batch over."""
    yield "a batch"
    raise ConnectionResetError(104, "Connection reset by peer")


def test_a_worker_that_dies_while_it_hands_over_a_batch():
    from util.data.loader import GO_ON, whole
    from util.evaluate.reader import PictureReader
    from util.runtime.errors import LostProcess
    from util.runtime.workers import dead_workers, received

    with pytest.raises(LostProcess, match="process died .*Connection reset by peer.*--resume auto"):
        with dead_workers(GO_ON):
            list(whole(received(cut())))
    reader = PictureReader(None, lambda position: False, workers=1, room=0)
    reader.loaded, reader.in_flight = received(cut()), [7, 8]
    assert reader.get(7) == "a batch"
    with pytest.raises(LostProcess, match="process died .*Connection reset by peer"):
        reader.get(8)


def test_a_dead_worker_is_one_sentence(case):
    run = launch(case, "stage2", "worker", "workers", 2, "print_freq", 1, "epochs", 500)
    wait_for(run, "iteration 2/")
    os.kill(workers_of(run)[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2, errors
    assert "a data-loading process died" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(case):
    run = launch(case, "stage1", "twice", "print_freq", 1, "epochs", 500, "save_every", 1)
    try:
        wait_for(run, "iteration 2/")
        second = call("train_base.py", case / "stage1.yaml", "--opts", "name", "twice")
        assert second.returncode == 2
        assert f"in use by a run that is still going (process {run.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert run.poll() is None
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


# ------------------------------------------------------------------------ broken input


def test_a_picture_that_breaks_in_a_later_epoch(case, tmp_path):
    """Truncated under the running job: the sentence names it, the checkpoint stays."""
    data = tmp_path / "data"
    shutil.copytree(case / "data", data)
    options = ("data_root", data, "workers", 1, "print_freq", 1, "epochs", 500, "save_every", 1)
    run = launch(case, "stage2", "truncated", *options)
    wait_for(run, "epoch 2 iteration")
    broken = data / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 2, errors
    assert str(broken) in errors and "Traceback" not in errors
    assert read_state(folder_of(case, "stage2", "truncated") / "last.pth")["epoch"] >= 1


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def hostile_checkpoint(case: Path, folder: Path) -> tuple:
    (folder / "last.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    return ("--resume", folder / "last.pth")


def truncated_checkpoint(case: Path, folder: Path) -> tuple:
    path = folder / "cut.pth"
    path.write_bytes((folder / "best.pth").read_bytes()[:5000])
    return ("--resume", path)


def weights_only(case: Path, folder: Path) -> tuple:
    torch.save({"model": {"w": torch.ones(2)}}, folder / "weights.pth")
    return ("--resume", folder / "weights.pth")


BAD_STARTS = {
    "no such checkpoint": (lambda c, f: ("--resume", "nowhere.pth"), r"nowhere\.pth does not"),
    "hostile checkpoint": (hostile_checkpoint, r"last\.pth holds more than tensors"),
    "truncated checkpoint": (truncated_checkpoint, r"cut\.pth is truncated"),
    "weights alone": (weights_only, r"weights\.pth holds weights but no training state"),
    "no base learner": (
        lambda c, f: ("--opts", "base_weight", "missing.pth"),
        r"missing\.pth does not exist",
    ),
    "base learner of another fold": (
        lambda c, f: ("--opts", "folds", "[[1], [2], [3, 4]]", "split", 2, "base_weight",
                      c / "exp/tiny/PSPNet/split0/resnet18/best.pth"),
        r"best\.pth was trained on stripe, frame, which split 2 here holds out",
    ),
    "no list": (lambda c, f: ("--opts", "train_list", "gone.txt"), r"gone\.txt"),
    "no data": (lambda c, f: ("--opts", "data_root", "gone"), r"gone"),
    "too many shots": (lambda c, f: ("--opts", "shot", 50), r"50 support"),
    "nothing big enough": (lambda c, f: ("--opts", "min_pixels", 99999), r"list\.txt|min_pixels"),
    "unknown key": (lambda c, f: ("--opts", "shots", 1), r"shots.*shot"),
    "stage 1 configuration": (lambda c, f: ("--opts", "arch", "PSPNet"), r"train_base\.py"),
    "too small": (lambda c, f: ("--opts", "train_h", 20), r"train_h|20"),
    "no folder possible": (lambda c, f: ("--opts", "exp_root", c / "list.txt"), r"list\.txt"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(case) -> Path:
    """A folder with results that a failing start must leave alone."""
    done = call("train.py", case / "stage2.yaml", "--opts", "max_iterations", 1)
    assert done.returncode == 0, done.stderr
    return folder_of(case, "stage2", "")


@pytest.mark.parametrize("mistake", BAD_STARTS)
def test_a_mistake_is_one_sentence_and_touches_no_result(case, finished, mistake, tmp_path,
                                                         monkeypatch, capsys):  # fmt: skip
    from train import main
    from util.runtime.errors import run

    arguments, words = BAD_STARTS[mistake]
    backup = tmp_path / "backup"
    shutil.copytree(finished, backup)
    more = arguments(case, finished)
    before = contents(finished)
    monkeypatch.chdir(case)
    monkeypatch.setattr(sys, "argv", command("train.py", case / "stage2.yaml", *more)[1:])
    try:
        with pytest.raises(SystemExit) as caught:
            run(main)
        assert caught.value.code == 2
        errors = capsys.readouterr().err
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert re.search(words, line), line
        assert contents(finished) == before
        assert not (case / "hostile-code-ran").exists()
    finally:
        shutil.rmtree(finished)
        shutil.copytree(backup, finished)


def test_missing_encoder_weights_are_named(case):
    from util.config import load_config
    from util.runtime.errors import FewShotError

    cfg = load_config(case / "stage1.yaml", ["pretrained", "initmodel/x.pth"])
    with pytest.raises(FewShotError, match="encoder weights initmodel/x.pth do not exist"):
        train(cfg)


# ------------------------------------------------------------------------ full disk


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(case):
    """The file-size limit meets the first save that follows; earlier ones stay readable."""
    done = call("train.py", case / "stage2.yaml", "--opts", "name", "full", "max_iterations", 1)
    assert done.returncode == 0, done.stderr
    folder = folder_of(case, "stage2", "full")
    before = contents(folder)
    limited = [sys.executable, "-c", f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.path.insert(0, {str(ROOT)!r})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""]  # fmt: skip
    arguments = command("train.py", case / "stage2.yaml", "--opts", "name", "full",
                        "max_iterations", 3, "--resume", "auto")[1:]  # fmt: skip
    done = subprocess.run([*limited, *arguments], cwd=case, env=environment(), text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: cannot write .*\.pth: File too large", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert contents(folder) == before and not list(folder.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_log_is_one_sentence(case, tmp_path):
    from util.runtime.errors import FewShotError
    from util.train.log import RunLog

    log = RunLog(tmp_path)
    (tmp_path / "train.log").unlink(missing_ok=True)
    (tmp_path / "train.log").symlink_to("/dev/full")
    with pytest.raises(FewShotError, match=r"cannot write .*train\.log: No space left"):
        log.say("a line")
