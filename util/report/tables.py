"""All results below a folder as tables: folds, mean, FB-IoU, learnable parameters.

A row holds results of one model, backbone and setting only: protocol, size, what is scored,
episodes x runs, options, and the run's name are the column "setting", and models of another data
set (``trained_on``) have tables of their own. A mean is shown when every fold is there. "HDMNet,
meta" is HDMNet without its base learner, the fair number beside HSNet. Rows marked "(paper)" are
means from the methods' own papers, each under its own paper's protocol; none was measured here.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean as mean_of
from typing import Any, NamedTuple

from util.evaluate.generalized import GENERALIZED
from util.reproduce.cells import Setting, configuration
from util.reproduce.tables import load_tables
from util.runtime.errors import FewShotError, one_line

FOLDS = 4  # of a result that does not say
KINDS = {"": "", "_meta": ", meta"}  # suffix of the metrics -> suffix of the model's name


class Title(NamedTuple):
    """What a table is about; ``data_set`` names the training set too where that is another."""

    data_set: str
    shot: int

    def __str__(self) -> str:
        return f"{self.data_set}, {self.shot} shot"


@dataclass
class Row:
    """One model in one setting. scores: fold -> (mIoU, FB-IoU), generalized: fold -> mIoU over
    base, novel and all classes in one labelling; per cent."""

    arch: str
    kind: str
    backbone: str
    setting: str
    parameters: int | None = None
    folds: int = FOLDS
    scores: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    generalized: dict[int, tuple[float, ...]] = field(default_factory=dict)
    published: float | None = None

    @property
    def model(self) -> str:
        return self.arch + self.kind

    @property
    def complete(self) -> bool:
        return len(self.scores) == self.folds

    @property
    def present(self) -> str:
        """'2 of 4 folds'; nothing for a published row."""
        return f"{len(self.scores)} of {self.folds} folds" if self.scores else ""

    @property
    def miou(self) -> float | None:
        """The published mean, or that of all folds; None while one is missing."""
        values = [miou for miou, _ in self.scores.values()]
        return sum(values) / len(values) if self.complete else self.published

    @property
    def fb_iou(self) -> float | None:
        """Mean over the folds that are there; None where one of them does not say."""
        values = [fb_iou for _, fb_iou in self.scores.values() if fb_iou is not None]
        known = values and len(values) == len(self.scores)
        return sum(values) / len(values) if known else None

    @property
    def gfss(self) -> tuple[float, ...]:
        """Means over the folds that are there; () where one of them does not say."""
        known = len(self.generalized) == len(self.scores) > 0
        return tuple(map(mean_of, zip(*self.generalized.values(), strict=True))) if known else ()


Tables = dict[Title, list[Row]]


# ---------------------------------------------------------------------------- reading


def read_result(path: Path) -> dict[str, Any]:
    """Content of a result file of test.py."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FewShotError(f"{path} cannot be read as a result of test.py: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("mean"), dict):
        raise FewShotError(f"{path} is no result of test.py")
    return content


def whole_result(path: Path) -> dict[str, Any]:
    """Content of a result file; FewShotError where an entry is not what test.py writes there."""
    content = read_result(path)

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise FewShotError(f"{path} is no result of test.py: {what}")

    for key in ("dataset", "arch", "backbone"):
        need(isinstance(content.get(key), str), f"'{key}' must be text")
    for key, least in (("split", 0), ("shot", 1), ("episodes", 1)):
        need(_count(content.get(key), least), f"'{key}' must be a whole number from {least}")
    runs, mean, split = content.get("runs"), content["mean"], content["split"]
    need(isinstance(runs, list), "'runs' must be a list")
    need(all(isinstance(run, dict) for run in runs), "each of 'runs' must hold names and values")
    folds, parameters = content.get("folds", FOLDS), content.get("parameters")
    need(_count(folds, split + 1), f"'folds' must be a whole number above 'split' ({split})")
    need(parameters is None or _count(parameters), "'parameters' must be a whole number")
    need(isinstance(content.get("settings", {}), dict), "'settings' must hold names and values")
    need(_share(mean.get("miou")), "'miou' of its 'mean' must be a number from 0 to 1")
    shares = all(value is None or _share(value) for value in mean.values())
    need(shares, "each of its 'mean' must be a number from 0 to 1, or null")
    return content


def result_files(exp: Path) -> list[Path]:
    """The JSON files below ``exp`` that may be results, in the order of their names."""
    if not exp.is_dir():
        raise FewShotError(f"{exp} is no folder; --exp names the one that test.py wrote to")
    found = sorted(path for path in exp.rglob("*.json") if path.is_file())
    others = ("run.json", "cost.json")
    return [path for path in found if path.name not in others and path.stem[-4:] != "_run"]


