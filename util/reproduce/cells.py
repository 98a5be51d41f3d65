"""A cell of a table: a row, shot and fold, as a training and an evaluation of the usual scripts.

Where a run's results go follows from its settings alone: options that change what the configuration
file says become the run's ``name``. Tables that ask for the same settings therefore share a folder,
and with it the training; a cell without options is the run that one types by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.registry import method
from util.config import Config, load_config
from util.config.folds import split_count
from util.config.keys import plain
from util.config.load import nearest
from util.reproduce.tables import PATTERN, ROOT, Row, Table
from util.runtime.errors import FewShotError
from util.runtime.files import BEST

# Keys that a folder's path says, or that only name files.
IN_PATH = {"shot", "split", "backbone", "arch", "data_set", "trained_on", "name", "weight"}
# Keys that say where the files of one data set are.
OF_DATA = {"data_root", "train_list", "val_list", "split_lists"}
# Keys that say where files are, or how a machine does the same work.
FREE = {
    *OF_DATA, "allow_outside_root", "exp_root", "workers", "print_freq", "save_freq", "save_every",
    "save_minutes", "keep", "cache_gb", "batch_size_val", "compute", "compile", "tf32",
}  # fmt: skip


class NotThere(FewShotError):
    """The data that a table shall be made on in small have no configuration for a row."""


@dataclass(frozen=True)
class Setting:
    """A configuration file and options over it, as a script is given them."""

    config: str
    options: Options

    @property
    def cfg(self) -> Config:
        return _load(self.config, self.options)

    @property
    def arguments(self) -> list[str]:
        """For a command line."""
        given = [str(word) for key, value in self.options for word in (key, _written(value))]
        return ["--config", self.config, *(["--opts", *given] if given else [])]

    def over(self, **options: Any) -> Setting:
        """With more options."""
        return Setting(self.config, (*self.options, *options.items()))


@dataclass(frozen=True)
class Cell:
    """base: stage 1, None where the training starts from something else; result: what the
    evaluation writes, measured: where the costs of the network go."""

    row: Row
    shot: int
    fold: int
    train: Setting
    test: Setting
    base: Setting | None
    result: Path

    @property
    def folder(self) -> Path:
        """Of the training."""
        return self.train.cfg.exp_dir()

    @property
    def cost(self) -> Path:
        return self.folder / "cost.json"


Options = tuple[tuple[str, Any], ...]


def free_options(words: Sequence[str]) -> Options:
    """``--opts`` as pairs; only what no result depends on may be given to every command alike."""
    if len(words) % 2:
        raise FewShotError(f"--opts {words[-1]} has no value: write KEY VALUE pairs")
    pairs = tuple(zip(words[::2], words[1::2], strict=True))
    for key, _ in pairs:
        if key not in FREE:
            raise FewShotError(
                f"--opts {key} would change what the table says, or is unknown; what may be given: "
                f"{', '.join(sorted(FREE))} (nearest: {nearest(key, FREE)})"
            )
    return pairs


def refuse_mixed(cells: Iterable[Cell], more: Options) -> None:
    """Raise FewShotError where ``more`` would name one data set's files for several."""
    about = {setting.cfg.data_set for cell in cells for setting in (cell.train, cell.test)}
    given = [key for key, _ in more if key in OF_DATA]
    if given and len(about) > 1:
        raise FewShotError(
            f"--opts {given[0]} would be given to {' and '.join(sorted(about))} alike: write it "
            "into their configuration files instead"
        )


def cells_of(table: Table, data: str | None = None, more: Options = ()) -> list[Cell]:
    """The cells of every row that has a configuration.

    data: in small, on this data; rows that have no configuration there have no cells, and
    FewShotError where that is so of all. more: options for every command, of :data:`FREE` keys.
    """
    cells: list[Cell] = []
    problems = []
    for row in table.rows if data is None else ():
        cells += _cells_of(table, row, None, more)
    for row in table.rows if data is not None else ():
        try:
            cells += _cells_of(table, row, data, more)
        except NotThere as error:
            problems.append(error)
    if problems and not cells:
        raise problems[0]
    return cells


def in_small(table: Table, data: str | None) -> Table:
    """The table with the folds that ``data`` have."""
    for row in table.rows if data is not None else ():
        if row.config and not row.evaluate_on:
            try:
                cfg = Setting(*configuration(row.config, table.folds[0], data)).cfg
            except NotThere:
                continue
            folds = tuple(fold for fold in table.folds if fold < split_count(cfg))
            return replace(table, folds=folds)
    return table


def _cells_of(table: Table, row: Row, data: str | None, more: Options) -> list[Cell]:
    places = [(shot, fold) for shot in table.shots for fold in table.folds]
    return [cell_of(row, *place, data, more) for place in places] if row.config else []


