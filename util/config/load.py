"""Configuration: small YAML files over the defaults of :mod:`util.config.schema`.

A file holds sections (``DATA``, ``TRAIN``, ``EVALUATE``, ``Method``) of keys and may build on
others through ``inherit: other.yaml`` (or a list; later ones win; paths relative to the file).
Key names are unique over all sections, so ``cfg.shot`` and ``cfg.TRAIN.shot`` are the same.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from model.registry import ARCHITECTURES, requirements
from util.config.folds import Fold, fold_of, given_splits, split_count
from util.config.keys import BadValue, plain, show
from util.config.parse import YAML_ERRORS, first_line, parse
from util.config.schema import (
    FOREIGN_SECTIONS,
    IGNORED,
    KEYS,
    SECTIONS,
    Data,
    Evaluate,
    Method,
    Settings,
    Train,
)
from util.runtime.errors import FewShotError
from util.runtime.files import BEST, expanded

_LISTED = ("pascal", "coco", "demo")  # other data sets without lists have one folder per class
_EPISODES = {"pascal": 1000, "coco": 10000, "fss": 2400}
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class Config(Settings):
    """Read-only settings: ``cfg.shot``, ``cfg.TRAIN.shot``. Picklable; compares by value.

    Made by :func:`load_config`, :func:`config_from_dict` or :meth:`replace`, which validate.
    Lists come as fresh copies. ``source`` is the file's path, ``notes`` are sentences about
    foreign keys that were ignored, for the log.
    """

    DATA: Data
    TRAIN: Train
    EVALUATE: Evaluate
    Method: Method
    source: str
    notes: tuple[str, ...]
    _values: dict[str, Any]
    _given: dict[str, Any]

    def __init__(
        self, values: Mapping[str, Any], given: Mapping[str, Any], source: str, notes: Sequence[str]
    ) -> None:
        vars(self).update(
            _values=dict(values), _given=dict(given), source=source, notes=tuple(notes)
        )

    if not TYPE_CHECKING:  # a type checker knows every name without it

        def __getattr__(self, name: str) -> Any:
            if name in SECTIONS:
                return SimpleNamespace(**self.to_dict()[name])
            hint = "" if name.startswith("_") else f"; nearest: {nearest(name)}"
            raise AttributeError(f"the configuration has no {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the configuration is read-only: use cfg.replace({name}=...)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values == other._values

    def __repr__(self) -> str:
        return f"Config({self.source})"

    def replace(self, **changes: Any) -> Config:
        """A copy with other values, validated; defaults that depend on them follow."""
        entries = [(name, value, f"{self.source}: ") for name, value in changes.items()]
        return _make({**self._given, **_convert(entries)[0]}, self.source, self.notes)

    def about(self, fold: Fold) -> Config:
        """A copy about these classes, whatever lists and folders would say here."""
        cfg = self.replace()
        vars(cfg)["fold"] = fold
        return cfg

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every key by section, as plain numbers, text and lists."""
        return {
            section: {key.name: plain(self._values[key.name]) for key in keys}
            for section, keys in SECTIONS.items()
        }

    def dump(self) -> str:
        """Every key as YAML text that :func:`load_config` reads back to an equal configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @cached_property
    def fold(self) -> Fold:
        """Base and novel classes of this data set and split."""
        try:
            return fold_of(self)
        except FewShotError as error:
            raise FewShotError(f"{self.source}: {error}") from error

    @property
    def num_base(self) -> int:
        """Number of base classes N."""
        return len(self.fold.base)

    def exp_dir(self) -> Path:
        """``exp/<data_set>/<arch>/split<i>/<backbone>[/<shot>shot][/<name>]``; not created.

        A base learner has no shot; with ``trained_on`` the first folder is
        ``<data_set>_from_<trained_on>``.
        """
        data_set = f"{self.data_set}_from_{self.trained_on}" if self.trained_on else self.data_set
        backbone = self.backbone.removeprefix("timm/").replace(".", "_")
        folder = Path(self.exp_root, data_set, self.arch, f"split{self.split}", backbone)
        if not requirements(self.arch).is_base:
            folder /= f"{self.shot}shot"
        return folder / self.name if self.name else folder


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> Config:
    """Read a YAML file and apply ``overrides`` ``[key, value, key, value, ...]``.

    Override keys are ``shot`` or ``TRAIN.shot``; values given as text are read as YAML. Raises
    :class:`FewShotError` naming the file and the key for anything that cannot be used.
    """
    source = str(path)
    given, notes = _read(Path(path), ())
    changes, more = _convert(_override_entries(overrides))
    return _make({**given, **changes}, source, [*notes, *more])


def config_from_dict(
    values: Mapping[str, Any], source: str, overrides: Sequence[Any] = ()
) -> Config:
    """A configuration from :meth:`Config.to_dict`'s result, as kept in checkpoints."""
    if not isinstance(values, Mapping):
        raise FewShotError(f"{source}: a configuration is made of sections, not {show(values)}")
    given, notes = _convert(_entries(values, source))
    changes, more = _convert(_override_entries(overrides))
    return _make({**given, **changes}, source, [*notes, *more])


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--config FILE`` and ``--opts KEY VALUE ...`` (repeatable, later ones win).

    required: False where the configuration kept in a checkpoint can stand in for the file.
    """
    default = "" if required else "; default: the one in the checkpoint"
    parser.add_argument(
        "--config",
        type=expanded,
        required=required,
        metavar="FILE",
        help=f"YAML configuration{default}",
    )
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that replace those of the file",
    )


# ---------------------------------------------------------------------------- reading


def _read(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    """Values given by a file and those it inherits from, and notes about ignored keys."""
    source = str(path)
    document = parse(path)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise FewShotError(f"{source}: a configuration is made of sections such as TRAIN:")
    given: dict[str, Any] = {}
    notes: list[str] = []
    parents = document.pop("inherit", None)
    parents = [] if parents is None else parents if isinstance(parents, list) else [parents]
    for parent in parents:
        if not isinstance(parent, str) or not 0 < len(parent) <= 500 or "\0" in parent:
            raise FewShotError(f"{source}: inherit must name YAML files, not {show(parent)}")
        # Symbolic links and "..": two spellings of one file must not hide a circle.
        chain = (*above, path.resolve())
        target = path.parent / expanded(parent)
        if target.resolve() in chain:
            raise FewShotError(f"{source}: inherit goes round in a circle through {parent}")
        values, more = _read(target, chain)
        given.update(values)
        notes.extend(more)
    values, more = _convert(_entries(document, source))
    return {**given, **values}, [*notes, *more]


Entry = tuple[str, Any, str]
"""Key, value and the beginning of a sentence that says where they came from."""


def _entries(document: Mapping[Any, Any], source: str) -> list[Entry]:
    """The keys of a document, in sections or flat."""
    entries: list[Entry] = []
    seen: dict[str, tuple[str, str]] = {}
    for section, content in document.items():
        if section in SECTIONS or section in FOREIGN_SECTIONS:
            if content is None:
                continue
            if not isinstance(content, Mapping):
                raise FewShotError(f"{source}: section {section} must hold keys and values")
            pairs, prefix = [*content.items()], f"{section}."
        elif isinstance(content, Mapping):
            names = [*SECTIONS, *FOREIGN_SECTIONS]
            raise FewShotError(
                f"{source}: unknown section {show(section)}; nearest: {nearest(section, names)}"
            )
        else:
            pairs, prefix = [(section, content)], ""
        for name, value in pairs:
            where = f"{prefix}{name}"
            if not isinstance(name, str):
                raise FewShotError(f"{source}: {prefix}{show(name)} is not a key; keys are text")
            # Compared as shown: aliases can make a value contain itself.
            if name in seen and seen[name][0] != show(value):
                raise FewShotError(
                    f"{source}: {_short(where)} and {_short(seen[name][1])} disagree; keep one"
                )
            seen[name] = (show(value), where)
            entries.append((name, value, f"{source}: {prefix}"))
    return entries


def _override_entries(overrides: Sequence[Any]) -> list[Entry]:
    if isinstance(overrides, (str, bytes)) or not isinstance(overrides, Sequence):
        raise FewShotError(f"overrides must be a list of keys and values, not {show(overrides)}")
    if len(overrides) % 2:
        raise FewShotError(f"override {show(overrides[-1])} has no value: write KEY VALUE pairs")
    entries: list[Entry] = []
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if not isinstance(key, str):
            raise FewShotError(f"override {show(key)}: keys are text")
        section, _, name = key.rpartition(".")
        if section and section not in SECTIONS and section not in FOREIGN_SECTIONS:
            raise FewShotError(
                f"override {show(key)}: unknown section {show(section)}; "
                f"nearest: {nearest(section, SECTIONS)}"
            )
        value = _override_value(name, value) if isinstance(value, str) else value
        entries.append((name, value, f"override {section + '.' if section else ''}"))
    return entries


def _override_value(name: str, text: str) -> Any:
    """Text of the command line read as YAML, where the key does not take text anyway."""
    takes_text = name in KEYS and KEYS[name].kind in ("str", "path")
    if text == "" and takes_text:
        return None if KEYS[name].default is None else ""
    try:
        value = yaml.safe_load(text)
    except YAML_ERRORS as error:
        if takes_text:  # a path such as "a: [b" is no YAML, and need not be
            return text
        raise FewShotError(
            f"override {show(name)}: {show(text)} is not valid YAML ({first_line(error)})"
        ) from error
    return text if takes_text and not (value is None or isinstance(value, str)) else value


# ---------------------------------------------------------------------------- checking


def _convert(entries: Iterable[Entry]) -> tuple[dict[str, Any], list[str]]:
    """Typed values of known keys; foreign keys are translated, noted or refused."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, value, where in _translate(list(entries)):
        if name in KEYS:
            try:
                values[name] = KEYS[name].convert(value)
            except BadValue as error:
                raise FewShotError(f"{where}{name} {error}") from error
        elif name in IGNORED:
            harmless, advice = IGNORED[name]
            if harmless is not None and value not in harmless:
                raise FewShotError(f"{where}{name} {show(value)} is not supported: {advice}")
            notes.append(f"{where}{name} has no effect: {advice}")
        else:
            raise FewShotError(f"{where}{_short(name)} is unknown; nearest: {nearest(name)}")
    return values, notes


