"""From counts to fractions, tables and the content of ``result.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.fewshot import FewShotModel
from util.config import Config
from util.config.folds import split_count
from util.config.schema import KEYS, SECTIONS
from util.data.episodes import Episode
from util.data.transform import IGNORE
from util.evaluate.generalized import GENERALIZED
from util.evaluate.metrics import (
    BinaryCounts,
    ThresholdCounts,
    fb_iou,
    fraction,
    mean_of_defined,
    object_iou,
    spread,
)
from util.evaluate.tally import PRIOR_MAPS, Tally
from util.runtime.errors import one_line

METRICS: tuple[str, ...] = ("miou", "fb_iou", "miou_meta", "fb_iou_meta", "miou_base")
# What a figure depends on beside data set, fold, shot and model: these keys always, of the others
# those that were changed. Left out: what is stated anyway, and what gives the same result.
STATED = ("protocol", "trained_on", "val_size", "resized_val", "ori_resize")
CHANGED = ("use_split_coco", "min_pixels", "ann_type", *(key.name for key in SECTIONS["Method"]))
UNSTATED = ("arch", "backbone", "pretrained", "base_weight", "compute", "tf32", "compile")


@dataclass(frozen=True)
class Result:
    """What an evaluation found. IoU values are fractions in [0, 1]; None where undefined.

    runs: one dictionary a seed, as in test.py's JSON; mean, std, ci95: over the runs, ``ci95`` is
    the half width of the 95 % interval of the mean (Student's t), None with a single run.
    class_iou: head ('final', 'meta') -> class name -> IoU, mean over the runs that had it.
    scored: with ``details``, (IoU, episode) of the first run; leakage: class name -> true class
    name -> predicted pixels; parameters: how many the model learns; not_asked: classes that some
    run has no episode about; left_out: classes that cannot form an episode.
    """

    episodes: int
    runs: list[dict[str, Any]]
    mean: dict[str, float | None]
    std: dict[str, float | None]
    ci95: dict[str, float | None]
    class_iou: dict[str, dict[str, float | None]]
    timing: dict[str, Any]
    baselines: dict[str, Any] | None = None
    scored: list[tuple[float, Episode]] = field(default_factory=list)
    leakage: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: Tally | None = None
    parameters: int | None = None
    not_asked: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_json(
        self, cfg: Config, weight: str | Path | None, trained: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The content of ``test.py --output``; trained: what the weights were trained on, None
        where that cannot be known."""
        content = {
            "dataset": cfg.data_set,
            "arch": cfg.arch,
            "backbone": cfg.backbone,
            "split": cfg.split,
            "shot": cfg.shot,
            "weight": None if weight is None else str(weight),
            "trained": trained,
            "episodes": self.episodes,
            "runs": self.runs,
            "mean": self.mean,
            "std": self.std,
            "ci95": self.ci95,
            "timing": self.timing,
            "parameters": self.parameters,
            "folds": split_count(cfg),
            "not_asked": self.not_asked,
            "left_out": self.left_out,
            "settings": settings(cfg),
        }
        if cfg.fold.source != "table":  # a split that nobody else may have: the result says so
            content["classes_from"] = cfg.fold.source
        if self.baselines is not None:
            content["baselines"] = self.baselines
        if GENERALIZED[0] in self.mean:
            content["generalized"] = {"merge": cfg.merge, "merge_tau": cfg.merge_tau}
        return content

    def table(self) -> str:
        """One line a run, then mean ± half interval; per cent."""
        used = [name for name, value in self.mean.items() if value is not None]
        rows = [["run", "seed", *used]]
        for number, run in enumerate(self.runs, 1):
            rows.append([str(number), str(run["seed"]), *(percent(run[name]) for name in used)])
        rows.append(["mean", "", *(percent(self.mean[name]) for name in used)])
        if len(self.runs) > 1:
            rows.append(["std", "", *(percent(self.std[name]) for name in used)])
            rows.append(["± 95 %", "", *(percent(self.ci95[name]) for name in used)])
        return grid(rows)

    def class_table(self) -> str:
        """IoU of each class, mean over the runs that had episodes of it; per cent."""
        rows = [["class", *(f"IoU {head}" for head in self.class_iou)]]
        for name in self.class_iou["final"]:
            rows.append([name, *(percent(values[name]) for values in self.class_iou.values())])
        return grid(rows)

    def comparison(self) -> str:
        """The model beside the baselines on the same episodes; per cent."""
        rows = [["prediction", "mIoU", "FB-IoU"]]
        rows.append(["final", percent(self.mean["miou"]), percent(self.mean["fb_iou"])])
        if self.mean["miou_meta"] is not None:
            both = percent(self.mean["miou_meta"]), percent(self.mean["fb_iou_meta"])
            rows.append(["meta (no base learner)", *both])
        for name, found in (self.baselines or {}).items():
            if found is not None:
                rows.append(
                    [name.replace("_", " "), percent(found["miou"]), percent(found["fb_iou"])]
                )
        return grid(rows)


def settings(cfg: Config) -> dict[str, Any]:
    """The options without which results must not be compared, as ``result.json`` states them."""
    stated = {name: getattr(cfg, name) for name in STATED}
    for name in CHANGED:
        value, default = getattr(cfg, name), KEYS[name].default
        default = list(default) if isinstance(default, tuple) else default
        if name not in UNSTATED and value != default:
            stated[name] = value
    return stated


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, numbers to the right; each cell is one line."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def known(value: float) -> float | None:
    """None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else value


def make_result(
    seeds: tuple[int, ...],
    episodes: int,
    tally: Tally,
    timing: dict[str, Any],
    first: Sequence[Episode],
) -> Result:
    """Read the counts back (the walk's one synchronisation) and turn them into fractions."""
    names, counts = tally.names, tally.counts
    assert counts is not None  # there was an episode, in some process
    columns: dict[str, list[float]] = {
        "miou": counts.miou("final"),
        "fb_iou": counts.fb_iou("final"),
    }
    if "meta" in counts.heads:
        columns["miou_meta"] = counts.miou("meta")
        columns["fb_iou_meta"] = counts.fb_iou("meta")
    if tally.base is not None:
        columns["miou_base"] = tally.base.miou()
    metrics = METRICS
    if tally.general is not None:
        columns |= tally.general.means()
        metrics += GENERALIZED
    per_class = counts.class_iou("final").tolist()
    runs = []
    for number, seed in enumerate(seeds):
        run: dict[str, Any] = {"seed": seed}
        for name in metrics:
            run[name] = known(columns[name][number]) if name in columns else None
        run["class_iou"] = {
            names[class_id]: known(value)
            for class_id, value in zip(tally.classes, per_class[number], strict=True)
        }
        runs.append(run)
    summary = {}
    for name in metrics:
        values = [run[name] for run in runs if run[name] is not None]
        summary[name] = spread(values) if values else (None, None, None)
    mean_, std, ci95 = ({name: summary[name][i] for name in metrics} for i in range(3))
    scored = list(zip(fraction(*tally.scores.T).tolist(), first, strict=True))
    class_iou = {}
    for head in counts.heads:
        means = [known(mean_of_defined(column)) for column in counts.class_iou(head).T]
        ids = [names[class_id] for class_id in tally.classes]
        class_iou[head] = dict(zip(ids, means, strict=True))
    return Result(
        episodes=episodes,
        runs=runs,
        mean=mean_,
        std=std,
        ci95=ci95,
        class_iou=class_iou,
        timing=timing,
        baselines=_baselines(counts, tally.prior) if tally.baselines else None,
        scored=scored,
        leakage=_leakage(tally) if tally.details else {},
        counts=tally,
    )


def _baselines(counts: BinaryCounts, prior: ThresholdCounts | None) -> dict[str, Any]:
    everything = counts.everything_found()
    found: dict[str, Any] = {"all_foreground": _summary(everything), "prior": None}
    if prior is not None:
        which, threshold, best = prior.best()
        found["prior"] = {**_summary(best), "map": PRIOR_MAPS[which], "threshold": threshold}
    return found


def _summary(counts: Tensor) -> dict[str, Any]:
    """mIoU and FB-IoU, means over the runs, of counts [runs, classes, 4]."""
    miou = [mean_of_defined(row) for row in object_iou(counts)]
    return {"miou": known(sum(miou) / len(miou)), "fb_iou": known(float(np.mean(fb_iou(counts))))}


def _leakage(tally: Tally) -> dict[str, dict[str, int]]:
    names = tally.names
    labels = {0: "background", **({1: "object"} if tally.lut is None else names)}
    return {
        names[class_id]: {labels[i]: n for i, n in enumerate(row) if n and i != IGNORE}
        for class_id, row in zip(tally.classes, tally.leakage.tolist(), strict=True)
    }


def learnable_parameters(model: FewShotModel, cfg: Config) -> int:
    """How many numbers :func:`build_optimizer` lets training change."""
    params = (p for group in model.param_groups(cfg) for p in group["params"])
    return sum(p.numel() for p in params if p.requires_grad)
