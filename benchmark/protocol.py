"""The R-run protocol on a generated pool of PASCAL's size, naive and engine; the loader."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import torch

from model import build_model
from util.config import Config, load_config
from util.data.dataset import EpisodeDataset
from util.data.episodes import EpisodeSampler
from util.data.index import build_index
from util.evaluate import Evaluator

PICTURES = 346
CLASSES = 5
SIZE = 97
CONFIG = """
DATA:
  data_set: pool
  data_root: {root}/data
  train_list: {root}/list.txt
  val_list: {root}/list.txt
  class_names: [{names}]
  folds: [[1, 2, 3, 4, 5]]
  min_pixels: 100
"""


def make_pool(root: Path, side: tuple[int, int] = (120, 160), seed: int = 0) -> Path:
    """Random pictures with one square object each, list and configuration; returns the latter."""
    data = root / "data"
    data.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(PICTURES):
        height, width = side if number % 2 else side[::-1]
        coarse = rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height))
        mask = np.zeros((height, width), np.uint8)
        object_side = int(rng.integers(min(side) // 5, min(side) // 2))
        top = int(rng.integers(0, height - object_side))
        left = int(rng.integers(0, width - object_side))
        mask[top : top + object_side, left : left + object_side] = number % CLASSES + 1
        picture[mask > 0] //= 2
        cv2.imwrite(str(data / f"{number}.jpg"), picture)
        cv2.imwrite(str(data / f"{number}.png"), mask)
        lines.append(f"{number}.jpg {number}.png\n")
    (root / "list.txt").write_text("".join(lines))
    names = ", ".join(f"class{number}" for number in range(1, 21))
    config = root / "pool.yaml"
    config.write_text(CONFIG.format(root=root.resolve(), names=names))
    return config


def protocol(
    folder: Path, device: torch.device, episodes: int = 200, runs: int = 10
) -> dict[str, float | int | bool]:
    """Wall time, encoder passes and equality of the naive loop and the engine, 1 shot.

    The textbook model through both loops must give the same integer counts; the engine's default
    (fast) form is what is timed against the naive textbook loop.
    """
    config = make_pool(folder)
    results, seconds = {}, {}
    for name, engine, compute in (
        ("naive", "naive", "textbook"),
        ("engine, textbook", "walk", "textbook"),
        ("engine", "walk", "fast"),
    ):
        cfg = load_config(config, ["val_size", SIZE, "compute", compute])
        torch.manual_seed(0)
        model = build_model(cfg).to(device).eval()
        evaluator = Evaluator(cfg, build_index(cfg, "test"), device)
        start = time.perf_counter()
        results[name] = evaluator.run(model, cfg.seeds[:runs], episodes, engine=engine)
        seconds[name] = time.perf_counter() - start
    naive, walk, fast = (results[name] for name in ("naive", "engine, textbook", "engine"))
    supports = {
        (position, episode.class_id)
        for run_tasks in _tasks(cfg, runs, episodes)
        for episode in run_tasks
        for position in episode.supports
    }
    return {
        "episodes": episodes,
        "runs": runs,
        "naive_s": seconds["naive"],
        "engine_textbook_s": seconds["engine, textbook"],
        "engine_s": seconds["engine"],
        "ratio": seconds["naive"] / seconds["engine"],
        "naive_passes": naive.timing["encoder_passes"],
        "engine_passes": fast.timing["encoder_passes"],
        "distinct": len(supports) + min(episodes, PICTURES),
        "same_counts": bool(torch.equal(naive.counts.counts.counts, walk.counts.counts.counts)),
        "miou_difference": abs(naive.mean["miou"] - fast.mean["miou"]),
    }


def _tasks(cfg: Config, runs: int, episodes: int):
    index = build_index(cfg, "test")
    for seed in cfg.seeds[:runs]:
        sampler = EpisodeSampler(index, sorted(index.per_class), cfg.shot, seed)
        yield [sampler.episode(0, e) for e in range(episodes)]


def loader(folder: Path, step_ms: dict[int, float] | None = None) -> list[dict]:
    """Training pictures per second that one worker decodes and augments, 500 × 375 JPEGs.

    step_ms: a training step's milliseconds for one episode (two pictures) by size; the headroom is
    how many times faster one worker delivers than the step consumes.
    """
    config = make_pool(folder / "photos", (375, 500))
    rows = []
    for size in (473, 633):
        cfg = load_config(
            config, ["train_h", size, "train_w", size, "split", 0, "folds", [[1], [2, 3, 4, 5]]]
        )
        dataset = EpisodeDataset(cfg, build_index(cfg, "train"))
        dataset[0]
        start = time.perf_counter()
        count = 60
        for number in range(count):
            dataset[number]
        per_second = 2 * count / (time.perf_counter() - start)
        row = {"size": size, "pictures_per_second_per_worker": per_second}
        if step_ms and size in step_ms:
            row["headroom"] = per_second * step_ms[size] / 2e3
        rows.append(row)
    return rows
