"""Which classes a split trains on and which it holds out: every class table of the project.

Class ids count from 1; 0 is background and 255 is ignored. The base learner numbers its classes
1..N in ascending order of their ids, so a look-up table turns a mask of class ids into its target.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.config.folders import class_folders, composed
from util.config.schema import Settings
from util.runtime.errors import FewShotError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
DEMO_SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "bar", "crescent")
DEMO_TEXTURES = (
    "plain", "striped", "checked", "dotted", "wavy", "ringed", "rayed", "speckled",
)  # fmt: skip
DEMO_CLASSES = tuple(f"{texture} {shape}" for shape in DEMO_SHAPES for texture in DEMO_TEXTURES)

# What PASCAL VOC calls a thing that COCO calls otherwise.
_SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
# Where FSS-1000's class folders may lie below its root, as archives unpack, and what shows them.
FSS_PLACES = (".", "*", "*/*")
FSS_MARKER = "*/1.jpg"
_FSS_SHARES = (520, 240)  # of 1,000 classes; the other 240 are the test classes


@dataclass(frozen=True)
class Fold:
    """The classes of one split.

    base        ids of the classes trained on, ascending; of ``trained``'s data set if that is set
    novel       ids of the held-out classes that the reported figures are about, ascending
    names       class id -> name, of every class of the data set
    validation  ids of the classes validated on while training; empty: those of ``novel``
    trained     domain shift: the fold of another data set that the model was trained on
    source      where the split comes from, for the result file
    unlisted    ids of the classes that are in no part of the data set, since no class list has them
    """

    base: tuple[int, ...]
    novel: tuple[int, ...]
    names: dict[int, str]
    validation: tuple[int, ...] = ()
    trained: Fold | None = None
    source: str = "table"
    unlisted: tuple[int, ...] = ()

    def classes(self, mode: str) -> tuple[int, ...]:
        """Ids of the classes that episodes of ``mode`` (train, base, val or test) are about."""
        if mode == "val":
            return self.validation or self.novel
        return {"train": self.base, "base": self.base, "test": self.novel}[mode]

    @property
    def note(self) -> str:
        """One sentence that names the classes left out of every part, or an empty string."""
        if not self.unlisted:
            return ""
        named = ", ".join(self.names[class_id] for class_id in self.unlisted)
        return f"{self.source}: {len(self.unlisted)} class(es) in none of them, left out: {named}"

    @property
    def base_names(self) -> list[str]:
        """Names of the base classes, in the order of the base learner's channels 1..N."""
        names = (self.trained or self).names
        return [names[class_id] for class_id in self.base]

    def base_index(self, class_id: int) -> int:
        """0-based index of the class ``class_id`` (of this data set) among the base classes."""
        if self.trained is None:
            return self.base.index(class_id)
        return [canonical(name) for name in self.base_names].index(canonical(self.names[class_id]))

    def lut(self) -> np.ndarray:
        """uint8 [256]: mask value -> 0 (background, novel), 1..N (base, ascending), 255 -> 255."""
        table = np.zeros(256, np.uint8)
        table[255] = 255
        if max(self.names) > 254:
            raise FewShotError("class ids above 254 do not fit the pixels of an 8-bit mask")
        for class_id in self.names:
            try:
                table[class_id] = self.base_index(class_id) + 1
            except ValueError:
                continue  # not a base class
        return table


def canonical(name: str) -> str:
    """A class name as every data set here would spell it: VOC's ``sofa`` is COCO's ``couch``.

    Names of folders come with composed accents or with separate ones, as systems write them.
    """
    name = unicodedata.normalize("NFC", name).strip().lower().replace("_", " ")
    return _SYNONYMS.get(name, name)


def fold_of(cfg: Settings) -> Fold:
    """The fold that ``DATA.data_set``, ``TRAIN.split``, ``folds``, ``class_names`` ask for.

    With ``DATA.trained_on`` the base classes are those of that other data set's split, and the
    novel classes are all classes of this data set that are not among them (domain shift).
    """
    names = dict(enumerate(class_names(cfg), 1))
    if cfg.trained_on is not None:
        return _shifted(cfg, names)
    if cfg.data_set == "fss" and cfg.folds is None:
        _pick(cfg, [()])
        return _fss(cfg, names)
    if cfg.folds is not None:
        splits, source = given_splits(cfg.folds, names), "DATA.folds"
    elif cfg.data_set in _TABLES:
        splits, source = held_out(cfg.data_set, cfg.use_split_coco), "table"
    else:
        _pick(cfg, [()])
        everything = tuple(names)
        return Fold(everything, everything, names, source="own classes, none held out")
    novel = _pick(cfg, splits)
    base = tuple(class_id for class_id in names if class_id not in novel)
    if not base:
        raise FewShotError(f"DATA.folds: split {cfg.split} holds out every class, no base is left")
    return Fold(base, novel, names, source=source)


