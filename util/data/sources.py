"""Where pairs of a picture and a mask come from: list files, class folders, published indexes.

Everything is parsed as text or as literals; paths stay below ``DATA.data_root`` unless
``DATA.allow_outside_root`` permits more. No picture is opened here.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from util.config import Config
from util.config.folders import Pair, class_folders
from util.config.folds import Fold, by_folder, class_root
from util.runtime.errors import FewShotError

_LISTS = Path(__file__).resolve().parents[2] / "lists"  # the project's own
_LITERAL_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


@dataclass
class Source:
    """Pairs with what is known about them before a mask is opened.

    name         the list or folder, for messages
    cache        where the scan of the masks is kept
    classes      data by folder: the class of each pair
    listed       published index: class id -> positions that may be its supports
    passed_over  data by folder: names of folders that are no classes
    """

    pairs: list[Pair]
    name: str
    cache: Path
    classes: list[int] | None = None
    listed: dict[int, frozenset[int]] | None = None
    passed_over: Sequence[str] = ()

    @cached_property
    def same_picture(self) -> dict[int, int]:
        """Position -> the first position of the same file, for pictures in several pairs.

        The file counts and not its path: links and other spellings lead to the same picture.
        """
        places: dict[Any, list[int]] = defaultdict(list)
        for position, pair in enumerate(self.pairs):
            try:
                status = os.stat(pair.image)
            except (OSError, ValueError):  # named by the scan
                places[pair.image].append(position)
            else:
                places[status.st_dev, status.st_ino].append(position)
        return {p: group[0] for group in places.values() if len(group) > 1 for p in group}


def find_pairs(cfg: Config, fold: Fold, mode: str) -> Source:
    """The pairs that ``cfg`` names for ``mode``: train for the training list, else validation."""
    if by_folder(cfg):
        return _folder_source(cfg, fold)
    path = cfg.train_list if mode == "train" else cfg.val_list
    if path is None:
        key = "train_list" if mode == "train" else "val_list"
        raise FewShotError(f"DATA.{key}: data set '{cfg.data_set}' needs a list")
    path = Path(path)
    cache = _cache(cfg, path)
    if path.name.startswith("data_list_"):
        return _published_source(cfg, fold, mode, path, cache)
    return Source(read_list(path, cfg.data_root, cfg.allow_outside_root), str(path), cache)


def names_digest(pairs: Iterable[Pair], root: str | Path) -> str:
    """SHA-256 of the names of pairs below ``root``: the same wherever the root is."""
    roots = [f"{path(root)}{os.sep}" for path in (os.path.abspath, os.path.realpath)]
    digest = hashlib.sha256()
    for name in (os.path.abspath(path) for pair in pairs for path in pair):
        for above in roots:
            name = name.removeprefix(above)
        digest.update(os.fsencode(name) + b"\n")
    return digest.hexdigest()


def _cache(cfg: Config, data: Path) -> Path:
    """Where the scan of a list or folder is kept: beside a list in ``lists/``, else below
    ``exp_root``, since the folders of data belong to the user and may be shared or read-only."""
    place = os.path.realpath(data)
    if Path(place).is_relative_to(_LISTS):
        return data.with_suffix(".scan.json")
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return Path(cfg.exp_root, ".cache", f"{Path(place).stem}-{mark}.scan.json")


# ---------------------------------------------------------------------------- list files


def read_list(path: str | Path, data_root: str | Path, allow_outside: bool = False) -> list[Pair]:
    """Read ``picture mask`` lines; a tab stands between the two where names hold spaces.

    Raises :class:`FewShotError` with the line's number when a line is not that, or when a path
    leaves ``data_root`` (by ``..`` or because it is absolute) without ``allow_outside``. Files are
    not opened here.
    """
    pairs = []
    for number, found in parse_list(path, data_root, allow_outside):
        if isinstance(found, str):
            raise FewShotError(f"{path}, line {number}: {found}")
        pairs.append(found)
    if not pairs:
        raise FewShotError(f"{path}: the list is empty")
    return pairs


def parse_list(
    path: str | Path, data_root: str | Path, allow_outside: bool
) -> Iterator[tuple[int, Pair | str]]:
    """Line numbers with the pair that stands there, or with what is wrong."""
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line := line.strip():
            try:
                image, mask = _columns(line, Path(data_root))
                yield number, Pair(*(_place(p, data_root, allow_outside) for p in (image, mask)))
            except FewShotError as error:
                yield number, str(error)


def _columns(line: str, root: Path) -> tuple[str, str]:
    if "\t" in line:
        fields = [text.strip() for text in line.split("\t") if text.strip()]
    else:
        fields = line.split()
        if len(fields) > 2:  # spaces in names: the gap is where a picture's name ends
            cuts = [i for i, letter in enumerate(line) if letter.isspace()]
            cut = next((i for i in cuts if any(map(exists, _readings(line[:i], root)))), cuts[-1])
            fields = [line[:cut].strip(), line[cut:].strip()]
    if len(fields) != 2:
        raise FewShotError(f"expected a picture and a mask, found {_short(line)}")
    return fields[0], fields[1]


def _readings(name: str, root: str | Path) -> list[str]:
    """The paths that a name in a list may mean, ``..`` resolved as text so that no link bends them.

    First the name as it stands below ``root``. Lists of other programs have backslashes, paths
    below the root that begin with a slash, paths that begin with ``~``, and accents composed in
    another way than on this disk.
    """
    slashed = name.replace("\\", "/")
    names = [name, slashed, os.path.expanduser(slashed), slashed.lstrip("/")]
    if not name.isascii():
        names[1:1] = [normalize(form, each) for form in ("NFC", "NFD") for each in names]
    return list(dict.fromkeys(os.path.normpath(os.path.join(root, name)) for name in names))


def _place(name: str, data_root: str | Path, allow_outside: bool) -> Path:
    """The file that ``name`` means, below ``data_root`` unless ``allow_outside``."""
    if any(ord(letter) < 32 for letter in name):
        raise FewShotError(f"control characters in the path {_short(name)}")
    path, *others = _readings(name, data_root)
    if others:
        found = [p for p in (path, *others) if (allow_outside or below(p, data_root)) and exists(p)]
        if len(found) > 1:
            raise FewShotError(f"{_short(name)} may be {found[0]} or {found[1]}: remove one")
        path = found[0] if found else path
    if not (allow_outside or below(path, data_root)):
        raise FewShotError(
            f"{_short(name)} leaves DATA.data_root ({data_root})"
            + (f", and there is no {others[-1]}" if others else "")
            + "; set DATA.allow_outside_root to permit that"
        )
    return Path(path)


def below(path: str | Path, folder: str | Path) -> bool:
    """Whether ``path`` lies in ``folder``, links in it left alone, a link to it followed."""
    path = os.path.abspath(path)
    return any(
        path.startswith(os.path.join(place(folder), ""))
        for place in (os.path.abspath, os.path.realpath)
    )


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FewShotError(f"{path}: there is no such list") from error
    except UnicodeDecodeError as error:
        raise FewShotError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FewShotError(f"{path}: the list cannot be read ({reason})") from error


def exists(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")


# ---------------------------------------------------------------------------- class folders


def _folder_source(cfg: Config, fold: Fold) -> Source:
    root = class_root(cfg)
    found = class_folders(root, list(fold.names.values()))
    pairs, classes = [], []
    for class_id, name in fold.names.items():
        pairs += found.pairs[name]
        classes += [class_id] * len(found.pairs[name])
    return Source(pairs, str(root), _cache(cfg, root), classes, passed_over=found.passed_over)


# ---------------------------------------------------------------------------- published indexes


def _published_source(cfg: Config, fold: Fold, mode: str, path: Path, cache: Path) -> Source:
    """``data_list_i.txt`` with its ``sub_class_file_list_i.txt``, as BAM and HDMNet publish them.

    Their paths begin with the authors' own data folder, which is replaced by ``data_root``.
    """
    text = _read_text(path).strip()
    if text.startswith("["):
        found = _literal(path, text)
    else:
        found = [tuple(line.split()) for line in text.splitlines() if line.strip()]
    root = Path(cfg.data_root)
    if not _is_pairs(found) or not found:
        raise FewShotError(f"{path}: not a list of pictures and masks")
    depths = [_depth(path, root, name) for name in found[0]]

    def below_root(name: str, depth: int) -> Path:
        return _place("/".join(_parts(name)[depth:]), root, cfg.allow_outside_root)

    def pairs_of(names: list[tuple[str, str]], source: Path) -> list[Pair]:
        try:
            return [Pair(*map(below_root, pair, depths)) for pair in names]
        except FewShotError as error:
            raise FewShotError(f"{source}: {error}") from error

    pairs = pairs_of(found, path)
    sub_path = path.with_name(path.name.replace("data_list_", "sub_class_file_list_", 1))
    if not sub_path.is_file() or mode == "base":
        return Source(pairs, str(path), cache)
    sub = _literal(sub_path, _read_text(sub_path))
    well_formed = isinstance(sub, dict) and all(
        isinstance(key, int) and _is_pairs(value) for key, value in sub.items()
    )
    if not well_formed:
        raise FewShotError(f"{sub_path}: not a table of class id -> list of (picture, mask)")
    foreign = sorted(set(sub) - set(fold.classes(mode)))
    if foreign:
        raise FewShotError(
            f"{sub_path}: made for another split: class {foreign[0]} is not in split {cfg.split}"
        )
    position = {pair: i for i, pair in enumerate(pairs)}
    listed = {}
    for class_id, names in sub.items():
        places = [position.get(pair) for pair in pairs_of(names, sub_path)]
        if None in places:
            raise FewShotError(f"{sub_path}: class {class_id} lists a picture that {path} lacks")
        listed[class_id] = frozenset(places)
    return Source(pairs, str(path), cache, listed=listed)


def _literal(path: Path, text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except _LITERAL_ERRORS as error:
        raise FewShotError(f"{path}: not a plain list or table ({type(error).__name__})") from error


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(n, str) for n in pair)
        for pair in value
    )


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.strip().replace("\\", "/")).parts


def _depth(path: Path, root: Path, name: str) -> int:
    """How many leading folders of a published path stand for ``root``."""
    parts = _parts(name)
    for depth in range(len(parts)):
        inner = parts[depth:]
        if ".." not in inner and not inner[0].startswith("/") and exists(root.joinpath(*inner)):
            return depth
    raise FewShotError(f"{path}: {_short(name)} is not below DATA.data_root ({root})")
