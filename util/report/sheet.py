"""A sheet of episodes, several checkpoints side by side: what distillation does to a correlation.

python -m util.report sheet A.pth B.pth --names without with --random 4 --output sheet.png
python -m util.report sheet A.pth B.pth --episodes 3,17 --output sheet.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from util.config import Config
from util.config.load import add_config_arguments
from util.data.episodes import Episode, EpisodeSampler
from util.data.index import FoldIndex, build_index
from util.data.transform import object_mask, read_pair
from util.draw.files import write_png
from util.draw.overlays import BLUE, GREEN, ORANGE, draw_outline, heat_overlay, overlay
from util.draw.panels import grid, iou
from util.predict.predictor import FewShotPredictor
from util.report.papers import numbers
from util.runtime.errors import FewShotError
from util.runtime.files import refuse_input, user_path
from util.weights.load import load_model, model_of

Tile = tuple[np.ndarray, str]


def add_sheet(commands: Any) -> None:
    """Add the command ``sheet`` to a parser's subparsers."""
    parser = commands.add_parser("sheet", help="episodes, several checkpoints side by side")
    add = parser.add_argument
    add("weights", nargs="+", type=user_path, metavar="FILE.pth", help="checkpoints")
    add("--names", nargs="+", metavar="NAME", help="what to call them (their files)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--episodes", type=numbers, metavar="3,17", help="numbers of episodes")
    which.add_argument("--random", type=int, default=4, metavar="N", help="so many others (4)")
    add("--seed", type=int, default=0, help="of the random ones (0)")
    add("--output", type=user_path, required=True, metavar="FILE.png", help="the picture")
    add_config_arguments(parser, required=False)


def sheet(options: argparse.Namespace) -> None:
    """Draw the sheet: the episodes of the first run of an evaluation, by their numbers."""
    refuse_input(options.output, *options.weights)
    names = options.names or [str(path) for path in options.weights]
    if len(names) != len(options.weights):
        raise FewShotError(f"{len(options.weights)} checkpoints and {len(names)} names")
    models = []
    for path in options.weights:
        cfg, weight = model_of(options.config, path, options.opts)
        models.append(FewShotPredictor(load_model(cfg, weight, print), cfg))
    cfg = models[0].cfg
    for predictor, path in zip(models, options.weights, strict=True):
        if predictor.cfg.fold.novel != cfg.fold.novel or predictor.cfg.data_set != cfg.data_set:
            raise FewShotError(f"{path} is about other classes than {options.weights[0]}")
    index = build_index(cfg, "test")
    sampler = EpisodeSampler(index, cfg.fold.classes("test"), cfg.shot, cfg.seeds[0])
    chosen = options.episodes or _random(options.random, options.seed, cfg)
    if wrong := [number for number in chosen if not 0 <= number < cfg.episodes]:
        raise FewShotError(f"--episodes must be from 0 to {cfg.episodes - 1}, not {wrong[0]}")
    rows = []
    for number in chosen:
        rows += _rows(models, names, index, sampler.episode(0, number), number)
    title = f"{cfg.arch} {cfg.backbone}, {cfg.data_set} split {cfg.split}, {cfg.shot} shot"
    print(f"figure: {write_png(options.output, grid(rows, title, 200))}")


def _random(count: int, seed: int, cfg: Config) -> list[int]:
    if not 0 < count <= cfg.episodes:
        raise FewShotError(f"--random must be from 1 to {cfg.episodes}, not {count}")
    return sorted(np.random.default_rng(seed).choice(cfg.episodes, count, replace=False).tolist())


def _rows(
    models: Sequence[FewShotPredictor],
    names: Sequence[str],
    index: FoldIndex,
    episode: Episode,
    number: int,
) -> list[list[Tile]]:
    """Of one episode a row a checkpoint: support, query and truth, prediction, correlations."""
    label, name = index.label(episode.class_id), index.names[episode.class_id]
    query, *supports = (
        read_pair(*index.pairs[position], index.binary)
        for position in (episode.query, *episode.supports)
    )
    truth = object_mask(query[1], label)
    shown = overlay(supports[0][0], object_mask(supports[0][1], label), ORANGE)
    rows = []
    for predictor, called in zip(models, names, strict=True):
        predictor.reset()
        for image, mask in supports:
            predictor.add_support(image, mask, name, label=label)
        result = predictor.predict(query[0])
        found = draw_outline(overlay(query[0], result.mask, BLUE), truth, GREEN)
        row: list[Tile] = [
            (shown, f"{number} · {name} · 1 of {len(supports)} support(s)"),
            (overlay(query[0], truth, GREEN), "query, ground truth"),
            (found, f"{called} · IoU {iou(result.mask, truth):.3f}"),
        ]
        for stage, values in enumerate(result.correlations[name], 1):
            size = "×".join(map(str, values.shape))
            row.append((heat_overlay(query[0], values), f"stage {stage} ({size}) · {called}"))
        rows.append(row)
    return rows
