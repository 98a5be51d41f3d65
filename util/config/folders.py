"""One folder per class: which picture belongs to which mask, and what may lie around them.

One reading for data sets of class folders and for ``predict.py --supports``. A class folder holds
pairs of the same stem, ``1.jpg`` and ``1.png`` side by side, or ``images/1.*`` and ``masks/1.*``.
Whatever else could be a picture is refused by name: nothing is guessed, nothing is left out.
No file is opened here.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from util.runtime.errors import FewShotError

MASKS = (".png", ".bmp", ".tif", ".tiff")  # keep every value of a pixel
PHOTOS = (".jpg", ".jpeg", ".jfif", ".webp")  # do not, and are never a mask
PICTURES = (*PHOTOS, *MASKS)
# Pictures that are looked for nowhere, which is said: they must be named, or saved as another kind.
STRANGE = frozenset(".gif .heic .heif .avif .jp2 .jxl .svg .psd .dng .cr2 .nef".split())
# Folders that programs leave behind. Names that begin with a dot are hidden wherever they lie.
_LITTER = frozenset(
    ("__macosx", "__pycache__", "@eadir", "thumbs", "lost+found", "#recycle", "$recycle.bin",
     "system volume information")
)  # fmt: skip
_SHOWN = 3  # names in a sentence
_LAYOUT = "1.jpg + 1.png side by side, or images/1.jpg + masks/1.png"


class Pair(NamedTuple):
    """A picture and its mask."""

    image: Path
    mask: Path


class ClassFolders(NamedTuple):
    """What lies in a folder of class folders.

    pairs        class name -> its pairs, both in order: names as text, numbers among stems by value
    passed_over  names of the folders that are not read: hidden ones, and those not asked for
    """

    pairs: dict[str, list[Pair]]
    passed_over: list[str]


def composed(name: str) -> str:
    """A class's name as it is compared: without blanks around it, accents in one piece however a
    system or a program composes them."""
    return unicodedata.normalize("NFC", name.strip())


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: ``.git``, ``__MACOSX``, ..."""
    return name.startswith(".") or name.lower() in _LITTER


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture (by its suffix, in any case) and is not hidden."""
    return path.suffix.lower() in PICTURES and not is_hidden(path.name)


def is_strange(path: Path) -> bool:
    """Whether the name is that of a picture of a kind that is not looked for, which is said."""
    return path.suffix.lower() in STRANGE and not is_hidden(path.name)


def is_any_picture(path: Path) -> bool:
    """Whether the name is that of a picture, of a kind that is looked for or not."""
    return is_picture(path) or is_strange(path)


def class_folders(root: str | Path, names: Sequence[str] | None = None) -> ClassFolders:
    """The class folders of ``root`` and their pairs.

    names: read only these folders, in this order; None: all, sorted, hidden ones excepted.

    Raises:
        FewShotError: there is no such folder, none of a class, or one that is read would leave
            anything out: a folder without a pair, a picture without a mask or beside the folders,
            two files of the same stem that could both be the picture or the mask.
    """
    root = Path(root)
    folders, files = _content(root)
    found = [folder.name for folder in folders]
    if names is None:
        names = [name for name in found if not is_hidden(name)]
        if loose := [file.name for file in files if is_picture(file)]:
            raise FewShotError(
                f"{root}: {_lying(loose, 'picture')} beside the class folders; move what belongs "
                "to a class into its folder and the rest away"
            )
    if not names:
        raise FewShotError(
            f"{root} holds no class folders: it needs one folder per class, with pictures and "
            f"masks of the same stem ({_LAYOUT})"
        )
    places: dict[str, str] = {}
    for name in found:
        other = places.setdefault(composed(name), name)
        if other != name and not (is_hidden(name) or is_hidden(other)):
            raise FewShotError(f"{root}: '{other}' and '{name}' are one class in two folders")
    wanted = [composed(name) for name in names]
    pairs = {name: folder_pairs(root / places.get(name, name)) for name in wanted}
    return ClassFolders(pairs, [name for name in found if composed(name) not in pairs])


def folder_pairs(folder: Path) -> list[Pair]:
    """Pairs of a class folder, stems that are numbers in their own order; at least one.

    Raises:
        FewShotError: as :func:`class_folders`.
    """
    parts: dict[str, list[Path]] = {"images": [], "masks": []}
    for path in _content(folder)[0]:
        if path.name.lower() in parts:
            parts[path.name.lower()].append(path)
    for same in parts.values():
        if len(same) > 1:
            raise FewShotError(f"{folder} has {_listed(p.name for p in same)}: keep one of them")
    apart = [same[0] for same in parts.values() if same]
    pairs = _apart(*apart) if len(apart) == 2 else _beside(folder)
    used = {file for pair in pairs for file in pair}
    lying = list(searched(folder, wanted=is_any_picture))
    strange = [str(path.relative_to(folder)) for path in lying if is_strange(path)]
    if strange:
        raise FewShotError(
            f"{folder}: {_lying(strange, 'file')} there of a kind that is not read; save pictures "
            f"as {_listed(PHOTOS)}, masks as {_listed(MASKS)}"
        )
    unused = [str(path.relative_to(folder)) for path in lying if path not in used]
    if unused:
        raise FewShotError(
            f"{folder}: {_lying(unused, 'picture')} in no pair; a class folder holds {_LAYOUT}, "
            "and no pictures elsewhere"
        )
    if not pairs:
        raise FewShotError(
            f"{folder} holds no pictures: a class folder holds {_LAYOUT}; delete it, or give it a "
            "name that begins with a dot, if it is no class"
        )
    return pairs


def searched(
    folder: Path,
    leave_out: Callable[[Path], bool] | None = None,
    wanted: Callable[[Path], bool] = is_picture,
) -> Iterator[Path]:
    """Pictures in ``folder`` and the folders below, sorted; hidden ones are passed over.

    leave_out: says which folders below, by their path, are not entered.
    wanted: says which files, by their path, are looked for.
    """
    yield from _searched(folder, leave_out, wanted, (os.path.realpath(folder),))


def _searched(
    folder: Path,
    leave_out: Callable[[Path], bool] | None,
    wanted: Callable[[Path], bool],
    above: tuple[str, ...],
) -> Iterator[Path]:
    folders, files = _content(folder)
    yield from filter(wanted, files)
    for path in folders:
        place = os.path.realpath(path)  # links may lead in a circle
        if not (is_hidden(path.name) or place in above or (leave_out and leave_out(path))):
            yield from _searched(path, leave_out, wanted, (*above, place))


def _apart(images: Path, masks: Path) -> list[Pair]:
    """Pairs of a folder of pictures and a folder of masks."""
    pictures, labels = _by_stem(images), _by_stem(masks)
    for folder, stems in ((images, pictures), (masks, labels)):
        for files in stems.values():
            if len(files) > 1:
                raise FewShotError(
                    f"{folder}: {_listed(p.name for p in files)} have the same stem: keep one"
                )
    for (file,) in labels.values():
        if file.suffix.lower() not in MASKS:
            raise FewShotError(
                f"{file}: a mask is a {_listed(s[1:].upper() for s in MASKS)} file; others change "
                "the values of pixels"
            )
    _check_alone(images.parent, pictures, labels)
    return [Pair(pictures[stem][0], labels[stem][0]) for stem in sorted(pictures, key=_natural)]


def _beside(folder: Path) -> list[Pair]:
    """Pairs side by side: of the files of a stem one is a photo, the other keeps pixel values."""
    stems = _by_stem(folder)
    pictures = {s: [p for p in files if _is_photo(p)] for s, files in stems.items()}
    labels = {s: [p for p in files if not _is_photo(p)] for s, files in stems.items()}
    for stem, files in stems.items():
        if len(files) > 1 and not len(pictures[stem]) == len(labels[stem]) == 1:
            raise FewShotError(
                f"{folder}: {_listed(p.name for p in files)} have the same stem: it is not clear "
                f"which is the picture and which its mask; side by side a picture is "
                f"{_listed(PHOTOS)} and its mask {_listed(MASKS)}, "
                "images/ and masks/ take any kind"
            )
    _check_alone(
        folder,
        {stem: files for stem, files in pictures.items() if files},
        {stem: files for stem, files in labels.items() if files},
    )
    return [Pair(pictures[stem][0], labels[stem][0]) for stem in sorted(stems, key=_natural)]


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTOS


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Pictures of a folder by stem; accents count alike however a system composes them."""
    stems: dict[str, list[Path]] = defaultdict(list)
    for path in _content(folder)[1]:
        if is_picture(path):
            stems[unicodedata.normalize("NFC", path.stem)].append(path)
    return stems


