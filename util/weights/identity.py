"""What weights were trained with, and whether that is what is asked of them now.

A checkpoint keeps its configuration, its fold by class names, and the names of all classes that it
or the weights it started from were trained on. Whenever weights are loaded, the options that give
them their meaning (``util.config.schema.ROLES``) are compared with what is asked, and a difference
is refused by name. Of weights that keep no configuration (published ones) nothing can be known:
that is the sentence which :func:`check` then returns, to be said aloud.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from model.registry import reads
from util.config import Config, config_from_dict
from util.config.folds import Fold, by_folder, canonical, has_table
from util.config.schema import KEYS, SECTIONS
from util.runtime.errors import FewShotError

_FEW = 6  # class names in a sentence
_LONGEST = 200  # characters of a value that can still be copied from a sentence


class Use(Enum):
    """What weights are loaded for: the roles of the options that must be equal, and the way out."""

    PREDICTION = (("encoder", "network"), "take other weights")
    EVALUATION = (("encoder", "network", "objective", "pictures"), "take other weights")
    RESUMING = (
        ("encoder", "network", "objective", "pictures", "course"),
        "start without --resume",
    )
    STARTING = (("encoder", "pictures"), "train the first stage anew, or name other weights")

    @property
    def roles(self) -> tuple[str, ...]:
        return self.value[0]

    @property
    def otherwise(self) -> str:
        return self.value[1]


class Origin(NamedTuple):
    """What a checkpoint of this project says of itself.

    cfg: the configuration that it was trained with; fold: its classes, None where neither the file
    nor the data set (class folders of another machine) says; seen: canonical names of the classes
    that it and what it started from were trained on.
    """

    cfg: Config
    fold: Fold | None
    seen: frozenset[str]

    def summary(self) -> dict[str, Any]:
        """For ``result.json``: what the weights were trained on."""
        return {
            "data_set": self.cfg.data_set,
            "split": self.cfg.split,
            "protocol": self.cfg.protocol,
            "classes": sorted(self.seen),
        }


def record(cfg: Config, seen: Iterable[str]) -> dict[str, Any]:
    """What a checkpoint keeps beside its configuration: the classes, whatever becomes of the
    folders and lists that say so today. ``seen``: names of classes that earlier stages saw."""
    fold = cfg.fold
    return {
        "fold": {
            "names": dict(fold.names),
            "base": list(fold.base),
            "validation": list(fold.validation),
            "novel": list(fold.novel),
        },
        "seen": sorted({canonical(name) for name in (*seen, *fold.base_names)}),
    }


# What a tensor or another value in the place of a table of classes raises.
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def origin_of(content: Mapping[str, Any], source: str) -> Origin | None:
    """What the content of a weight file says of itself; None when it is not this project's.

    Raises FewShotError, naming ``source``, when that is damaged.
    """
    kept = content.get("config")
    if not isinstance(kept, Mapping) or not SECTIONS.keys() & kept.keys():
        return None
    cfg = config_from_dict(kept, source)
    try:
        fold = _fold(content["fold"]) if "fold" in content else _fold_of(cfg)
        seen = {canonical(name) for name in content.get("seen", ())}
    except UNREADABLE as error:
        raise FewShotError(f"{source} is damaged: its classes cannot be read") from error
    seen |= {canonical(name) for name in fold.base_names} if fold else set()
    return Origin(cfg, fold, frozenset(seen))


def _fold(kept: Mapping[str, Any]) -> Fold:
    names = {int(class_id): str(name) for class_id, name in kept["names"].items()}
    parts = {name: tuple(map(int, kept[name])) for name in ("base", "novel", "validation")}
    for class_id in (*parts["base"], *parts["novel"], *parts["validation"]):
        names[class_id]  # KeyError: an id without a name
    return Fold(names=names, **parts)


def _fold_of(cfg: Config) -> Fold | None:
    try:
        return cfg.fold
    except FewShotError:  # lists or class folders that are not here
        return None


def check(
    origin: Origin | None, cfg: Config, use: Use, source: str, base_learner: bool = False
) -> str | None:
    """Refuse weights that are not what ``cfg`` asks for.

    origin: what :func:`origin_of` found; source: how sentences call the weights; base_learner:
    whether they fill a base learner, whose channels are the classes trained on in their order.
    Returns a sentence when it cannot be known whether they are right, None when they are. Raises
    FewShotError naming the options that differ, both values, and what to write.
    """
    if origin is None:
        if use is Use.PREDICTION:
            return f"{source} does not say how it was trained: the options of {cfg.source} are used"
        return (
            f"{source} does not say how it was trained: whether it has seen classes that "
            f"{cfg.source} holds out, or had other options, cannot be known"
        )
    old = origin.cfg
    if old.arch != cfg.arch and use is not Use.STARTING:
        raise _differs(source, ["arch"], old, cfg, use)
    if names := [n for n, key in KEYS.items() if key.role in use.roles and _differ(n, old, cfg)]:
        if use is Use.STARTING:
            names = [n for n in names if reads(old.arch, n) and not _stricter(n, old)]
        names = [n for n in names if reads(cfg.arch, n)]
        if names:
            raise _differs(source, names, old, cfg, use)
    return None if use is Use.PREDICTION else _check_classes(origin, cfg, use, source, base_learner)


def _stricter(name: str, old: Config) -> bool:
    """bam's pictures show base classes only, so a stage over it may take more."""
    return name == "protocol" and old.protocol == "bam"


