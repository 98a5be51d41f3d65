"""From list files to what a fold may use of them: pairs, scans of the masks, per-class indexes.

A list has a picture and a mask a line, relative to ``DATA.data_root``. How many pixels of each
class every mask holds is found once, in parallel, and cached; which pictures a split keeps follows
from these counts in a moment, so one scan serves every split and rule.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from util.config import Config
from util.config.folds import Fold
from util.data.sources import Pair, Source, exists, find_pairs, read_list
from util.data.transform import IGNORE, read_mask
from util.runtime.errors import FewShotError
from util.runtime.files import write_atomically
from util.runtime.signals import start_worker
from util.runtime.workers import starting

__all__ = ["FoldIndex", "Pair", "build_index", "parallel", "read_list"]

_FORMAT = 2  # of the cached scan; changes with what masks mean
_MOST_WORKERS = 32
_FEW = 64  # items that are not worth a further process
ONLY_IGNORED = (
    "the mask holds no value but 255 (and 0), and 255 means ignored in a list: save the object as "
    "its class id (1, 2, ...), or use one folder per class, where white is the object"
)
_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Value = TypeVar("Value")
Counts = dict[int, int]
"""Mask value -> number of pixels, background and 255 included."""


@dataclass
class FoldIndex:
    """What one split may use of a list; positions are places in ``pairs``.

    entries        positions that may be queries: in list order, classes of folders in turn
    per_class      class id -> ascending positions that may be supports of that class
    present        entry -> ids of this fold's classes in its mask, whatever their size
    shown          the same of every position where there are any, entries or not
    names          class id -> name
    source         the list, for messages
    entry_classes  protocol hsnet: the class that each entry is there for
    class_first    protocol hsnet on COCO: an episode draws its class first, then its query
    binary         masks hold 0 and 1 and the folder says which class that is
    """

    pairs: list[Pair]
    entries: list[int]
    per_class: dict[int, list[int]]
    present: dict[int, tuple[int, ...]]
    shown: dict[int, tuple[int, ...]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    source: str = ""
    entry_classes: list[int] | None = None
    class_first: bool = False
    binary: bool = False

    def label(self, class_id: int) -> int:
        """The value that the class has in the masks."""
        return 1 if self.binary else class_id


# ---------------------------------------------------------------------------- scanning


def parallel(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
) -> list[Value]:
    """``[function(item) for item in items]`` over processes, with a progress bar.

    workers: processes; None: as many as there are cores. Few items are done in this process.
    Raises :class:`FewShotError` when a worker process dies.
    """
    bar = {"total": len(items), "desc": title, "unit": "file", "delay": 1}
    if workers is None:
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        workers = min(len(cores), _MOST_WORKERS)
    workers = min(workers, len(items) // _FEW)
    if workers < 2:
        return list(tqdm(map(function, items), **bar))
    forks = "fork" in multiprocessing.get_all_start_methods()  # no second import of torch
    context = multiprocessing.get_context("fork" if forks else None)
    with starting(workers):
        pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(0,))
    try:
        with starting(workers):
            results = pool.map(function, items, chunksize=16)
        return list(tqdm(results, **bar))
    except BrokenProcessPool as error:
        raise FewShotError(f"{title}: a worker process was killed (out of memory?)") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def count_pixels(mask: np.ndarray) -> Counts:
    """Number of pixels of each value that a uint8 mask holds."""
    found = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()
    return {int(value): int(found[value]) for value in np.flatnonzero(found)}


def scan_one(mask: Path, binary: bool) -> Counts | str:
    try:
        return count_pixels(read_mask(mask, binary))
    except FewShotError as error:
        return str(error)


def scan(source: Source) -> list[Counts]:
    """Pixel counts of every mask, from the cache when neither the list nor a mask has changed."""
    binary = source.classes is not None
    missing = [p for pair in source.pairs for p in pair if not exists(p)]
    if missing:
        raise FewShotError(
            f"{source.name}: {missing[0]} does not exist"
            + (f", nor do {len(missing) - 1} other files" if len(missing) > 1 else "")
            + "; python -m util.lists --check names all"
        )
    fingerprint = _fingerprint(source.pairs, binary)
    counts = _read_cache(source.cache, fingerprint, len(source.pairs))
    if counts is not None:
        return counts
    masks = [pair.mask for pair in source.pairs]
    found = parallel(partial(scan_one, binary=binary), masks, f"masks of {source.name}")
    bad = [text for text in found if isinstance(text, str)]
    if bad:
        more = f" ({len(bad)} bad masks; python -m util.lists --check names all)"
        raise FewShotError(bad[0] + (more if len(bad) > 1 else ""))
    counts = [c for c in found if not isinstance(c, str)]
    content = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "counts": [[list(item) for item in c.items()] for c in counts],
    }
    try:
        write_atomically(source.cache, json.dumps(content, separators=(",", ":")).encode())
    except FewShotError as error:  # the folder may be read-only
        _log.warning("%s: the masks will be scanned anew each time", error)
    return counts


def _fingerprint(pairs: Iterable[Pair], binary: bool) -> str:
    """Changes with the list, with any mask file's size or time, and with how masks are read."""
    digest = hashlib.sha256(f"{_FORMAT} {binary}\n".encode())
    for _, mask in pairs:
        stat = mask.stat()
        digest.update(os.fsencode(f"{mask}\t{stat.st_size}\t{stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def _read_cache(path: Path, fingerprint: str, length: int) -> list[Counts] | None:
    """The cached counts, or None: a cache that is absent, old or damaged is made anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["fingerprint"] != fingerprint:
            return None
        counts = [{int(value): int(number) for value, number in row} for row in content["counts"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return counts if len(counts) == length else None


# ---------------------------------------------------------------------------- the index


def build_index(cfg: Config, mode: str) -> FoldIndex:
    """What the configured split may use: ``mode`` train, val, test or base.

    ``val`` is validation while training; ``test`` the figures to report (other classes than
    ``val`` in FSS-1000, the same elsewhere); ``base`` validates stage 1: the base classes in the
    validation list. Raises :class:`FewShotError` for bad lists and masks and for empty folds.
    """
    fold = cfg.fold
    if fold.trained is not None and mode in ("train", "base"):
        raise FewShotError(
            "DATA.trained_on: this configuration evaluates a model of another data set; "
            "training needs trained_on: null"
        )
    source = find_pairs(cfg, fold, mode)
    counts = scan(source)
    _check_values(source, counts, fold)
    if repeated := repeats(source):
        _log.warning("%s", repeated)
    index = select(cfg, fold, mode, source, counts)
    if not index.entries:
        raise FewShotError(
            f"{source.name}: no picture is left for split {cfg.split} ({mode}): none shows "
            f"{cfg.min_pixels} pixels of one of {len(fold.classes(mode))} classes"
            + (" and no other class" if mode == "train" and cfg.protocol == "bam" else "")
        )
    return index


def repeats(source: Source) -> str:
    """One sentence about pictures that stand in several lines, or an empty string."""
    again = [p for p, first in source.same_picture.items() if p != first]
    if not again:
        return ""
    pictures, lines = len(set(source.same_picture.values())), len(again)
    return (
        f"{source.name}: {pictures} picture(s) are listed twice or more, in {lines} line(s) too "
        f"many, the first {source.pairs[again[0]].image}; each counts once for a class, so that "
        "none is its own support"
    )


def allowed_values(fold: Fold, binary: bool) -> range:
    """Values that masks may hold besides 255."""
    return range(2 if binary else max(fold.names) + 1)


def stray_value(counts: Counts, allowed: range) -> str | None:
    """What is wrong with the values of a mask, or None."""
    wrong = [value for value in counts if value not in allowed and value != IGNORE]
    if not wrong:
        return None
    return f"mask value {wrong[0]} is no class id (0 to {allowed[-1]}, or 255 for ignored pixels)"


def nothing_shown(counts: Counts, binary: bool) -> str | None:
    """What is wrong with a mask that shows nothing, or None: no class is right in a list."""
    if counts.keys() - {0, IGNORE}:
        return None
    if binary:
        return "no object in the mask"
    return ONLY_IGNORED if IGNORE in counts else None


def _check_values(source: Source, counts: list[Counts], fold: Fold) -> None:
    binary = source.classes is not None
    allowed = allowed_values(fold, binary)
    empty = []
    for pair, found in zip(source.pairs, counts, strict=True):
        if problem := stray_value(found, allowed):
            raise FewShotError(f"{pair.mask}: {problem}")
        if problem := nothing_shown(found, binary):
            empty.append(f"{pair.mask}: {problem}")
    if empty:
        message = empty[0] + (f"; {len(empty) - 1} more such masks" if len(empty) > 1 else "")
        if not any(found.keys() - {0, IGNORE} for found in counts):
            raise FewShotError(message)
        _log.warning("warning: left out: %s", message)


def select(cfg: Config, fold: Fold, mode: str, source: Source, counts: list[Counts]) -> FoldIndex:
    """Apply the protocol's rule to the counts.

    A picture is listed under each class of the fold that has ``min_pixels`` pixels in it, and is
    an entry when there is one. Training with protocol bam skips pictures that show any class but
    base classes; elsewhere such pixels become background.

    Of a picture in several lines each class belongs to the first that is kept, so that a query is
    never its own support and supports are distinct.
    """
    taken: set[tuple[int, int]] = set()
    classes = frozenset(fold.classes(mode))
    only_own = mode == "train" and cfg.protocol == "bam"
    per_class: dict[int, list[int]] = {class_id: [] for class_id in sorted(classes)}
    present: dict[int, tuple[int, ...]] = {}
    all_shown: dict[int, tuple[int, ...]] = {}
    for position, found in enumerate(counts):
        if source.classes is None:
            shown = {c: n for c, n in found.items() if c not in (0, IGNORE)}
        else:  # class ids of folders may be 255 and more
            shown = {source.classes[position]: found[1]} if 1 in found else {}
        own = tuple(c for c in sorted(shown) if c in classes)
        if own:
            all_shown[position] = own
        if source.listed is not None:
            large = [c for c in own if position in source.listed.get(c, ())]
        elif only_own and len(own) < len(shown):
            continue
        else:
            large = [c for c in own if shown[c] >= cfg.min_pixels]
        if position in source.same_picture:
            picture = source.same_picture[position]
            own = tuple(c for c in own if (picture, c) not in taken)
            large = [c for c in large if c in own]
            taken.update((picture, c) for c in own if large)
        if large:
            present[position] = own
        for class_id in large:
            per_class[class_id].append(position)
    index = FoldIndex(
        pairs=source.pairs,
        entries=list(present) if source.classes is None else in_turn(present, source.classes),
        per_class=per_class,
        present=present,
        shown=all_shown,
        names=fold.names,
        source=source.name,
        binary=source.classes is not None,
    )
    if cfg.protocol == "hsnet" and mode != "base":
        index.class_first = cfg.data_set == "coco"
        if not index.class_first:
            turn = {position: number for number, position in enumerate(index.entries)}
            both = sorted((turn[p], p, c) for c, places in per_class.items() for p in places)
            index.entries = [position for _, position, _ in both]
            index.entry_classes = [class_id for *_, class_id in both]
    return index


def in_turn(positions: Iterable[int], classes: Sequence[int]) -> list[int]:
    """Positions so that their classes take turns: the first of each class, the second of each, ...

    However many of them are taken from the front, the numbers for two classes differ by at most
    one while both have pictures left; all of them are one pass over all pictures.
    """
    taken: Counter[int] = Counter()
    turns = []
    for position in positions:
        class_id = classes[position]
        turns.append((taken[class_id], class_id, position))
        taken[class_id] += 1
    return [position for *_, position in sorted(turns)]
