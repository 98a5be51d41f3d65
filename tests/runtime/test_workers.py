"""Worker processes on machines with little: shared memory, open files, patience."""

from __future__ import annotations

import errno
import gc
import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.training_case import command, environment, make_data
from util.data.loader import collate
from util.evaluate.reader import PictureReader
from util.runtime import workers
from util.runtime.errors import FewShotError, LostProcess
from util.runtime.workers import Parcel, dead_workers, read_ahead, shared_memory, starting

SIDE = 64


class Item(NamedTuple):
    position: int
    image: Tensor
    content: tuple[int, int]


class Pictures:
    """Items of a few kB; every one is made of its number."""

    def __init__(self, length: int = 8) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Item:
        if position == 5:
            raise FewShotError("5.jpg is broken")
        image = torch.full((3, SIDE, SIDE), position % 256, dtype=torch.uint8)
        return Item(position, image, (SIDE, 1))


@pytest.mark.parametrize("count", [0, 2])
def test_items_arrive_as_they_are_and_in_memory_of_their_own(count):
    items = list(read_ahead(Pictures(), count, batch_size=None))
    assert isinstance(items[5], FewShotError) and str(items.pop(5)) == "5.jpg is broken"
    for item, position in zip(items, (0, 1, 2, 3, 4, 6, 7), strict=True):
        assert type(item) is Item and item.position == position and item.content == (SIDE, 1)
        assert (item.image == position).all() and item.image.shape == (3, SIDE, SIDE)
        assert not item.image.is_shared()  # neither /dev/shm nor an open file while it is kept
        item.image.zero_()  # and it may be written to


def test_kept_pictures_hold_no_file_open():
    before = len(os.listdir("/proc/self/fd"))
    reader = PictureReader(Pictures(400), lambda position: True, workers=1, room=10**9)
    reader.start(range(6, 300))
    for position in range(6, 300):
        reader.get(position)
    assert len(os.listdir("/proc/self/fd")) < before + 30
    reader.stop()


def test_a_parcel_keeps_every_kind_of_item():
    batch = {"image": torch.rand(2, 3), "files": [["a", "b"]], "class": torch.tensor([1, 2])}
    opened = Parcel({**batch, "more": (torch.zeros(0), None)}).open()
    assert opened["files"] == [["a", "b"]] and opened["more"][1] is None
    for key in ("image", "class"):
        assert torch.equal(opened[key], batch[key]) and opened[key].dtype == batch[key].dtype
    error = FewShotError("x")
    assert Parcel(error).open() is error


class Batches(Pictures):
    def __getitem__(self, position: int) -> dict:
        item = super().__getitem__(position)
        return {"image": item.image, "class_index": position, "files": [f"{position}.jpg"]}


@pytest.mark.parametrize("count", [0, 1])
def test_batches_are_collated_where_they_are_read(count, monkeypatch):
    """In memory of the worker's own too: torch's default would take shared memory there."""
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", None)
    both = list(read_ahead(Batches(4), count, collate=collate, batch_size=2))
    for number, batch in enumerate(both):
        assert batch["image"].shape == (2, 3, SIDE, SIDE) and not batch["image"].is_shared()
        assert batch["class_index"].tolist() == [2 * number, 2 * number + 1]
        assert batch["files"] == [[f"{2 * number}.jpg"], [f"{2 * number + 1}.jpg"]]


class Wrong:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> int:
        raise (ValueError, OSError)[position]("a mistake in the program")


@pytest.mark.parametrize("kind, position", [(ValueError, 0), (OSError, 1)])
def test_a_mistake_in_a_worker_is_not_its_death(kind, position):
    with pytest.raises(kind, match="a mistake in the program"), dead_workers():
        next(read_ahead(Wrong(), 1, batch_size=None, sampler=[position]))


class Slow:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, position: int) -> int:
        if position == 1:
            time.sleep(2)
        return position


def test_waiting_for_a_worker_ends(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    items = read_ahead(Slow(), 1, batch_size=None)
    assert next(items) == 0
    with pytest.raises(LostProcess, match="no data-loading process has handed over.*go on"):
        with dead_workers("go on"):
            next(items)


def test_a_process_that_cannot_start_says_what_is_short():
    with pytest.raises(FewShotError, match=r"cannot start 3 .*No space left.*; /dev/shm has .* MB"):
        with starting(3):
            raise OSError(28, "No space left on device")
    with pytest.raises(FewShotError, match=r"too many open files: .* may have \d+ .*ulimit -n"):
        with starting(3):
            raise OSError(24, "Too many open files")
    assert re.search(r"/dev/shm (has [\d.]+ of [\d.]+ MB free|cannot be used)", shared_memory())


@pytest.mark.filterwarnings(
    "error::pytest.PytestUnraisableExceptionWarning"
)  # what half of a loader says when it is thrown away
@pytest.mark.parametrize(
    "call, number, words",
    [
        ("multiprocessing.synchronize.SemLock.__init__", errno.ENOSPC, "No space left.*; /dev/shm"),
        ("os.pipe", errno.EMFILE, "too many open files"),
    ],
)
def test_what_processes_lack_is_said_before_any_is_started(monkeypatch, call, number, words):
    def short(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, short)
    with pytest.raises(FewShotError, match=words):
        read_ahead(Pictures(), 3, batch_size=None)
    gc.collect()


# ------------------------------------------------------------------------ whole commands

# Needs no base learner.
HSNET = ("arch", "HSNet", "train_h", 96, "train_w", 96, "val_size", 96)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machine") / "tiny"
    make_data(folder)
    return folder


def with_small_shm(size: str, words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """A command in a mount namespace of its own whose /dev/shm has ``size``; or skip the test."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", *words],
            cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode in (1, 99) and re.search(r"unshare: |mount: ", done.stderr):
        pytest.skip(f"no /dev/shm of its own here: {done.stderr.strip()}")
    return done


def test_training_and_validation_with_little_shared_memory(case):
    """256 kB: the locks of the processes, and not one batch."""
    options = ("workers", 3, "max_iterations", 1, "name", "small", *HSNET)
    words = command("train.py", case / "stage2.yaml", "--opts", *options)
    done = with_small_shm("256k", [str(word) for word in words], case)
    assert done.returncode == 0, done.stderr
    assert "validation" in done.stdout and "Traceback" not in done.stderr
