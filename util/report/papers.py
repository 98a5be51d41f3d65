"""A table of a paper, as the paper prints it: what was measured here beside what was published.

    python -m util.report table hdmnet-table3 [--data demo] [--folds 0] [--output DIR]

Every row has a line of what was measured, one of what the paper says, and one of the difference.
What was not measured is blank. Under ``--data`` the measured figures are about other pictures and
have no difference to the paper's. A mean stands where every fold is there.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from util.config.load import nearest
from util.report.tables import markdown_table
from util.reproduce.cells import Cell, cells_of, free_options, in_small
from util.reproduce.complete import costs_of, result_of
from util.reproduce.tables import COSTS, Column, Row, Table, table_of
from util.runtime.errors import FewShotError, one_line
from util.runtime.files import user_path, write_atomically

METRIC = {"miou": "miou", "mean": "miou", "fb_iou": "fb_iou"}
ELSEWHERE = "published, a method of others"
Values = dict[Column, float]


# ---------------------------------------------------------------------------- what is asked for


def add_selection(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--folds``, ``--shots``, ``--output``, ``--opts``."""
    add = parser.add_argument
    add("--data", metavar="NAME", help="in small: the configurations of config/NAME, or a folder")
    add("--folds", type=numbers, metavar="0,2", help="these folds alone")
    add("--shots", type=numbers, metavar="1,5", help="these shots alone")
    add("--output", type=user_path, metavar="DIR", help="folder of the drawn table (exp/tables)")
    add("--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE",
        help="of every command: where data and results are, how many workers, ...")  # fmt: skip