def _differ(name: str, old: Config, new: Config) -> bool:
    return getattr(old, name) != getattr(new, name)


def _check_classes(
    origin: Origin, cfg: Config, use: Use, source: str, base_learner: bool
) -> str | None:
    """The second half of :func:`check`: the classes, by their names."""
    old, was, fold = origin.cfg, origin.fold, cfg.fold
    options = [n for n, key in KEYS.items() if key.role == "classes" and _differ(n, old, cfg)]
    if cfg.trained_on is not None:  # the others describe the data set evaluated on
        options = [n for n in options if n in ("split", "use_split_coco")]
    data_set = cfg.trained_on or cfg.data_set
    if old.data_set != data_set and use is Use.RESUMING:
        raise _differs(source, ["data_set"], old, cfg, use)
    if old.data_set != data_set and use is Use.EVALUATION:
        if old.data_set == cfg.data_set:
            write = "trained_on null"
        elif has_table(old.data_set):
            write = f"trained_on {old.data_set}"
        else:
            write = f"data_set {old.data_set} (data_root and the lists name the pictures)"
        raise FewShotError(
            f"{source} was trained on the data set {old.data_set}, this run is about weights of "
            f"{data_set}; write --opts {write}, or {use.otherwise}"
        )
    if was is None:
        if options:
            raise _differs(source, options, old, cfg, use)
        if use is Use.RESUMING:
            return None
        return f"{source} does not name the classes that it was trained on: they cannot be known"
    if use is Use.RESUMING:
        same = was.base_names == fold.base_names and all(
            _named(was, was.classes(mode)) == _named(fold, fold.classes(mode))
            for mode in ("val", "test")
        )
        if not same:
            raise _differs(source, options, old, cfg, use, "with other classes")
        return None
    held_out = fold.novel + (fold.validation if use is Use.STARTING else ())
    if fold.trained is None:  # own classes may be trained on and evaluated: nothing is held out
        held_out = tuple(class_id for class_id in held_out if class_id not in fold.base)
    known = {canonical(name) for name in was.names.values()}
    by_id = data_set == cfg.data_set == old.data_set and not by_folder(cfg) and not by_folder(old)
    shared = [
        fold.names[class_id]
        for class_id in held_out
        if (name := canonical(fold.names[class_id])) in origin.seen
        # A mask value that was trained on, under a name that nobody knew then.
        or (by_id and class_id in was.base and name not in known)
    ]
    if shared:
        more = f" and {len(shared) - _FEW} more" if len(shared) > _FEW else ""
        classes = f"on {', '.join(shared[:_FEW])}{more}, which split {cfg.split} here holds out"
        raise _differs(source, options, old, cfg, use, classes)
    before, now = ([canonical(name) for name in f.base_names] for f in (was, fold))
    if base_learner and before != now:
        raise _differs(
            source, options, old, cfg, use, "with other classes, or in another order, and its base "
            "learner numbers them",
        )  # fmt: skip
    return None


def _named(fold: Fold, ids: Iterable[int]) -> set[str]:
    return {canonical(fold.names[class_id]) for class_id in ids}


def _differs(
    source: str, names: list[str], old: Config, new: Config, use: Use, classes: str = ""
) -> FewShotError:
    """The sentence about options that differ, or about classes that do though no option does."""
    start = f"{source} was trained {classes}" if classes else f"{source} was trained"
    if not names:
        return FewShotError(
            f"{start}; the options are the same, so the class folders or lists have changed since: "
            f"put them back, or {use.otherwise}"
        )
    were = ", ".join(f"{name} {_written(getattr(old, name))}" for name in names)
    are = ", ".join(_written(getattr(new, name)) for name in names)
    opts = " ".join(f"{name} {shlex.quote(_written(getattr(old, name)))}" for name in names)
    return FewShotError(
        f"{start}{', ' if classes else ' '}with {were}, this run has {are}; "
        f"write --opts {opts}, or {use.otherwise}"
    )


def _written(value: Any) -> str:
    """A value as YAML would have it, shortened when nobody would type it."""
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