def _translate(entries: list[Entry]) -> list[Entry]:
    """PFENet's and BAM's ``vgg``, ``layers`` and ``use_coco`` as ``backbone`` and ``data_set``."""
    given = {name: (value, where) for name, value, where in entries}
    renamed: dict[str, tuple[str, str, str]] = {}
    if "layers" in given:
        value, where = given["layers"]
        if isinstance(value, bool) or value not in (18, 50, 101, 152):
            raise FewShotError(f"{where}layers must be 18, 50, 101 or 152, not {show(value)}")
        renamed["backbone"] = (f"resnet{value}", where, "layers")
    for old, new, when_true in (("vgg", "backbone", "vgg16"), ("use_coco", "data_set", "coco")):
        if old in given:
            value, where = given[old]
            if not isinstance(value, bool):
                raise FewShotError(f"{where}{old} must be True or False, not {show(value)}")
            if value:
                renamed[new] = (when_true, where, old)
    for new, (value, where, old) in renamed.items():
        if new in given and given[new][0] != value:
            raise FewShotError(
                f"{where}{old} says {new} {value}, but {new} is {show(given[new][0])}; remove {old}"
            )
    kept = [entry for entry in entries if entry[0] not in ("vgg", "layers", "use_coco")]
    return kept + [(new, value, where) for new, (value, where, _) in renamed.items()]


