"""Which pictures a prediction is asked for, and whose results its folder holds.

A folder of results belongs to one call: these supports, weights and settings. The same call goes on
in it; another one is refused before it could mix its results with those that lie there.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from util.config.folders import is_any_picture, is_picture, is_strange, searched
from util.runtime.errors import FewShotError
from util.runtime.files import lock

RESULTS = ("labels", "overlays", "probabilities", "correlations", "summary")
_LOCK = ".predict.lock"


# ----------------------------------------------------------------------------------------- queries


def find_queries(
    patterns: Sequence[str], output: Path | None = None
) -> tuple[dict[str, Path], list[Path]]:
    """The pictures of files, folders (searched whole) and globs, and what was passed over.

    Returns (name for the results -> picture, sorted; what was passed over: folders of results, and
    pictures of kinds that are read only where they are named).
    The name is the path below the folder without its suffix; where two pictures would share a name,
    the suffix is added (``a_jpg``, ``a_png``). Results of this or an earlier call are no queries,
    wherever ``output`` lies, and hidden files and folders neither.
    """
    found: dict[Path, Path] = {}
    passed: list[Path] = []
    strange: list[Path] = []
    leave_out = partial(_noted, passed, output)
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            pictures = {}
            if not any(map(leave_out, (path, *path.absolute().parents))):
                below = list(searched(path, leave_out, is_any_picture))
                strange += filter(is_strange, below)
                pictures = {p: p.relative_to(path) for p in filter(is_picture, below)}
        else:
            matched = [path] if path.is_file() else map(Path, glob.glob(pattern, recursive=True))
            matched = [p for p in matched if p == path or p.is_file()]
            strange += [p for p in matched if p != path and is_strange(p)]
            matched = [p for p in matched if p == path or is_picture(p)]
            pictures = {
                p: Path(p.name) for p in matched if not any(map(leave_out, p.absolute().parents))
            }
        if not pictures:
            raise FewShotError(
                f"query '{pattern}' is no picture, no folder with pictures, no glob"
                + (": results of predict.py are no queries" if passed else "")
                + (f"; {strange[0].name} is of a kind to be named itself" if strange else "")
            )
        found.update(pictures)
    names = {path: relative.with_suffix("").as_posix() for path, relative in found.items()}
    twice = Counter(names.values())
    queries: dict[str, Path] = {}
    for path in sorted(names):
        name = names[path] + (f"_{path.suffix[1:]}" if twice[names[path]] > 1 else "")
        if name in queries:
            raise FewShotError(f"queries {queries[name]} and {path} would share the name {name}")
        queries[name] = path
    return queries, passed + strange


def _noted(passed: list[Path], output: Path | None, folder: Path) -> bool:
    """Whether a folder holds results of a prediction; if so it is noted in ``passed``."""
    if folder.name not in RESULTS or not _holds_results(folder.parent, output):
        return False
    if folder not in passed:
        passed.append(folder)
    return True


def _holds_results(folder: Path, output: Path | None) -> bool:
    if output is not None and os.path.realpath(folder) == os.path.realpath(output):
        return True
    finished = (folder / "summary.json").is_file() and (folder / "labels").is_dir()
    return finished or (folder / _LOCK).is_file()


# ----------------------------------------------------------------------------------------- results


def claim(output: Path, queries: Mapping[str, Path], run_id: str) -> TextIO:
    """Make ``output`` this call's own until the file returned is closed.

    Raises:
        FewShotError: another process writes there, or what lies there would be mixed with the
            results of this call: files that are no results, results of other pictures under these
            names, or results of other supports, weights or settings that this call does not renew.
    """
    known = (output / _LOCK).exists() or (output / "summary").is_dir()
    foreign = next((output / name for name in RESULTS if (output / name).exists()), None)
    if foreign and not known:
        raise FewShotError(f"{foreign} is not of predict.py: choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FewShotError(f"cannot make the folder {output}: {error.strerror}") from error
    held = lock(output / _LOCK, "wait for it, or choose another --output")
    others = []
    for path in sorted((output / "summary").rglob("*.json")):
        name = path.relative_to(output / "summary").with_suffix("").as_posix()
        summary = _read_summary(path)
        if name not in queries:
            others += [summary["file"]] * (summary["run"] not in ("", run_id))
        elif not _same_picture(summary, queries[name]):
            raise FewShotError(
                f"{output} holds results of {summary['file']} under the name {name}, which "
                f"{queries[name]} would replace: choose another --output, or delete {output}"
            )
    if others:
        raise FewShotError(
            f"{output} holds results of {len(others)} other picture(s), such as {others[0]}, with "
            f"other supports, weights or settings: choose another --output, or delete {output}"
        )
    (output / "summary.json").unlink(missing_ok=True)  # written when all are finished
    return held


def finished(output: Path, name: str, run_id: str, query: Path) -> dict[str, Any] | None:
    """The summary of a picture that an earlier call with the same settings completed, or None."""
    summary = _read_summary(output / "summary" / f"{name}.json")
    whole = summary["results"] and all((output / file).is_file() for file in summary["results"])
    same = summary["run"] == run_id and summary["stamp"] == stamp(query)
    return summary if whole and same else None


def _read_summary(path: Path) -> dict[str, Any]:
    """A picture's summary; where it is missing or damaged, its keys with nothing in them."""
    empty = {"file": "", "run": "", "stamp": [], "results": []}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return empty
    same = isinstance(summary, dict) and all(type(summary.get(k)) is type(empty[k]) for k in empty)
    return summary if same and all(isinstance(f, str) for f in summary["results"]) else empty


def _same_picture(summary: Mapping[str, Any], query: Path) -> bool:
    """Whether a summary is about this file: by its path, or, if it was moved, by its stamp."""
    known = summary["file"]
    moved = summary["stamp"] == stamp(query) != []
    return not known or moved or os.path.realpath(known) == os.path.realpath(query)


def stamp(path: Path) -> list[int]:
    """Size and time of a file: a changed picture is predicted again. Empty: there is none."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def remove_outdated(output: Path, name: str, files: Sequence[Path]) -> None:
    """Delete what an earlier call left of other classes for the picture ``name``."""
    for part in ("probabilities", "correlations"):
        for path in (output / part / name).glob("*_*.*"):
            if path not in files and path.is_file():
                path.unlink()
