"""What is complete: a training, a result, costs, a picture.

Each says so itself: a checkpoint that its training ended with, a result of these settings and of
that training. What lies in a folder and is of other settings is never taken for it, and a training
never written over: FewShotError then says what differs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.registry import reads, requirements
from util.config import Config, config_from_dict
from util.config.schema import KEYS
from util.data.sources import exists, find_pairs, names_digest
from util.evaluate.result import settings
from util.report.tables import whole_result
from util.reproduce.cells import FREE, Cell
from util.reproduce.tables import COSTS
from util.runtime.errors import FewShotError
from util.runtime.files import BEST, LAST
from util.weights.training import started_from, told, training_of, weights_in

# Keys that a training does not depend on; its batch is compared apart.
OF_EVALUATION = {
    "runs", "seeds", "weight", "resized_val", "ori_resize", "object_above", "merge", "merge_tau",
}  # fmt: skip
APART = {*FREE, *OF_EVALUATION, "name", "batch_size", "accumulate"}
FILES = {"base_weight", "pretrained"}


def trained(cfg: Config, last: Path) -> bool:
    """Whether the training of ``cfg`` has ended with ``last``.

    Raises FewShotError when a training of other settings has left its checkpoints there.
    """
    training = training_of(last)  # where it cannot be read, --resume auto says what is wrong
    return training is not None and _has_ended(training, cfg, last)


def result_of(cell: Cell) -> dict[str, Any] | None:
    """The result of exactly the cell's training, settings, episodes and seeds; None where it is not
    there. Raises FewShotError where the training behind it is another.

    Where the checkpoints are gone, the result itself says what training it is of.
    """
    cfg, best = cell.test.cfg, cell.folder / BEST
    try:
        content = whole_result(cell.result)
    except FewShotError:
        return None
    asked = {
        "dataset": cfg.data_set,
        "arch": cfg.arch,
        "backbone": cfg.backbone,
        "split": cfg.split,
        "shot": cfg.shot,
        "episodes": cfg.episodes,
        "settings": settings(cfg),
    }
    same = all(content.get(key) == value for key, value in asked.items())
    same &= [run.get("seed") for run in content["runs"]] == cfg.seeds[: cfg.runs]
    same &= Path(str(content.get("weight"))).name == BEST and "swapped_supports" not in content
    if not same or _is_of_other_pictures(content.get("data"), cfg, "test"):
        return None
    if best.is_file() and content.get("weights") != weights_in(best):
        return None
    # The last checkpoint beside these weights may be of later.
    last = cell.folder / LAST
    training = (training_of(last) if best.is_file() else None) or told(content.get("training"))
    ended = training is not None and _has_ended(training, cell.train.cfg, last)
    return content if ended else None


def costs_of(cell: Cell) -> dict[str, Any] | None:
    """What ``benchmark.cost`` found for the cell's network; None where it is not there."""
    cfg = cell.train.cfg
    try:
        found = json.loads(cell.cost.read_text(encoding="utf-8"))
        numbers = [found[name] for name in COSTS if name != "gb" or found[name] is not None]
        same = found["compute"] == cfg.compute and found["settings"] == settings(cfg)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return found if same and all(map(_is_number, numbers)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def drawn(picture: Path, needs: Sequence[Path]) -> bool:
    """Whether a picture is there, and of what it is drawn from as that is today."""
    if not picture.is_file() or not picture.stat().st_size:
        return False
    return all(
        need.stat().st_mtime_ns <= picture.stat().st_mtime_ns for need in needs if need.is_file()
    )


# ---------------------------------------------------------------------------- comparing


def _has_ended(training: dict[str, Any], cfg: Config, last: Path) -> bool:
    """Whether the training that :func:`training_of` tells of ended; FewShotError where it is not
    that of ``cfg``."""
    try:
        other = config_from_dict(training["config"], str(last))
    except FewShotError:
        return False
    differ = [k for k in KEYS if k not in APART and reads(cfg.arch, k) and _differ(k, cfg, other)]
    were = [f"{key} {getattr(other, key)} (here {getattr(cfg, key)})" for key in differ]
    batch, asked = other.batch_size * other.accumulate, cfg.batch_size * cfg.accumulate
    if total_batch(cfg):
        batch = training["batch"]
    if batch != asked:
        were.append(f"a batch of {batch} (here {asked})")
    if _known_to_differ(training["start"], started_from(cfg)):
        were.append(f"another {cfg.base_weight} than lies there")
    if _is_of_other_pictures(training["data"], cfg, "train"):
        were.append(f"other pictures than those of {cfg.train_list or cfg.data_root}")
    if were:
        raise FewShotError(
            f"{last.parent} holds a training with {', '.join(were)}: move that folder away, and "
            "this one is made"
        )
    return bool(training["complete"])


def total_batch(cfg: Config) -> bool:
    """Whether the batch of a configuration file is that of all GPUs together (stage 1, HSNet), and
    not that of each, as the papers count it."""
    needs = requirements(cfg.arch)
    return needs.is_base or needs.joint_batch


def _differ(key: str, one: Config, other: Config) -> bool:
    """Files are the same where they lie in the same place below ``exp_root``."""
    values = [getattr(one, key), getattr(other, key)]
    if key in FILES and all(values):
        values = [_below(one.exp_root, values[0]), _below(other.exp_root, values[1])]
    return values[0] != values[1]


def _below(root: str, path: str) -> str:
    return os.path.abspath(path).removeprefix(f"{os.path.abspath(root)}{os.sep}")


@dataclass(frozen=True)
class _Listed:
    """What names the pictures, and a configuration that has it."""

    key: tuple[str, ...]
    cfg: Config = field(compare=False)
    mode: str = field(compare=False)


def _is_of_other_pictures(digest: str | None, cfg: Config, mode: str) -> bool:
    """Whether pictures are known to be others than those that ``cfg`` has here, if any are."""
    pictures = cfg.train_list if mode == "train" else cfg.val_list
    names = (pictures, cfg.data_set, cfg.data_root, cfg.class_names, cfg.split_lists)
    return _known_to_differ(digest, _digest_here(_Listed(tuple(map(str, names)), cfg, mode)))


def _known_to_differ(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and one != other


@lru_cache(maxsize=256)
def _digest_here(listed: _Listed) -> str | None:
    """None where there is no list, or where its pictures are elsewhere."""
    cfg = listed.cfg
    try:
        pairs = find_pairs(cfg, cfg.fold, listed.mode).pairs
    except FewShotError:
        return None
    return names_digest(pairs, cfg.data_root) if exists(pairs[0].image) else None