def _make(given: Mapping[str, Any], source: str, notes: Sequence[str]) -> Config:
    values = {name: given.get(name, key.default) for name, key in KEYS.items()}
    _fill(values)
    cfg = Config(values, given, source, notes)
    for problem in _problems(cfg):
        raise FewShotError(f"{source}: {problem}")
    return cfg


def _fill(values: dict[str, Any]) -> None:
    """Defaults that depend on other keys."""
    data_set = values["data_set"]
    backbone = values["backbone"]
    weights = f"initmodel/{'vgg16_bn' if backbone == 'vgg16' else f'{backbone}_v2'}.pth"
    weights = "timm" if backbone.startswith("timm/") else weights
    derived = {
        "data_root": f"data/{data_set}",
        "episodes": _EPISODES.get(data_set, 200),
        "optimizer": requirements(values["arch"]).optimizer,
        "pretrained": "torchvision" if values["stem"] == "7x7" else weights,
    }
    if data_set in _LISTED:
        derived["train_list"] = f"lists/{data_set}/train.txt"
        derived["val_list"] = f"lists/{data_set}/val.txt"
    for name, value in derived.items():
        if values[name] is None:
            values[name] = value
    base_learner = requirements(values["arch"]).base_learner
    if base_learner and not values["base_weight"]:
        stage1 = Config({**values, "arch": base_learner, "name": ""}, {}, "", ())
        values["base_weight"] = str(stage1.exp_dir() / BEST)


