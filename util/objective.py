"""One loss for one step, however its batch is split over processes and micro-batches.

A cross-entropy is a mean over valid pixels. The mean of the parts' means is not the mean of the
whole where parts have different numbers of valid pixels, so each part is weighted by its share of
them. N processes then follow the gradient of one process with the joint batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from util import distributed

PIXEL_LOSSES = ("main", "meta", "base")  # means over valid pixels; the others are over samples


def pixel_shares(masks: Sequence[Tensor]) -> list[float]:
    """Share of each local micro-batch in the valid pixels of the whole step, over all processes.

    masks: integer tensors, 255 = ignored. The shares of all processes sum to 1 (to 0 when every
    pixel is ignored).
    """
    counts = [int((mask != 255).sum()) for mask in masks]
    total = int(distributed.reduce_counts(torch.tensor(sum(counts))))
    return [count / max(total, 1) for count in counts]


def joint_objective(losses: Mapping[str, Tensor], share: float, parts: int) -> Tensor:
    """What to differentiate for one of ``parts`` micro-batches of this process.

    losses: ``total`` and its terms. DDP takes the mean of the gradients over the processes, hence
    the factor; summed over micro-batches that gives the gradient of the joint batch's ``total``.
    """
    processes = distributed.world_size()
    correction = processes * share - 1 / parts
    terms = sum(losses[k] for k in PIXEL_LOSSES if k in losses and losses[k].requires_grad)
    return losses["total"] / parts + correction * terms


def joint_values(losses: Mapping[str, Tensor], share: float, parts: int) -> dict[str, float]:
    """This micro-batch's contribution to the losses of the whole step (sum over all of them)."""
    processes = distributed.world_size()
    terms = {
        name: value * (share if name in PIXEL_LOSSES else 1 / (parts * processes))
        for name, value in losses.items()
    }
    terms["total"] = joint_objective(losses, share, parts) / processes
    return dict(zip(terms, torch.stack([*terms.values()]).detach().tolist(), strict=True))
