"""Training: one loop for every stage, its objective, optimiser, checkpoints and log."""

from util.train.optim import build_optimizer, learning_rate, update_lr

__all__ = ["build_optimizer", "learning_rate", "update_lr"]