def _problems(cfg: Config) -> Iterable[str]:
    """Sentences about values that are fine alone and impossible together."""
    needs = requirements(cfg.arch)
    if cfg.arch not in ARCHITECTURES:
        best = nearest(cfg.arch, ARCHITECTURES)
        yield f"arch {show(cfg.arch)} is not in this project; nearest: {best}"
    for name in ("data_set", "name"):
        value = getattr(cfg, name)
        if (value or name == "data_set") and not _FOLDER.fullmatch(value):
            yield f"{name} names a folder: letters, digits and _ . + - only, not {show(value)}"
    network = cfg.backbone.removeprefix("timm/")
    if not _FOLDER.fullmatch(network):
        yield f"backbone timm/ needs the name of one of timm's models, not {show(network)}"
    for low, high in (("scale_min", "scale_max"), ("rotate_min", "rotate_max")):
        if getattr(cfg, low) > getattr(cfg, high):
            yield f"{low} {getattr(cfg, low)} is above {high} {getattr(cfg, high)}"
    splits = split_count(cfg)
    if cfg.split >= splits:
        yield f"split {show(cfg.split)} is not a fold of {cfg.data_set}, which has " + (
            "only fold 0" if splits == 1 else f"folds 0 to {splits - 1}"
        )
    if cfg.val_list and not cfg.train_list:
        yield "val_list is given and train_list is not: class folders need neither, lists are two"
    if cfg.split_lists and (cfg.data_set != "fss" or cfg.folds):
        yield "split_lists is read for data_set fss without folds only: remove it, or the folds"
    if cfg.folds and cfg.class_names:
        try:
            given_splits(cfg.folds, dict(enumerate(cfg.class_names, 1)))
        except FewShotError as error:
            yield str(error)
    if cfg.runs > len(cfg.seeds):
        yield f"runs {show(cfg.runs)} needs as many seeds, but seeds has {len(cfg.seeds)}"
    if needs.is_base and cfg.batch_size == 1 and not cfg.fix_bn:
        yield (
            f"batch_size 1 cannot train {cfg.arch}'s batch norms over its 1x1 pooling; "
            "use at least 2, or fix_bn: True"
        )
    for name in ("train_h", "train_w", "val_size"):
        size = getattr(cfg, name)
        if not needs.fits(cfg, size):
            nearby = (size + sign * step for step in range(1, 1025) for sign in (1, -1))
            works = next(other for other in nearby if needs.fits(cfg, other))
            yield f"{name} {size} does not suit {cfg.arch} with {cfg.backbone}; {works} works"


# ---------------------------------------------------------------------------- wording


def nearest(name: Any, names: Iterable[str] = KEYS) -> str:
    """That of ``names`` that is spelt most like ``name``."""
    by_lower = {known.lower(): known for known in names}
    best = difflib.get_close_matches(str(name)[:80].lower(), by_lower, n=1, cutoff=0.0)
    return by_lower[best[0]]


def _short(name: str) -> str:
    return name if len(name) <= 60 and name.isprintable() else show(name)