def _check_alone(
    folder: Path, pictures: dict[str, list[Path]], masks: dict[str, list[Path]]
) -> None:
    alone = sorted(pictures.keys() ^ masks.keys(), key=_natural)
    if alone:
        path = (pictures.get(alone[0]) or masks[alone[0]])[0]
        what = "mask" if alone[0] in pictures else "picture"
        raise FewShotError(f"{path} has no {what} of the same name ({len(alone)} such in {folder})")


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in ``folder``, each sorted by name."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:  # knows folders without asking for each file
            for entry in entries:
                (folders if entry.is_dir() else files).append(folder / entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FewShotError(f"there is no folder {folder}") from error
    except OSError as error:
        raise FewShotError(f"{folder} cannot be read ({error.strerror or error})") from error
    return sorted(folders), sorted(files)


def named(names: Sequence[str], what: str) -> str:
    """``2 pictures (a.jpg, b.jpg)``: a number and the first names."""
    more = ", ..." if len(names) > _SHOWN else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {what}{plural} ({', '.join(names[:_SHOWN])}{more})"


def _lying(names: Sequence[str], what: str) -> str:
    return f"{named(names, what)} {'lies' if len(names) == 1 else 'lie'}"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers in their own order, then names."""
    number = name.isascii() and name.isdigit() and len(name) < 19
    return not number, int(name) if number else 0, name
