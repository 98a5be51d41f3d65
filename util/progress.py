"""Where a training run stands, and the checkpoint that lets it go on from there exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from util.errors import FewShotError
from util.loader import StepPlan
from util.logger import versions
from util.store import FORMAT, CheckpointStore, read_state

# Settings that a resumed run may not change: its weights or its data would be other ones.
FIXED = ("arch", "backbone", "data_set", "split", "shot", "optimizer", "manual_seed", "stages")


@dataclass
class Progress:
    """epoch: the running one, from 0; iteration: steps done; best: highest validation mIoU so
    far, reached in ``best_epoch``."""

    epoch: int = 0
    iteration: int = 0
    best: float = -1.0
    best_epoch: int = -1

    def improve(self, score: float) -> bool:
        """Note a validation score; True when it is the best so far."""
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        return better

    def stale(self) -> int:
        """Epochs since the best one, when ``epoch`` is the next to run."""
        return self.epoch - 1 - self.best_epoch


def snapshot(
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: StepPlan,
    cfg: Any,
) -> dict[str, Any]:
    """The state dict of a checkpoint: tensors and plain values only.

    ``rng`` is the seed: every random number of training is a function of it and of the position
    (:mod:`util.rng`), so there is no further random state.
    """
    return {
        "format": FORMAT,
        "arch": cfg.arch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": {"manual_seed": cfg.manual_seed},
        **asdict(progress),
        "stale": progress.stale(),
        "step": progress.iteration,
        "effective_batch": plan.effective_batch,
        "config": cfg.to_dict(),
        "versions": versions(),
    }


def starting_point(
    resume: str | None,
    store: CheckpointStore,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: StepPlan,
    cfg: Any,
) -> Progress:
    """The beginning, or where the checkpoint ``resume`` stands: a file, or 'auto' for the newest
    of ``store`` (the beginning when it has none)."""
    if not resume:
        return Progress()
    state = store.latest() if resume == "auto" else read_state(resume)
    return restore(state, model, optimizer, scaler, plan, cfg) if state else Progress()


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: StepPlan,
    cfg: Any,
) -> Progress:
    """Put everything back as :func:`snapshot` found it.

    ``state`` is what :func:`util.store.read_state` gives. Raises FewShotError when it belongs to
    another model, other data or another effective batch, whose steps this run's do not continue.
    """
    file = state["file"]
    sections = [s for s in state["config"].values() if isinstance(s, Mapping)]
    old = {key: value for section in sections for key, value in section.items()}
    for key in FIXED:
        if key in old and str(old[key]) != str(getattr(cfg, key)):
            raise FewShotError(
                f"{file} was trained with {key} {old[key]}, this run has {getattr(cfg, key)}; "
                f"resume with the same {key}, or start without --resume"
            )
    if state["effective_batch"] != plan.effective_batch:
        raise FewShotError(
            f"{file} was trained with {state['effective_batch']} items a step, this run has "
            f"{plan.effective_batch} (batch_size x accumulate x processes); make them equal"
        )
    if not 0 <= state["iteration"] - state["epoch"] * plan.steps <= plan.steps:
        raise FewShotError(
            f"{file} stands at iteration {state['iteration']} of epoch {state['epoch'] + 1}, but "
            f"{plan.steps} steps are an epoch here: it was trained on other lists"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FewShotError(f"{file} does not fit this model ({reason})") from error
    return Progress(**{field.name: state[field.name] for field in fields(Progress)})