def has_table(data_set: str) -> bool:
    """Whether the project itself knows the classes of ``data_set``."""
    return data_set in _TABLES


def split_count(cfg: Settings) -> int:
    """Number of splits of the configured data set (1 where nothing is held out in turns)."""
    if cfg.folds is not None:
        return len(cfg.folds)
    table = cfg.trained_on or cfg.data_set
    return len(held_out(table)) if table in _TABLES else 1


def held_out(data_set: str, use_split_coco: bool = True) -> list[tuple[int, ...]]:
    """Class ids that each of the four splits of ``pascal``, ``coco`` or ``demo`` holds out.

    PASCAL-5i: 5i+1 .. 5i+5. COCO-20i: 4k+i+1, or 20i+1 .. 20i+20 without ``use_split_coco``.
    Demo: the diagonals of the shape x texture table, so that each shape and each texture of a
    novel class is also seen among the base classes, in other combinations.
    """
    count = len(_TABLES[data_set])
    ids = range(1, count + 1)
    if data_set == "demo":
        textures = len(DEMO_TEXTURES)
        return [tuple(c for c in ids if sum(divmod(c - 1, textures)) % 4 == i) for i in range(4)]
    if data_set == "coco" and use_split_coco:
        return [tuple(ids[i::4]) for i in range(4)]
    return [tuple(ids[i * count // 4 : (i + 1) * count // 4]) for i in range(4)]


def by_folder(cfg: Settings) -> bool:
    """Whether a mask's folder, and not the values in it, says which class it shows (no lists)."""
    return cfg.train_list is None


def class_names(cfg: Settings) -> Sequence[str]:
    """Names in class-id order: ``DATA.class_names``, the data set's table, or its class folders."""
    if cfg.class_names is not None:
        names = [composed(str(name)) for name in cfg.class_names]
        if not names:
            raise FewShotError("DATA.class_names: the list is empty")
        if nothing := next((n for n in names if n.strip("_").lower() == "background"), None):
            raise FewShotError(f"DATA.class_names: '{nothing}' is no class; the ids 1, 2, ... are")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FewShotError(f"DATA.class_names: '{twice}' stands there twice")
        if len(names) > 254 and not by_folder(cfg):
            raise FewShotError("DATA.class_names: an 8-bit mask has room for 254 classes at most")
        return names
    if cfg.data_set in _TABLES:
        return _TABLES[cfg.data_set]
    if by_folder(cfg):
        root = class_root(cfg)
        try:
            return list(class_folders(root).pairs)
        except FewShotError as error:
            raise FewShotError(f"DATA.data_root: {error}") from error
    raise FewShotError(
        f"DATA.class_names: data set '{cfg.data_set}' needs the names of its classes, in the "
        "order of their ids 1, 2, ..."
    )


def class_root(cfg: Settings) -> Path:
    """The folder that holds the class folders: ``DATA.data_root``, or for FSS-1000 the one folder
    in it, up to two deep, to which an archive was unpacked.

    Raises :class:`FewShotError` naming the folders when there are several.
    """
    root = Path(cfg.data_root)
    for place in FSS_PLACES if cfg.data_set == "fss" else ():
        places = [root] if place == "." else sorted(root.glob(place))
        found = [folder for folder in places if next(folder.glob(FSS_MARKER), None)]
        if len(found) > 1:
            raise FewShotError(
                f"DATA.data_root: {found[0]} and {found[1]} both hold class folders; name one"
            )
        if found:
            return found[0]
    return root


def _pick(cfg: Settings, splits: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if not 0 <= cfg.split < len(splits):
        known = "split 0 only" if len(splits) == 1 else f"splits 0 to {len(splits) - 1}"
        raise FewShotError(f"TRAIN.split: {cfg.split} given, data set '{cfg.data_set}' has {known}")
    return splits[cfg.split]


def given_splits(
    folds: Sequence[Sequence[int | str]], names: dict[int, str]
) -> list[tuple[int, ...]]:
    """Class ids that each split of ``DATA.folds`` holds out.

    Text is a class name. A number is an id, which is the class's place in the list of names; where
    names are numbers themselves, one that could mean two classes is refused.
    """
    if not folds or not all(folds):
        raise FewShotError("DATA.folds: give one list of class ids or names for each split")
    return [tuple(sorted({_class_id(entry, names) for entry in fold})) for fold in folds]


def _class_id(entry: int | str, names: dict[int, str]) -> int:
    if isinstance(entry, str):
        meant = [class_id for class_id, name in names.items() if name == composed(entry)]
    else:
        meant = [c for c, name in names.items() if c == entry or entry in _numbers(name)]
    if not meant:
        raise FewShotError(
            f"DATA.folds names class {entry!r}, which is not there; ids are 1 to {len(names)}"
        )
    if len(meant) > 1:
        readings = [f"'{names[c]}'" + f" (number {c} in the list)" * (c == entry) for c in meant]
        raise FewShotError(
            f"DATA.folds: {entry} may mean the class {' or '.join(readings)}; write names that are "
            f"numbers in quotes, such as '{names[meant[-1]]}' (YAML reads 010 as 8)"
        )
    return meant[0]


def _numbers(name: str) -> set[int]:
    """The numbers that a class name may have become in YAML, or that a person reads in it."""
    found = set()
    for base in (10, 0, 8)[: 3 if name.startswith("0") else 2]:
        with contextlib.suppress(ValueError):
            found.add(int(name, base))
    return found


def _shifted(cfg: Settings, names: dict[int, str]) -> Fold:
    if cfg.trained_on not in _TABLES:
        raise FewShotError(
            f"DATA.trained_on: '{cfg.trained_on}' is none of {', '.join(sorted(_TABLES))}"
        )
    table = dict(enumerate(_TABLES[cfg.trained_on], 1))
    splits = held_out(cfg.trained_on, cfg.use_split_coco)
    held = _pick(cfg, splits)
    trained = Fold(tuple(c for c in table if c not in held), held, table)
    seen = {canonical(name) for name in trained.base_names}
    novel = tuple(c for c, name in names.items() if canonical(name) not in seen)
    if not novel:
        raise FewShotError(
            f"DATA.trained_on: split {cfg.split} of '{cfg.trained_on}' trains on every class here"
        )
    return Fold(trained.base, novel, names, trained=trained, source=f"trained on {cfg.trained_on}")


def _fss(cfg: Settings, names: dict[int, str]) -> Fold:
    """Train, validation and test classes: from the user's lists, or by a seeded split."""
    unlisted: tuple[int, ...] = ()
    if cfg.split_lists is not None:
        folder = Path(cfg.split_lists)
        ids = {name: class_id for class_id, name in names.items()}
        parts = [_listed(folder, stems, ids) for stems in (("trn", "train"), ("val",), ("test",))]
        counts = Counter(class_id for part in parts for class_id in part)
        twice = [names[class_id] for class_id, count in counts.items() if count > 1]
        if twice:
            raise FewShotError(f"{folder}: the class '{twice[0]}' stands in two of the lists")
        unlisted = tuple(class_id for class_id in names if class_id not in counts)
        source = f"class lists of {folder}"
    else:
        if len(names) < 3:
            raise FewShotError(f"{cfg.data_root}: {len(names)} classes are too few to split in 3")
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(names)) + 1
        train, val = (max(1, len(names) * share // 1000) for share in _FSS_SHARES)
        parts = [tuple(sorted(part.tolist())) for part in np.split(order, [train, train + val])]
        source = "seeded split over the sorted class names, not the published lists"
    return Fold(parts[0], parts[2], names, validation=parts[1], source=source, unlisted=unlisted)


def _listed(folder: Path, stems: Sequence[str], ids: dict[str, int]) -> tuple[int, ...]:
    """Ids of the classes that a list names, one a line, with or without a path before it."""
    path = next((p for p in (folder / f"{stem}.txt" for stem in stems) if p.is_file()), None)
    if path is None:
        raise FewShotError(f"DATA.split_lists: {folder} holds no {' or '.join(stems)}.txt")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FewShotError(f"{path}: not a readable text file") from error
    found = set()
    for number, line in enumerate(lines, 1):
        if name := composed(line.strip().rstrip("/").rpartition("/")[2]):
            if name not in ids:
                raise FewShotError(f"{path}, line {number}: there is no class folder '{name}'")
            found.add(ids[name])
    if not found:
        raise FewShotError(f"{path} names no class")
    return tuple(sorted(found))


_TABLES: dict[str, tuple[str, ...]] = {
    "pascal": VOC_CLASSES,
    "coco": COCO_CLASSES,
    "demo": DEMO_CLASSES,
}
