"""The run's folder: atomic checkpoints, the lock, pruning, what counts as the newest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training_case import ROOT, environment
from util.runtime.errors import FewShotError
from util.train.checkpoints import FORMAT, CheckpointStore, read_state


def state(iteration: int, epoch: int = 0) -> dict:
    return {
        "format": FORMAT,
        "model": {"w": torch.full((50,), float(iteration))},
        "optimizer": {},
        "scaler": {},
        "config": {},
        "best": -1.0,
        "best_epoch": -1,
        "effective_batch": 4,
        "iteration": iteration,
        "epoch": epoch,
    }


def test_saves_under_every_name_and_leaves_nothing_else(tmp_path):
    store = CheckpointStore(tmp_path / "a" / "b")
    store.save(state(3), "last", "best")
    assert sorted(p.name for p in store.folder.iterdir()) == ["best.pth", "last.pth"]
    assert read_state(store.path("best"))["iteration"] == 3


def test_periodic_checkpoints_are_pruned_by_epoch_not_by_name(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in (8, 9, 10, 11):
        store.save(state(epoch), f"epoch_{epoch}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_10.pth", "epoch_11.pth"]


def test_latest_is_the_furthest_that_reads_back_whole(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    store.save(state(10, 1), "best")
    store.save(state(20, 1), "epoch_2")
    store.save(state(20, 2), "last")
    assert store.latest()["epoch"] == 2
    whole = store.path("last").read_bytes()
    store.path("last").write_bytes(whole[: len(whole) // 2])
    assert (store.latest()["iteration"], store.latest()["epoch"]) == (20, 1)
    store.path("epoch_2").write_bytes(b"")
    assert store.latest()["iteration"] == 10


def test_a_folder_of_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path):
    store = CheckpointStore(tmp_path)
    store.path("last").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(FewShotError, match=r"no checkpoint in .* can be read: .*last\.pth"):
        store.latest()


def test_weights_alone_cannot_be_resumed_from(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "weights.pth")
    with pytest.raises(FewShotError, match="no training state"):
        read_state(tmp_path / "weights.pth")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_whole_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    store = CheckpointStore(folder)
    store.save(state(5), "last")
    content = bytearray(store.path("last").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = folder / "changed.pth"
    path.write_bytes(content)
    try:
        again = read_state(path)
    except FewShotError as error:
        assert "changed.pth" in str(error)
    else:  # a flipped bit outside what is read (padding, archive flags)
        assert set(again) >= {"format", "model", "optimizer"}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, call):
    store = CheckpointStore(tmp_path)
    store.save(state(1), "last")
    before = store.path("last").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(FewShotError, match=r"last\.pth: No space left.*previous file is kept"):
        store.save(state(2), "last")
    monkeypatch.undo()
    assert store.path("last").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path):
    code = f"""
import resource, torch
from pathlib import Path
from util.train.checkpoints import CheckpointStore
from tests.train.test_checkpoints import state
store = CheckpointStore(Path({str(tmp_path)!r}))
store.save(state(1), "last")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
big = {{**state(2), "model": {{"w": torch.zeros(100_000)}}}}
from util.runtime.errors import run
run(lambda: store.save(big, "last"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "previous file is kept" in done.stderr and "Traceback" not in done.stderr
    assert read_state(tmp_path / "last.pth")["iteration"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_the_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path):
    code = f"""
import sys
from pathlib import Path
from util.train.checkpoints import CheckpointStore
store = CheckpointStore(Path({str(tmp_path)!r}))
store.lock()
print("locked", flush=True)
sys.stdin.read()
"""
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert first.stdout.readline() == "locked\n"
        (tmp_path / ".last.pth.1.tmp").write_bytes(b"half a checkpoint of the running one")
        with pytest.raises(FewShotError, match=f"in use by a run .*process {first.pid} on"):
            CheckpointStore(tmp_path).lock()
        assert (tmp_path / ".last.pth.1.tmp").exists()
    finally:
        first.kill()
        first.wait()
    CheckpointStore(tmp_path).lock()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_new_run_replaces_an_earlier_one_when_it_has_something_to_show(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.begin(resumed=False) is None
    store.save(state(1), "last", "best")
    assert store.begin(resumed=False) == tmp_path / "previous"
    # Until its first save the earlier checkpoints stay, but nothing goes on from them.
    assert read_state(store.path("best"))["iteration"] == 1
    assert CheckpointStore(tmp_path).latest() is None and store.newest_path() == "none yet"
    store.save(state(2), "last")
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["last.pth"]
    assert store.latest()["iteration"] == 2
    assert read_state(tmp_path / "previous" / "best.pth")["iteration"] == 1
    store.begin(resumed=True)
    store.save(state(3), "last")
    assert read_state(tmp_path / "previous" / "last.pth")["iteration"] == 1
    # Going on from an earlier checkpoint after all: those in the folder count again.
    store.begin(resumed=False)
    store.begin(resumed=True)
    assert store.latest()["iteration"] == 3


@pytest.mark.parametrize("name", ["scaler", "config", "epoch", "best", "effective_batch"])
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_state_with_an_odd_entry_is_refused(tmp_path, name, value):
    path = tmp_path / "odd.pth"
    torch.save({**state(1), name: value}, path)
    with pytest.raises(FewShotError, match=rf"odd\.pth is damaged: .* as {name}"):
        read_state(path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FewShotError, match="cannot make the folder"):
        CheckpointStore(Path(tmp_path, "file", "exp"))
