"""Files: one way to write them, one reading of the paths and names that a user gives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from util.runtime.errors import FewShotError

# What stands in the folder of a run.
BEST, LAST = "best.pth", "last.pth"
LOCK = ".lock"  # held by the run that is at work there
SUPERSEDED = ".superseded"  # a new run is about to replace this one

_UNSET = re.compile(r"~[^/]*|\$(\w+|\{[^}/]*\})")
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # of a lock that another process has
_LONGEST_NAME = 80  # characters of a class in a file's name; most systems take 255 bytes in all


class CannotWrite(FewShotError):
    """The disk, not the content, is the reason; the next file would meet it too."""


def refuse_input(output: str | Path, *inputs: str | Path | None) -> None:
    """Raise FewShotError when a result would replace one of the files that it is made from."""
    for source in filter(None, inputs):
        if os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output):
            raise FewShotError(f"{output} would be overwritten by its own result: name another")


def write_atomically(
    path: Path,
    data: bytes,
    check: Callable[[Path], Any] | None = None,
    durable: bool = True,
) -> None:
    """Replace ``path`` by ``data`` or leave it as it was; its folder is made when missing.

    check: reads the new file before it takes its place and raises FewShotError if it is no good.
    durable: wait until the disk has it, so that a power cut leaves no empty file; for the many
    pictures that can be made again this is not worth the time.

    Raises:
        CannotWrite: no room, no permission, or a folder in the way.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # where a folder should be there may be a file
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appending(path: Path) -> Iterator[None]:
    """Around the writes of a stream to ``path``: a full disk is CannotWrite, with its name."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> CannotWrite:
    kept = "the previous file is kept" if path.is_file() else "nothing was written"
    return CannotWrite(f"cannot write {path}: {error.strerror or error}; {kept}")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def expanded(text: str | os.PathLike[str]) -> str:
    """A path as a user named it, in a configuration or on the command line, written out.

    ``~``, ``~name`` and ``$VARIABLE`` are what a shell makes of them; it does so only where they
    stand unquoted on its own command line. ``./~x`` is a file called ``~x``.

    Raises:
        FewShotError: it is empty, as a variable in quotes that is not set (the working folder is
            ``.``), or begins with a user or a variable that does not exist: a folder called
            ``~`` or ``$SCRATCH`` in the working folder is nobody's wish.
    """
    if not os.fspath(text).strip():
        raise FewShotError("a path is empty text: write . for the working folder")
    path = os.path.expandvars(os.path.expanduser(text))
    if unset := _UNSET.match(path):
        what = "user" if path[0] == "~" else "environment variable"
        raise FewShotError(
            f"'{os.fspath(text)}' begins with {unset[0]}, and there is no such {what}; write "
            f"'./{path}' for a file of that name"
        )
    return path


def user_path(text: str) -> Path:
    """:func:`expanded` as a path; a ``type`` for argparse."""
    return Path(expanded(text))


def file_name(text: str) -> str:
    """``text``, say a class name, as part of a file's name: letters, digits and ``-_. `` stay.

    Different texts may share a result: put a number beside it.
    """
    kept = "".join(c if c.isalnum() or c in "-_. " else "_" for c in text[:_LONGEST_NAME])
    try:
        os.fsencode(kept)
    except UnicodeEncodeError:  # a system without UTF-8 has no file names in other alphabets
        kept = kept.encode("ascii", "replace").decode().replace("?", "_")
    while len(os.fsencode(kept)) > 2 * _LONGEST_NAME:
        kept = kept[:-1]
    return kept


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a killed run leaves the old file or the new one, never half a file."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Half a letter, out of a file name that is not UTF-8, is its escape in JSON too.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def lock(path: Path, advice: str) -> TextIO:
    """Claim the folder of ``path`` until the file returned is closed or the process ends.

    A record lock: worker processes do not inherit it and it works on network drives. Raises
    :class:`FewShotError`, ending with ``advice``, when another process has it.
    """
    try:
        file = open(path, "a+")
    except OSError as error:
        raise FewShotError(f"cannot write in {path.parent}: {error.strerror}") from error
    locked = _locked(file, path, fcntl.lockf)
    if not locked:
        time.sleep(0.1)  # :func:`in_use` has it for a moment
        locked = _locked(file, path, fcntl.lockf)
    if not locked:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise FewShotError(
            f"{path.parent} is in use by a run that is still going ({owner}); {advice}"
        )
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:  # a full disk
        raise CannotWrite(f"cannot write in {path.parent}: {error.strerror}") from error
    return file


def claim(path: Path) -> TextIO | None:
    """Claim what the file ``path`` stands for (its folder is made); None while another has it.

    Held until the file returned is closed here and in every process that it was handed to
    (``pass_fds``): unlike :func:`lock`, a child that outlives its parent keeps it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise FewShotError(f"cannot write in {path.parent}: {error.strerror}") from error
    if not _locked(file, path, fcntl.flock):
        file.close()
        return None
    return file


def in_use(path: Path) -> bool:
    """Whether another process has the :func:`lock` on ``path``."""
    try:
        file = open(path)
    except OSError:
        return False
    with file:
        return not _locked(file, path, fcntl.lockf, fcntl.LOCK_SH)


def _locked(
    file: TextIO, path: Path, how: Callable[[TextIO, int], None], kind: int = fcntl.LOCK_EX
) -> bool:
    """Whether a lock on an open file could be had; False when another process has it."""
    try:
        how(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        file.close()
        raise FewShotError(
            f"cannot lock {path}: this file system has no locks ({error.strerror})"
        ) from error
    return True


def check_folder(folder: Path) -> None:
    """Raise FewShotError when nothing can be written into a folder, made or still to be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "there is no permission" if there.is_dir() else f"{there} is no folder"
        raise FewShotError(f"cannot write in {folder}: {why}")
