"""What every data set's preparation needs: whole-or-absent files, parallel steps, a summary."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from util.data.index import parallel
from util.data.reading import LYING, picture_size
from util.runtime.errors import FewShotError
from util.runtime.files import CannotWrite, write_atomically

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
Task = TypeVar("Task")


class Row(NamedTuple):
    """One line of the summary: what was counted, what was found, what the official data has."""

    what: str
    found: int
    known: int | None = None


class Prepared(NamedTuple):
    """What a preparation made: where the lists' paths start from, and its summary."""

    data_root: Path
    rows: list[Row]


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either absent (or as before) or complete."""
    # Not flushed to the disk one by one, as checkpoints are: there may be 120,000 of them, and
    # one that a power cut emptied is seen by mask_is_whole and made again.
    write_atomically(path, content, durable=False)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a class-index mask, uint8 [H, W], as a single-channel PNG."""
    done, data = cv2.imencode(".png", mask)
    if not done:
        raise FewShotError(f"{path}: the mask of shape {mask.shape} cannot be written as PNG")
    write_whole(path, data.tobytes())


def mask_is_whole(path: Path) -> bool:
    """Whether ``path`` is a complete PNG: its first and last bytes tell, nothing is decoded."""
    try:
        with path.open("rb") as file:
            head = file.read(len(PNG_START))
            file.seek(-len(PNG_END), os.SEEK_END)
            tail = file.read()
    except OSError:
        return False
    return head == PNG_START and tail == PNG_END


def write_list(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write one ``image mask`` pair a line, paths relative to the data root.

    A tab stands between the two where a path holds a space. A list that is already the same is
    left alone, so that what is cached from it stays valid.
    """
    gap = "\t" if any(" " in name for pair in pairs for name in pair) else " "
    content = "".join(f"{image}{gap}{mask}\n" for image, mask in pairs).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def link_folder(target: Path, link: Path) -> None:
    """Make ``link`` stand for the existing folder ``target``; nothing to do where they are one."""
    if link.exists() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise FewShotError(f"{link} is in the way: remove it, or choose another --out")
    link.parent.mkdir(parents=True, exist_ok=True)
    target, parent = target.resolve(), link.parent.resolve()
    if target.is_relative_to(parent):  # the whole folder can then be moved
        target = target.relative_to(parent)
    link.symlink_to(target, target_is_directory=True)


def claim(folder: Path, made_from: dict[str, str]) -> None:
    """Note in ``folder`` what its masks are made from; masks made from anything else go first.

    Raises:
        FewShotError: the folder holds masks without such a note, which are left alone.
    """
    note = folder / "made_by_prepare.json"
    content = json.dumps(made_from).encode()
    if note.is_file():
        if note.read_bytes() == content:
            return
        for mask in folder.rglob("*.png"):
            mask.unlink()
    elif next(folder.rglob("*.png"), None):
        raise FewShotError(
            f"{folder} holds masks that this command did not make: move them, or choose another "
            "--out"
        )
    write_whole(note, content)


def file_sha1(path: Path) -> str:
    """SHA-1 of a file's content, in hexadecimal."""
    return hashlib.sha1(path.read_bytes()).hexdigest()


def check_size(size: tuple[int, int], picture: Path) -> None:
    """See that a mask of ``size`` (height, width) fits its picture as it is shown.

    Raises:
        FewShotError: it does not, or the picture cannot be read.
    """
    stored, orientation = picture_size(picture)
    shown = stored[::-1] if orientation in LYING else stored
    if size != shown:
        raise FewShotError(
            f"{picture} is {shown[1]}x{shown[0]} pixels, but its annotation is {size[1]}x{size[0]}"
        )


def upright(mask: np.ndarray, picture: Path) -> np.ndarray:
    """Turn a mask [H, W] the way its picture is shown, i.e. with the EXIF orientation applied.

    Annotations are taken to be drawn on the picture as shown; a mask that fits only the stored
    pixels of a picture lying on its side is turned with it.

    Raises:
        FewShotError: the picture cannot be read, or the mask fits it neither way.
    """
    stored, orientation = picture_size(picture)
    if orientation in LYING and mask.shape == stored and stored[0] != stored[1]:
        mask = np.ascontiguousarray(LYING[orientation](mask))
    check_size(mask.shape, picture)
    return mask


class _Guarded:
    """Calls a function and hands the user's mistakes back as text, so that all are reported."""

    def __init__(self, function: Callable[[Task], None]) -> None:
        self.function = function

    def __call__(self, task: Task) -> str | None:
        try:
            self.function(task)
        except CannotWrite:  # a full disk is not every task's mistake
            raise
        except FewShotError as error:
            return str(error)
        return None


def run_all(
    function: Callable[[Task], None], tasks: Sequence[Task], workers: int, title: str
) -> None:
    """Run ``function`` on every task over ``workers`` processes, with a progress bar.

    Raises:
        FewShotError: naming the tasks that failed (all of them are tried first).
    """
    results = parallel(_Guarded(function), tasks, title, workers)
    wrong = [text for text in results if text is not None]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise FewShotError(f"{title}: " + "; ".join(wrong[:5]) + more)


def summary(rows: Sequence[Row]) -> str:
    """The closing table: found beside the known count of the official data, where there is one."""
    lines = []
    width = max(len(row.what) for row in rows)
    for row in rows:
        note = ""
        if row.known is not None:
            note = "as published" if row.found == row.known else f"published: {row.known:,}"
        lines.append(f"  {row.what:<{width}}  {row.found:>9,}  {note}".rstrip())
    return "\n".join(lines)