def gather(exp: Path) -> tuple[Tables, list[str]]:
    """The tables, without published rows, and a sentence for each file that was left out."""
    rows: dict[Title, dict[tuple[Any, ...], Row]] = {}
    problems = []
    for path in result_files(exp):
        try:
            content = whole_result(path)
            if not content.get("swapped_supports"):
                _add(rows, content, path, exp)
        except FewShotError as error:
            problems.append(str(error))
    return {title: list(rows[title].values()) for title in sorted(rows)}, problems


def _add(
    rows: dict[Title, dict[tuple[Any, ...], Row]], content: dict[str, Any], path: Path, exp: Path
) -> None:
    """Put one result into the rows of its table; FewShotError for a second one of a fold."""
    split, settings, mean = content["split"], content.get("settings", {}), content["mean"]
    folds, parameters = content.get("folds", FOLDS), content.get("parameters")
    trained_on = settings.get("trained_on")
    data_set = f"{content['dataset']} from {trained_on}" if trained_on else content["dataset"]
    table = rows.setdefault(Title(data_set, content["shot"]), {})
    note = ", ".join(filter(None, (_variant(content, path.relative_to(exp)), _setting(content))))
    for suffix, kind in KINDS.items():
        miou, fb_iou = mean.get(f"miou{suffix}"), mean.get(f"fb_iou{suffix}")
        if not _share(miou):
            continue
        key = (content["arch"], kind, content["backbone"], note, parameters, folds)
        row = table.setdefault(key, Row(*key))
        if split in row.scores:
            raise FewShotError(f"{path} is a second result of {row.model}, {note}, fold {split}")
        row.scores[split] = (100 * miou, 100 * fb_iou if _share(fb_iou) else None)
        if not suffix and all(_share(mean.get(name)) for name in GENERALIZED):
            row.generalized[split] = tuple(100 * mean[name] for name in GENERALIZED)


