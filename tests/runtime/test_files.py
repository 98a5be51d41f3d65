"""Writing beside and renaming, everywhere; a full disk is one sentence with the file's name."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import prepare_trees as trees
from tests.training_case import ROOT
from util.config import config_from_dict, load_config
from util.config.schema import KEYS
from util.draw.charts import run_spread_chart
from util.draw.files import write_jpeg, write_labels, write_png
from util.prepare.__main__ import main as prepare
from util.report.__main__ import write as write_report
from util.runtime import errors, files
from util.runtime.errors import FewShotError
from util.runtime.files import (
    CannotWrite,
    claim,
    in_use,
    lock,
    user_path,
    write_atomically,
    write_json,
)  # fmt: skip

NODE = socket.gethostname()
# Where a stream grows (logs, locks, archives), and the note to torchrun in the temporary folder.
STREAMS = {
    "util/train/log.py",
    "util/train/checkpoints.py",
    "util/prepare/archives.py",
    "util/reproduce/runner.py",
    "util/runtime/files.py",
    "util/runtime/restarts.py",
}
WRITES = re.compile(
    r"""open\([^)\n]*["'][wax]b?\+?["']|\.write_(text|bytes)\(|savefig\(|imwrite\(|np\.savez?\(|"""
    r"""\.save\(|json\.dump\(|torch\.save\(|\.to_csv\("""
)
IN_MEMORY = ("content, ", "buffer", "state", "snapshot", "walk")


def test_nothing_writes_a_file_past_the_one_writer():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("util/**/*.py"), *ROOT.glob("model/**/*.py")]
    assert len(sources) > 50
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        if str(path.relative_to(ROOT)) not in STREAMS
        for line in path.read_text(encoding="utf-8").splitlines()
        if (match := WRITES.search(line))
        and not any(word in line[match.end() :] for word in IN_MEMORY)
    ]
    assert not found


class FullDisk:
    """Every ``open`` for writing below ``folder`` meets a disk that takes ``room`` bytes."""

    def __init__(self, monkeypatch, folder: Path, room: int = 0) -> None:
        self.folder, self.left = folder, room
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def open(self, path, mode="r", **options):
        file = open(path, mode, **options)
        disk, write = self, file.write

        class Part:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                write(data[: disk.left])
                if len(data) > disk.left:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.left -= len(data)

        return Part() if disk.folder in Path(path).parents else file


WRITERS = {
    "bytes": lambda path: write_atomically(path, b"x" * 100),
    "json": lambda path: write_json(path, {"a": 1}),
    "png": lambda path: write_png(path, np.zeros((4, 4, 3), np.uint8)),
    "labels": lambda path: write_labels(path, np.zeros((4, 4), np.uint8)),
    "jpeg": lambda path: write_jpeg(path, np.zeros((4, 4, 3), np.uint8)),
    "chart": lambda path: run_spread_chart(path, {"a": [0.5]}),
    "report": lambda path: write_report(path.parent, {path.name: b"x" * 100}),
}


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, write, before):
    path = tmp_path / "new" / "result.x"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    FullDisk(monkeypatch, tmp_path, room=3)
    kept = "nothing was written" if before is None else "the previous file is kept"
    with pytest.raises(CannotWrite, match=rf"cannot write .*result\.x: No space left.*; {kept}"):
        write(path)
    assert [p.read_bytes() for p in path.parent.iterdir()] == [before] * (before is not None)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_where_the_folder_should_be(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"cannot write .*file/result\.x"):
        write(tmp_path / "file" / "result.x")


def test_preparation_names_the_place_that_is_full(tmp_path, monkeypatch):
    root, out = tmp_path / "root", tmp_path / "out"
    split = {"train": {"1": [{"category_id": 1, "segmentation": [trees.box(2, 2, 20, 20)]}]}}
    split["val"] = split["train"]
    for name, objects in split.items():
        for stem in objects:
            trees.write_jpeg(root / f"{name}2014" / f"COCO_{name}2014_{stem}.jpg")
        target = root / "annotations" / f"instances_{name}2014.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(trees.instances(name, objects)))
    FullDisk(monkeypatch, out, room=150)  # enough for the note beside the masks
    words = rf"cannot write {out}/annotations/train2014/.*\.png: No space left.*--out names"
    with pytest.raises(FewShotError, match=words):
        prepare(["coco", "--root", str(root), "--out", str(out), "--lists", str(tmp_path / "l")])


