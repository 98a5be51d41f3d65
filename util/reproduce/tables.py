"""Tables and figures of the papers as data: ``config/table/<name>.yaml``.

    paper, place, title, note    where it stands and what it shows
    folds, shots                 [0, 1, 2, 3] and [1] without them
    columns                      of folds, mean, fb_iou (for each shot), parameters, ms, gb, gflop
    figure                       for a picture: categories, spread, sheet or curves
    config                       for rows that name none: a configuration file with {fold} in it
    rows                         name -> config, options (of training and evaluation), evaluate
                                 (options of the evaluation alone), evaluate_on (its own
                                 configuration file), published

A row without a configuration is a method that this project has not: its numbers are the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from util.config.keys import BadValue, show
from util.config.load import nearest
from util.config.parse import parse
from util.config.schema import KEYS
from util.runtime.errors import FewShotError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "config" / "table"
# What can be measured: heading of its column. Scores are per cent, and of a shot.
SCORES = {"mean": "mean", "fb_iou": "FB-IoU"}
COSTS = {"parameters": "parameters, 10⁶", "ms": "ms", "gb": "GB", "gflop": "10⁹ operations"}
COLUMNS = ("folds", *SCORES, *COSTS)
FIGURES = ("categories", "spread", "sheet", "curves")
KEYS_OF = {
    "table": ("paper", "place", "title", "note", "folds", "shots", "columns", "figure", "config",
              "rows"),
    "row": ("config", "options", "evaluate", "evaluate_on", "published"),
}  # fmt: skip
PATTERN = re.compile(
    r"(?P<folder>.+)/(?P<data>[^/]+)_split\{fold\}_(?P<backbone>[a-z0-9_]+?)(?P<suffix>(_hsnet)?)\.yaml"
)


class Column(NamedTuple):
    """measure: a key of :data:`SCORES` or :data:`COSTS`, or 'miou' with a fold; shot of a score."""

    measure: str
    shot: int | None = None
    fold: int | None = None

    @property
    def title(self) -> str:
        """'5 shot, fold 2', 'ms', ..."""
        if self.measure in COSTS:
            return COSTS[self.measure]
        what = SCORES[self.measure] if self.fold is None else f"fold {self.fold}"
        return f"{self.shot} shot, {what}"


@dataclass(frozen=True)
class Row:
    """A line of a table, see the module's title. published: per cent, millions, ms, GB, 10⁹."""

    name: str
    config: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    evaluate_on: str | None = None
    published: Mapping[Column, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table or figure, see the module's title."""

    name: str
    paper: str
    place: str
    title: str
    note: str
    folds: tuple[int, ...]
    shots: tuple[int, ...]
    measures: tuple[str, ...]
    figure: str | None
    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[Column]:
        """Those of the scores for each shot, then those of the costs."""
        scored = [c for shot in self.shots for m in self.measures for c in self._of(m, shot)]
        return scored + [Column(m) for m in self.measures if m in COSTS]

    def _of(self, measure: str, shot: int) -> list[Column]:
        if measure == "folds":
            return [Column("miou", shot, fold) for fold in self.folds]
        return [Column(measure, shot)] if measure in SCORES else []


def load_tables(folder: Path = FOLDER) -> dict[str, Table]:
    """Every table by its name."""
    return {path.stem: load_table(path) for path in sorted(folder.glob("*.yaml"))}


def table_of(name: str, folder: Path = FOLDER) -> Table:
    """The table of that name; FewShotError that names the nearest where there is none."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = [found.stem for found in folder.glob("*.yaml")]
        raise FewShotError(f"there is no table {show(name)}; nearest: {nearest(name, names)}")
    return load_table(path)


def load_table(path: Path) -> Table:
    """Read and check a file; FewShotError naming it and the key for anything that is not right."""
    read = _Reader(path)
    found = read.mapping(parse(path), "", KEYS_OF["table"])
    for key in ("paper", "place", "title", "rows"):
        if key not in found:
            raise read.wrong(key, "is missing")
    texts = {key: found.get(key, "") for key in ("paper", "place", "title", "note")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise read.wrong(key, f"must be text, not {show(value)}")
    figure = found.get("figure")
    if figure is not None and figure not in FIGURES:
        raise read.wrong("figure", f"must be {', '.join(FIGURES)}, not {show(figure)}")
    rows = read.mapping(found["rows"], "rows")
    if not rows:
        raise read.wrong("rows", "has no row")
    table = Table(
        name=path.stem,
        **texts,
        folds=read.numbers(found, "folds", (0, 1, 2, 3), 0),
        shots=read.numbers(found, "shots", (1,), 1),
        measures=read.names(found, "columns", COLUMNS),
        figure=figure,
        rows=(),
    )
    made = tuple(read.row(table, name, entry, found.get("config")) for name, entry in rows.items())
    return Table(**{**vars(table), "rows": made})


class _Reader:
    """The parts of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, key: str, what: str) -> FewShotError:
        return FewShotError(f"{self.path}: {key} {what}")

    def mapping(self, value: Any, key: str, allowed: Sequence[str] = ()) -> dict[str, Any]:
        """Keys and values, the keys text and, where they are given, among the ``allowed``."""
        if not isinstance(value, dict):
            raise self.wrong(key or "the file", f"must hold keys and values, not {show(value)}")
        for name in value:
            place = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                raise self.wrong(place, "is no name: write it in quotes")
            if allowed and name not in allowed:
                raise self.wrong(place, f"is unknown; nearest: {nearest(name, allowed)}")
        return value

    def numbers(
        self, found: Mapping[str, Any], key: str, default: tuple[int, ...], least: int
    ) -> tuple[int, ...]:
        value = found.get(key, default)
        whole = isinstance(value, (list, tuple)) and all(type(n) is int for n in value)
        if not whole or not value or min(value) < least or len(set(value)) < len(value):
            raise self.wrong(key, f"must list whole numbers from {least} once, not {show(value)}")
        return tuple(value)

    def names(self, found: Mapping[str, Any], key: str, allowed: Sequence[str]) -> tuple[str, ...]:
        value = found.get(key, [])
        if not isinstance(value, list) or any(name not in allowed for name in value):
            raise self.wrong(key, f"must list some of {', '.join(allowed)}, not {show(value)}")
        return tuple(value)

    def row(self, table: Table, name: str, entry: Any, default: Any) -> Row:
        key = f"rows.{name}"
        found = self.mapping(entry, key, KEYS_OF["row"])
        config = self.pattern(found.get("config", default), f"{key}.config")
        own = self.pattern(found.get("evaluate_on"), f"{key}.evaluate_on")
        options, evaluate = (self.options(found, key, part) for part in ("options", "evaluate"))
        if config is None and (options or evaluate or own):
            raise self.wrong(key, "has options and no config to give them to")
        published = self.published(table, found.get("published", {}), f"{key}.published")
        if config is None and not published:
            raise self.wrong(key, "has neither a config nor published numbers")
        return Row(name, config, options, evaluate, own, published)

    def pattern(self, value: Any, key: str) -> str | None:
        if value is not None and not (isinstance(value, str) and PATTERN.fullmatch(value)):
            shape = "config/<data>/<data>_split{fold}_<backbone>.yaml"
            raise self.wrong(key, f"must be a file such as {shape}, not {show(value)}")
        return value

    def options(self, found: Mapping[str, Any], key: str, part: str) -> dict[str, Any]:
        """Options of a configuration with values that they can take."""
        options = self.mapping(found.get(part, {}), f"{key}.{part}", tuple(KEYS))
        for name, value in options.items():
            try:
                KEYS[name].convert(value)
            except BadValue as error:
                raise self.wrong(f"{key}.{part}.{name}", str(error)) from error
        return options

    def published(self, table: Table, value: Any, key: str) -> dict[Column, float]:
        """Numbers by their columns; each must be one of the table's."""
        if not isinstance(value, dict):
            raise self.wrong(key, f"must hold shots and costs, not {show(value)}")
        numbers: dict[Column, float] = {}
        for name, entry in value.items():
            place = f"{key}.{name}"
            if name in COSTS and name in table.measures:
                numbers[Column(name)] = self.number(entry, place, 1e6)
            elif type(name) is int and name in table.shots:
                allowed = [m for m in table.measures if m not in COSTS]
                for measure, score in self.mapping(entry, place, allowed).items():
                    numbers |= self.scores(table, measure, name, score, f"{place}.{measure}")
            else:
                raise self.wrong(place, "is no shot and no cost that the table has a column for")
        return numbers

    def scores(
        self, table: Table, measure: str, shot: int, value: Any, key: str
    ) -> dict[Column, float]:
        if measure != "folds":
            return {Column(measure, shot): self.number(value, key, 100)}
        if not isinstance(value, list) or len(value) != len(table.folds):
            raise self.wrong(key, f"must list {len(table.folds)} numbers, not {show(value)}")
        pairs = zip(table.folds, value, strict=True)
        return {Column("miou", shot, fold): self.number(n, key, 100) for fold, n in pairs}

    def number(self, value: Any, key: str, most: float) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= most:
            raise self.wrong(key, f"must be a number from 0 to {most:g}, not {show(value)}")
        return float(value)