def numbers(text: str) -> tuple[int, ...]:
    """'0,2' of a command line as whole numbers."""
    try:
        return tuple(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list such as 0,2") from None


def selected(table: Table, options: argparse.Namespace) -> Table:
    """The part of a table that was asked for; FewShotError for a part that it has not."""
    table = table if options.folds else in_small(table, options.data)
    for name in ("folds", "shots"):
        chosen, there = getattr(options, name), getattr(table, name)
        if chosen and not set(chosen) <= set(there):
            raise FewShotError(f"{table.name} has {name} {list(there)}, not {list(chosen)}")
        if chosen:
            table = replace(table, **{name: chosen})
    rows = {row.name: row for row in table.rows}
    for name in options.rows or ():
        if name not in rows:
            raise FewShotError(
                f"{table.name} has no row '{name}'; nearest: '{nearest(name, rows)}'"
            )
    kept = tuple(row for row in table.rows if not options.rows or row.name in options.rows)
    return replace(table, rows=kept)


def place(
    table: Table, cells: Sequence[Cell], options: argparse.Namespace, suffix: str = ".png"
) -> Path:
    """The file of a drawn table: named for the table, the data and the part of it."""
    parts = [table.name]
    if options.data is not None:
        parts.append(Path(options.data).name)
    for name in ("folds", "shots"):
        if chosen := getattr(options, name, None):
            parts.append(f"{name}-{'-'.join(map(str, chosen))}")
    root = Path(cells[0].train.cfg.exp_root if cells else "exp", "tables")
    folder = getattr(options, "output", None) or root
    return folder / f"{'_'.join(parts)}{suffix}"


# ---------------------------------------------------------------------------- what is there


def measured(table: Table, cells: Sequence[Cell]) -> dict[str, Values]:
    """Row -> column -> what was measured; nothing where a result or one of its folds is missing."""
    values: dict[str, Values] = {row.name: {} for row in table.rows}
    scores: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        found, _ = _result(cell)
        if found is not None:
            scores.setdefault((cell.row.name, cell.shot), {})[cell.fold] = found["mean"]
        values[cell.row.name] |= _costs(cell)
    for column in table.columns:
        metric = METRIC.get(column.measure)
        wanted = table.folds if column.fold is None else (column.fold,)
        for row in table.rows if metric and column.shot is not None else ():
            of_row = scores.get((row.name, column.shot or 0), {})
            known = [of_row[fold].get(metric) for fold in wanted if fold in of_row]
            numbers = [100 * value for value in known if value is not None]
            if len(numbers) == len(wanted):
                values[row.name][column] = sum(numbers) / len(numbers)
    return values


def _result(cell: Cell) -> tuple[dict[str, Any] | None, str]:
    """The cell's result, and why what lies there is not taken for it."""
    try:
        return result_of(cell), ""
    except FewShotError as error:
        return None, str(error)


def _costs(cell: Cell) -> Values:
    found = costs_of(cell) or {}
    numbers = {name: found.get(name) for name in COSTS}
    return {Column(name): n for name, n in numbers.items() if isinstance(n, (int, float))}


def differences(table: Table, row: Row, values: Values, whole: Table, data: str | None) -> Values:
    """Measured less published, where the two are about the same pictures and folds."""
    if data is not None:
        return {}
    same = {c for c in table.columns if c.fold is not None or c.measure in COSTS}
    if table.folds == whole.folds:
        same |= set(table.columns)
    both = same & set(values) & set(row.published)
    return {column: values[column] - row.published[column] for column in both}


# ---------------------------------------------------------------------------- drawing


Line = tuple[str, str, Values]


def lines_of(
    table: Table, values: Mapping[str, Values], whole: Table, data: str | None
) -> list[Line]:
    """(row, what it is, numbers) line by line."""
    lines: list[Line] = []
    for row in table.rows:
        if row.config is None:
            lines.append((row.name, ELSEWHERE, dict(row.published)))
            continue
        lines.append((row.name, "measured", values[row.name]))
        if row.published:
            lines.append(("", "published", dict(row.published)))
            if data is None:
                found = differences(table, row, values[row.name], whole, data)
                lines.append(("", "difference", found))
    return lines


def markdown(table: Table, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """A headline, what is to be known, the table."""
    columns = table.columns
    head = ["", "", *(column.title for column in columns)]
    body = [
        [name, what, *(_number(numbers.get(c), what == "difference") for c in columns)]
        for name, what, numbers in lines
    ]
    parts = [f"## {table.paper}, {table.place}: {table.title}", *notes]
    if columns:
        parts.append(markdown_table([head, *body], left=(0, 1)))
    return "\n\n".join(parts) + "\n"


def _number(value: float | None, signed: bool) -> str:
    if value is None:
        return ""
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def comma_separated(table: Table, lines: Sequence[Line]) -> str:
    """A line for each number: row, what it is, measure, shot, fold, value; none for a blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "kind", "measure", "shot", "fold", "value"])
    name = ""
    for row, what, numbers in lines:
        name = row or name
        for column in table.columns:
            if column in numbers:
                at = ["" if n is None else n for n in (column.shot, column.fold)]
                value = f"{numbers[column]:.4f}"
                writer.writerow([table.name, name, what, column.measure, *at, value])
    return text.getvalue()


def chart(table: Table, lines: Sequence[Line], data: str | None) -> bytes:
    """PNG: a panel for each mean and cost; rows from top to bottom, published hatched."""
    # matplotlib takes its time, and the screen needs no picture
    from util.draw.charts import figure_bytes, label, new_figure

    several = [column for column in table.columns if column.fold is None] or table.columns
    names = [row.name for row in table.rows]
    figure = new_figure(2.2 + 2.8 * len(several), 1.2 + 0.5 * len(names))
    panels = figure.subplots(1, len(several), squeeze=False, sharey=True)[0]
    styles = {"measured": (-0.2, "#0072b2", ""), "published": (0.2, "#bbbbbb", "//")}
    styles[ELSEWHERE] = styles["published"]
    for axes, column in zip(panels, several, strict=True):
        name, shown = "", set()
        for row, what, numbers in lines:
            name = row or name
            if what in styles and column in numbers:
                shift, colour, hatch = styles[what]
                kind = what.partition(",")[0]
                bar = axes.barh(names.index(name) + shift, numbers[column], 0.38, color=colour,
                                hatch=hatch, label=None if kind in shown else kind)  # fmt: skip
                axes.bar_label(bar, fmt="%.1f", fontsize=7)
                shown.add(kind)
        axes.set_xlabel(label(column.title, 60))
        axes.spines[["top", "right"]].set_visible(False)
        if shown:
            axes.legend(frameon=False, fontsize=7)
    panels[0].set_yticks(range(len(names)), [label(name, 60) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    small = "" if data is None else f" (measured on {Path(data).name})"
    title = label(f"{table.paper}, {table.place}: {table.title}{small}", 120)
    figure.suptitle(title, fontsize=9)
    return figure_bytes(figure)


def notes_of(table: Table, cells: Sequence[Cell], whole: Table, data: str | None) -> list[str]:
    """What a reader must know to read the numbers."""
    notes = [table.note] if table.note else []
    if table.columns:
        notes.append("Mean IoU and FB-IoU in per cent.")
    if table.folds != whole.folds:
        notes.append(f"Means over fold {', '.join(map(str, table.folds))} alone, the paper's over "
                     f"{', '.join(map(str, whole.folds))}.")  # fmt: skip
    if data is not None:
        notes.append(
            f"Measured on {Path(data).name} with its own small networks: the published figures are "
            "about other pictures, and only the order of the rows may compare."
        )
        there = {cell.row.name for cell in cells}
        if gone := [row.name for row in table.rows if row.config and row.name not in there]:
            notes.append(f"No configuration on these data: {', '.join(gone)}.")
    refused = dict.fromkeys(why for cell in cells if (why := _result(cell)[1]))
    notes += [f"Not taken: {why}." for why in refused]
    machines = {m for cell in cells if (m := _machine(cell))}
    if machines and set(COSTS) & set(table.measures):
        notes.append(f"Costs measured on {'; '.join(sorted(machines))}.")
    shared: dict[tuple[Path, Path], list[str]] = {}
    for cell in cells:
        names = shared.setdefault((cell.folder, cell.result), [])
        names += [] if cell.row.name in names else [cell.row.name]
    for names in dict.fromkeys(tuple(names) for names in shared.values() if len(names) > 1):
        notes.append(f"One and the same run here: {', '.join(map(repr, names))}.")
    return notes


def _machine(cell: Cell) -> str:
    return str((costs_of(cell) or {}).get("machine", ""))


def draw(name: str, options: argparse.Namespace) -> None:
    """Print a table and write it as Markdown, CSV and, unless it is a figure, PNG."""
    whole = table_of(name)
    table = selected(whole, argparse.Namespace(**{**vars(options), "rows": None}))
    cells = cells_of(table, options.data, free_options(options.opts))
    lines = lines_of(table, measured(table, cells), whole, options.data)
    text = markdown(table, lines, notes_of(table, cells, whole, options.data))
    print(f"\n{text}")
    files = {".md": text.encode("utf-8", "backslashreplace")}
    if table.columns:
        files[".csv"] = comma_separated(table, lines).encode("utf-8", "backslashreplace")
    if not table.figure:
        files[".png"] = chart(table, lines, options.data)
    for suffix, content in files.items():
        path = place(table, cells, options, suffix)
        write_atomically(path, content)
        print(f"written: {one_line(path)}")
    if table.figure and (picture := place(table, cells, options)).is_file():
        print(f"figure: {one_line(picture)}")


def add_table(commands: Any) -> None:
    """Add the command ``table`` to a parser's subparsers."""
    parser = commands.add_parser("table", help="a table of a paper, measured beside published")
    parser.add_argument("name", help="see python -m util.reproduce")
    add_selection(parser)
