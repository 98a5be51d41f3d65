"""Where a training run stands, and the checkpoint that lets it go on from there exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from util.config import Config
from util.data.loader import StepPlan
from util.runtime.errors import FewShotError
from util.runtime.record import versions
from util.train.checkpoints import FORMAT, CheckpointStore, read_state
from util.weights import identity
from util.weights.checkpoint import load_weights
from util.weights.identity import Use


@dataclass
class Progress:
    """epoch: the running one, from 0; iteration: steps done; best: highest validation mIoU so
    far, reached in ``best_epoch``; seen: names of classes that earlier stages were trained on."""

    epoch: int = 0
    iteration: int = 0
    best: float = -1.0
    best_epoch: int = -1
    seen: tuple[str, ...] = ()

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
    cfg: Config,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The state dict of a checkpoint: tensors and plain values only.

    ``facts``: fingerprints of what is trained on (``data``) and began with (``start``).
    ``rng`` is the seed: every random number of training is a function of it and of the position
    (:mod:`util.runtime.rng`), so there is no further random state.
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
        **facts,
        **identity.record(cfg, progress.seen),
        "versions": versions(),
    }


def starting_point(
    resume: str | None,
    store: CheckpointStore,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: StepPlan,
    cfg: Config,
    seen: tuple[str, ...] = (),
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Progress:
    """The beginning, or where the checkpoint ``resume`` stands: a file, or 'auto' for the newest
    of ``store`` (the beginning when it has none). ``seen``: of the weights begun with."""
    beginning = Progress(seen=seen)
    if not resume:
        return beginning
    state = store.latest() if resume == "auto" else read_state(resume)
    return restore(state, model, optimizer, scaler, plan, cfg, facts) if state else beginning


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: StepPlan,
    cfg: Config,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Progress:
    """Put everything back as :func:`snapshot` found it.

    ``state`` is what :func:`read_state` gives. Raises FewShotError when it belongs to
    another model, other data or another effective batch, whose steps this run's do not continue.
    """
    file = state["file"]
    base_learner = getattr(model, "base_learner", None) is not None
    origin = identity.origin_of(state, file)
    if origin is None:
        raise FewShotError(f"{file} is damaged: its configuration is none")
    identity.check(origin, cfg, Use.RESUMING, file, base_learner)
    if state["effective_batch"] != plan.effective_batch:
        raise FewShotError(
            f"{file} was trained with {state['effective_batch']} items a step, this run has "
            f"{plan.effective_batch} (batch_size x accumulate x processes); make them equal"
        )
    if None not in (kept := state.get("data"), now := facts.get("data")) and kept != now:
        raise FewShotError(
            f"{file} was trained on other pictures than those of "
            f"{cfg.train_list or cfg.data_root}: start without --resume"
        )
    if not 0 <= state["iteration"] - state["epoch"] * plan.steps <= plan.steps:
        raise FewShotError(
            f"{file} stands at iteration {state['iteration']} of epoch {state['epoch'] + 1}, but "
            f"{plan.steps} steps are an epoch here: it was trained on other lists"
        )
    try:
        load_weights(model, state["model"], complete=True, label=file)
        # weight_decay, momentum, ... are this run's; lr stands where the schedule has brought it.
        stays = ("params", "lr")
        asked = [{k: v for k, v in g.items() if k not in stays} for g in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(optimizer.param_groups, asked, strict=True):
            group.update(own)
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FewShotError(f"{file} does not fit this model ({reason})") from error
    at = {field.name: state[field.name] for field in fields(Progress) if field.name != "seen"}
    return Progress(**at, seen=tuple(sorted(origin.seen)))