def on_small_disk(folder: Path, size: str, command: list[str]) -> subprocess.CompletedProcess:
    """Run a command that sees a disk of its own, of ``size``, at ``folder``; or skip the test."""
    mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99; shift 2; "$@"; s=$?; '
    mount += 'find "$0" -type f -exec wc -c {} +; exit $s'
    unshare = ["unshare", "-rm", "sh", "-c", mount, str(folder), size, str(folder), *command]
    try:
        done = subprocess.run(unshare, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode in (1, 99) and re.search(r"unshare: |mount: ", done.stderr):
        pytest.skip(f"no disk of its own here: {done.stderr.strip()}")
    return done


def test_a_report_on_a_disk_that_is_full(tmp_path):
    """The real thing: matplotlib's own writer used to leave an empty picture."""
    content = {"dataset": "pascal", "arch": "HDMNet", "backbone": "resnet50", "split": 0, "shot": 1}
    content |= {"episodes": 9, "runs": [{}], "mean": {"miou": 0.5}}
    (tmp_path / "exp").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "exp" / "result.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "util.report", "--exp", tmp_path / "exp", "--output"]
    done = on_small_disk(
        tmp_path / "disk", "12k", [str(word) for word in (*command, tmp_path / "disk")]
    )
    assert done.returncode == 2, done.stderr
    assert f"error: cannot write {tmp_path}/disk/report.png: No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "report.md" in done.stdout and "report.png" not in done.stdout


# --------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("how", [claim, lambda path: lock(path, "wait"), in_use])
def test_a_file_system_without_locks_is_said(monkeypatch, tmp_path, how):
    """It is not taken for a lock that another process has, which one would wait for for ever."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".lock").touch()
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, no_locks)
    with pytest.raises(FewShotError, match=r"cannot lock .*/\.lock: this file system has no locks"):
        how(tmp_path / ".lock")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_lock_on_a_full_disk_is_said():
    with pytest.raises(CannotWrite, match="cannot write in /dev"):
        files.lock(Path("/dev/full"), "wait")


def test_a_lock_of_another_process_is_seen_and_left_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from util.runtime.files import lock\n"
        "held = lock(Path(sys.argv[1]), ''); print('held', flush=True); input()"
    )
    path = tmp_path / ".lock"
    assert not in_use(path)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        owner = path.read_text()
        assert in_use(path) and path.read_text() == owner == f"process {other.pid} on {NODE}"
        other.communicate("\n")
    assert not in_use(path)


# ------------------------------------------------------------------------ what the user named


def test_a_path_means_what_a_shell_makes_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/big/disk")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert user_path("~") == tmp_path and user_path("~/x") == tmp_path / "x"
    assert user_path("$SCRATCH/x") == user_path("${SCRATCH}/x") == Path("/big/disk/x")
    for same in ("a b", "../up", "./~x", "x~", "data/$5 notes", "50%", "a$", "梨"):
        assert user_path(same) == Path(same)
    for bad, part in (
        ("~nobody-here/x", "~nobody-here, and there is no such user"),
        ("$NOWHERE/x", r"\$NOWHERE, and there is no such environment variable"),
        ("${NOWHERE}/x", r"\$\{NOWHERE\}, and there is no such environment variable"),
    ):
        with pytest.raises(FewShotError, match=part):
            user_path(bad)


def option_calls():
    """(file and line, call) of every argument that a command of the project takes."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("util/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "func", None)
            name = getattr(name, "attr", getattr(name, "id", ""))
            if isinstance(node, ast.Call) and name in ("add_argument", "add") and node.args:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_path_on_a_command_line_is_read_in_the_one_way():
    found = 0
    for place, call in option_calls():
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("type") != "Path", f"{place}: user_path reads what a user named"
        if re.search(r"FILE|DIR|PATH", given.get("metavar", "")):
            assert given.get("type") in ("user_path", "expanded"), place
            found += 1
    assert found >= 20


def test_every_path_of_a_configuration_is_read_in_the_one_way(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOWHERE", raising=False)
    paths = [key.name for key in KEYS.values() if key.kind == "path"]
    assert {"data_root", "train_list", "val_list", "exp_root", "weight", "base_weight"} < {*paths}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "common.yaml").write_text("shot: 5")
    lines = ["inherit: ~/common.yaml", "data_set: fss", *(f"{name}: ~/{name}" for name in paths)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    cfg = load_config(tmp_path / "c.yaml", ["weight", "${SCRATCH}/w.pth"])
    assert cfg.shot == 5 and cfg.weight == f"{tmp_path}/scratch/w.pth"
    for name in set(paths) - {"weight"}:
        assert getattr(cfg, name) == f"{tmp_path}/home/{name}"
    assert cfg.exp_dir().is_relative_to(tmp_path / "home" / "exp_root")
    assert config_from_dict(cfg.to_dict(), "again") == cfg
    with pytest.raises(FewShotError, match=r"exp_root '\$NOWHERE/x' begins with \$NOWHERE"):
        load_config(tmp_path / "c.yaml", ["exp_root", "$NOWHERE/x"])


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "aaa...: the name is too"),
        (
            UnicodeEncodeError("ascii", "b\u00e4r.jpg", 1, 2, "ordinal"),
            "this locale (ascii) has not",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
    ],
)
def test_what_the_system_cannot_name_is_a_sentence(monkeypatch, capsys, raised, words):
    def main():
        raise raised

    monkeypatch.setattr(errors, "note_final", lambda status: None)
    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.startswith("error: ") and words in told
    assert len(told) < 300


def test_an_empty_path_is_nobodys_wish():
    for text in ("", " "):
        with pytest.raises(FewShotError, match="a path is empty text: write . for"):
            user_path(text)