def cell_of(row: Row, shot: int, fold: int, data: str | None = None, more: Options = ()) -> Cell:
    """One cell; :class:`NotThere` where ``data`` has no configuration for it."""
    assert row.config is not None
    if data is not None and row.evaluate_on:
        raise NotThere(f"row '{row.name}' is about two data sets: it has no form on {data}")
    path, place = configuration(row.config, fold, data)
    place += more
    file = Setting(path, place)
    plain_cfg = file.cfg
    trained = getattr(method(plain_cfg.arch), "train_shot", shot)
    options = tuple(row.options.items())
    train = Setting(path, (*place, *options, *_changed(plain_cfg, shot=trained)))
    name = run_name(train.cfg, plain_cfg, row.options)
    named = {"name": name} if name else {}
    train = train.over(**named)

    if row.evaluate_on:
        path, place = configuration(row.evaluate_on, fold, None)
        place += more
    usual = Setting(path, place).cfg
    evaluate = (*row.evaluate.items(), *_changed(usual, shot=shot), *named.items())
    test = Setting(path, (*place, *options, *evaluate))
    weight = train.cfg.exp_dir() / BEST
    if test.cfg.exp_dir() != weight.parent:
        test = test.over(weight=str(weight))
    suffix = run_name(test.cfg, usual, row.evaluate)
    result = test.cfg.exp_dir() / f"result{suffix and '_' + suffix}.json"
    return Cell(row, shot, fold, train, test, _base_of(train), result)


def configuration(pattern: str, fold: int, data: str | None) -> tuple[str, Options]:
    """The configuration file of a pattern and fold, and the options that choose the fold in it.

    ``data``: a folder of configurations, or a name below ``config/``, to be taken in its place:
    ``<name>_split<fold>_<backbone>.yaml`` with the pattern's backbone or the only one there is, or
    ``<name>.yaml`` with the option ``split``; ``_hsnet`` before ``.yaml`` for HSNet.
    """
    found = PATTERN.fullmatch(pattern)
    assert found is not None
    if data is None:
        return place(Path(pattern.format(fold=fold))), ()
    folder = Path(place(Path(data) if os.sep in data else Path("config", data)))
    stem, suffix = f"{folder.name}_split{fold}_", found["suffix"]
    same = folder / f"{stem}{found['backbone']}{suffix}.yaml"
    if same.is_file():
        return str(same), ()
    others = [p for p in sorted(folder.glob(f"{stem}*.yaml")) if _suffix(p, stem) == suffix]
    if len(others) == 1:
        return str(others[0]), ()
    common = folder / f"{folder.name}{suffix}.yaml"
    if common.is_file() and not others:
        return str(common), (("split", fold),)
    raise NotThere(
        f"{folder} has no configuration for {pattern}, fold {fold}: neither {same.name} nor "
        f"{common.name}"
    )


def _suffix(path: Path, stem: str) -> str:
    """'_hsnet' of coco_split0_resnet50_hsnet.yaml; a name of timm's holds _ as well."""
    rest = path.stem.removeprefix(stem)
    return next((end for end in ("_hsnet", "_base") if rest.endswith(end)), "")


def place(path: Path) -> str:
    """A path of the project, from its root where the working folder is another."""
    return str(path if path.exists() or path.is_absolute() else ROOT / path)


def _base_of(train: Setting) -> Setting | None:
    """Stage 1, where the training begins with what it writes."""
    cfg, path = train.cfg, Path(train.config)
    start = cfg.base_weight or cfg.pretrained
    file = path.with_name(f"{path.stem.removesuffix('_hsnet')}_base.yaml")
    if not file.is_file():
        return None
    chosen = tuple(entry for entry in train.options if entry[0] in {"split", *FREE})
    base = Setting(str(file), chosen)
    return base if str(base.cfg.exp_dir() / BEST) == start else None


def run_name(cfg: Config, without: Config, options: Iterable[str]) -> str:
    """What of ``options`` makes ``cfg`` another run than ``without``, as a folder's name."""
    differ = [
        f"{key}-{_written(getattr(cfg, key), '-')}"
        for key in sorted(options)
        if key not in IN_PATH and getattr(cfg, key) != getattr(without, key)
    ]
    return "+".join(differ)


def _changed(cfg: Config, **options: Any) -> Iterable[tuple[str, Any]]:
    return ((key, value) for key, value in options.items() if getattr(cfg, key) != value)


def _written(value: Any, comma: str = ", ") -> str:
    value = plain(value)
    if not isinstance(value, list):
        return "null" if value is None else str(value)
    inner = comma.join(map(str, value))
    return inner if comma == "-" else f"[{inner}]"


@lru_cache(maxsize=4096)
def _loaded(config: str, overrides: tuple[str, ...]) -> Config:
    return load_config(config, list(overrides))


def _load(config: str, options: Options) -> Config:
    return _loaded(config, tuple(w for key, value in options for w in (key, _written(value))))
