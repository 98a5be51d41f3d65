"""The optimiser that a configuration names, and its learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from util.config import Config

_WARMUP_START = 0.1  # share of base_lr at iteration 0, as in BAM


def build_optimizer(model: nn.Module, cfg: Config) -> torch.optim.Optimizer:
    """AdamW (0.9, 0.999), SGD with momentum, or Adam over ``model.param_groups(cfg)``.

    Each group is a dict of ``params``, ``lr_scale`` (its learning rate is that multiple of
    ``base_lr``) and ``name``; ``lr_scale`` and ``name`` stay in the optimiser's groups. Frozen
    parameters are left out, and groups that hold nothing else. Raises ValueError when nothing can
    be learned.
    """
    groups = []
    for group in model.param_groups(cfg):
        params = [p for p in group["params"] if p.requires_grad]
        if params:
            groups.append({**group, "params": params, "lr": cfg.base_lr * group["lr_scale"]})
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter to learn")
    decay = cfg.weight_decay
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, cfg.base_lr, momentum=cfg.momentum, weight_decay=decay)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[cfg.optimizer](groups, cfg.base_lr, betas=(0.9, 0.999), weight_decay=decay)


def learning_rate(cfg: Config, iteration: int, max_iterations: int) -> float:
    """Learning rate of scale 1 at ``iteration``, 1..``max_iterations``.

    ``base_lr * (1 - iteration / max_iterations) ** power``: zero at the last iteration, as
    published, and constant with ``power`` 0. With ``warmup`` the first ``warmup_step`` iterations
    rise linearly from a tenth of ``base_lr`` instead.
    """
    if not 1 <= iteration <= max_iterations:
        raise ValueError(f"iteration {iteration} is not in 1..{max_iterations}")
    if cfg.warmup and iteration < cfg.warmup_step:
        risen = _WARMUP_START + (1 - _WARMUP_START) * iteration / cfg.warmup_step
        return cfg.base_lr * risen
    return cfg.base_lr * (1 - iteration / max_iterations) ** cfg.power


def update_lr(
    optimizer: torch.optim.Optimizer, cfg: Config, iteration: int, max_iterations: int
) -> float:
    """Set every group's learning rate for ``iteration`` (from 1) and return that of scale 1."""
    rate = learning_rate(cfg, iteration, max_iterations)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