def _count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _share(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1  # NaN is not


def _setting(content: Mapping[str, Any]) -> str:
    """What a figure depends on beside model, data and fold, in words."""
    settings = dict(content.get("settings", {}))
    words = []
    if settings:
        words.append(f"protocol {settings.pop('protocol', 'unknown')}")
        words.append(f"{settings.pop('val_size', '?')}²")
        if not settings.pop("resized_val", True):
            words.append("padded")
        original = settings.pop("ori_resize", None)
        words.append({True: "original size", False: "input size"}.get(original, "size unknown"))
        trained_on = settings.pop("trained_on", None)
        words += [f"{key} {value}" for key, value in settings.items()]
    else:
        words, trained_on = ["setting not stated"], None
    if content.get("classes_from") and not trained_on:
        words.append(f"classes from {content['classes_from']}")
    return ", ".join([*words, f"{content['episodes']:,} × {len(content['runs'])} episodes"])


def _variant(content: Mapping[str, Any], place: Path) -> str:
    """What a result's place adds to what it says: the run's ``name``, or another file name.

    The fold's own number is left out, so that ``full_split0.json`` and ``full_split1.json`` meet.
    """
    settings = content.get("settings", {})
    trained_on = f"_from_{settings.get('trained_on')}"
    said = {content["dataset"], content["dataset"] + trained_on, content["arch"], "result"}
    said |= {f"split{content['split']}", content["backbone"], f"{content['shot']}shot"}
    parts = [part for part in place.with_suffix("").parts if part not in said]
    own_number = rf"(split|fold)([_-]?){content['split']}(?!\d)"
    return re.sub(own_number, r"\1\2*", "/".join(parts))


def published() -> dict[str, dict[tuple[str, str], dict[int, float]]]:
    """Data set -> (model, backbone) -> shot -> mean mIoU over the folds in the papers' tables, per
    cent: of rows without options. A paper's main tables win over its supplement's."""
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for row in (row for table in load_tables().values() for row in table.rows):
        if row.config and row.published and not (row.options or row.evaluate):
            cfg = Setting(*configuration(row.config, 0, None)).cfg
            models = found.setdefault(cfg.data_set, {})
            shots = models.setdefault((cfg.arch, cfg.backbone), {})
            means = {c.shot: n for c, n in row.published.items() if c.measure == "mean"}
            shots.update({shot: number for shot, number in means.items() if shot})
    return found


def with_published(tables: Tables) -> Tables:
    """The tables with the paper's rows; each model's rows stand together, the paper's first."""
    full, papers = {}, published()
    for title, rows in tables.items():
        folds = max(row.folds for row in rows)
        rows_of_papers = [
            Row(
                arch,
                " (paper)",
                backbone,
                "as published",
                folds=folds,
                published=values[title.shot],
            )
            for (arch, backbone), values in papers.get(title.data_set, {}).items()
            if title.shot in values
        ]
        full[title] = sorted(rows_of_papers + rows, key=lambda row: (row.backbone, row.arch))
    return full


# ---------------------------------------------------------------------------- writing


def markdown(tables: Tables) -> str:
    """A headline and a table for each data set and shot."""
    parts = ["Mean IoU over the novel classes of each fold and FB-IoU, per cent."]
    for title, rows in tables.items():
        folds = range(max(row.folds for row in rows))
        head = ["model", "backbone", *(f"fold {i}" for i in folds), "mean", "FB-IoU"]
        gfss = any(row.gfss for row in rows)
        head += ["GFSS base / novel / all"] if gfss else []
        lines = [[*head, "parameters", "setting"]]
        for row in rows:
            note = "" if row.complete or row.published else row.present
            scores = [_number(row.scores.get(i, (None,))[0]) for i in folds]
            fb_iou = _number(row.fb_iou) + (f" ({note})" if note and row.fb_iou else "")
            size = "-" if row.parameters is None else f"{row.parameters:,}"
            line = [row.model, row.backbone, *scores, note or _number(row.miou), fb_iou]
            line += [" / ".join(map(_number, row.gfss)) or "-"] if gfss else []
            lines.append([*line, size, row.setting])
        parts += [f"## {_cell(str(title))}", markdown_table(lines, left=(0, 1, len(head) + 1))]
    return "\n\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def markdown_table(lines: Sequence[Sequence[str]], left: Iterable[int]) -> str:
    """Lines of cells, the first the heads, as a Markdown table; columns ``left`` begin left."""
    cells = [[_cell(text) for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = set(left)
    rule = [
        "-" * max(3, width) if i in left else "-" * max(2, width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    text = [
        [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (text[0], rule, *text[1:]))


def comma_separated(tables: Tables) -> str:
    """Every row of every table; empty where nothing is known, the mean where a fold is missing."""
    folds = range(max(row.folds for rows in tables.values() for row in rows))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["data_set", "shot", "model", "backbone", *(f"fold{i}" for i in folds), "mean"]
    gfss = GENERALIZED if any(row.gfss for rows in tables.values() for row in rows) else ()
    writer.writerow([*head, "fb_iou", *gfss, "folds_present", "folds", "parameters", "setting"])
    for title, rows in tables.items():
        for row in rows:
            numbers = [*(row.scores.get(i, (None,))[0] for i in folds), row.miou, row.fb_iou]
            numbers += row.gfss or (None,) * len(gfss)
            shown = ["" if value is None else f"{value:.4f}" for value in numbers]
            present = "" if row.published else len(row.scores)
            about = [present, row.folds, row.parameters, row.setting]
            writer.writerow([*title, row.model, row.backbone, *shown, *about])
    return text.getvalue()


def chart(tables: Tables) -> bytes:
    """PNG: a panel a table, a group of bars a fold and one for the mean, a colour a row."""
    # matplotlib takes its time, and the screen needs no picture
    from util.draw.charts import figure_bytes, label, new_figure

    figure = new_figure(11, 3.6 * len(tables))
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        folds = max(row.folds for row in rows)
        width = 0.8 / len(rows)
        for place, row in enumerate(rows):
            bars = {**{i: miou for i, (miou, _) in row.scores.items()}, folds: row.miou}
            known = {i: value for i, value in bars.items() if value is not None}
            left = [i + (place - (len(rows) - 1) / 2) * width for i in known]
            words = textwrap.wrap(one_line(f"{row.model}, {row.backbone}: {row.setting}"), 60)
            drawn = axes.bar(left, list(known.values()), width,
                             label="\n".join(label(line, 60) for line in words),
                             hatch="//" if row.published else None)  # fmt: skip
            if len(rows) <= 6:
                axes.bar_label(drawn, fmt="%.1f", fontsize=6)
        axes.set_xticks(range(folds + 1), [*(f"fold {i}" for i in range(folds)), "mean"])
        axes.set_xlim(-0.5, folds + 0.5)
        axes.set_title(label(title, 80))
        axes.set_ylabel("mIoU, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure_bytes(figure)
