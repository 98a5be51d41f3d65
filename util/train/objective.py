"""One objective for one step, however its batch is split over processes and micro-batches.

The mean of the parts' means is not the mean of the whole where parts have different numbers of
valid pixels, so a term that is a mean over pixels is weighted by its part's share of them, one over
samples by the part's share of these. N processes then follow the gradient of one process with the
joint batch. What each term is, it says itself (:class:`model.fewshot.Loss`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.fewshot import Loss
from util.runtime import distributed


def pixel_shares(masks: Sequence[Tensor]) -> list[float]:
    """Share of each local micro-batch in the valid pixels of the whole step, over all processes.

    masks: integer tensors, 255 = ignored. The shares of all processes sum to 1 (to 0 when every
    pixel is ignored).
    """
    counts = [int((mask != 255).sum()) for mask in masks]
    total = int(distributed.reduce_counts(torch.tensor(sum(counts))))
    return [count / max(total, 1) for count in counts]


def _joint(losses: Mapping[str, Loss], share: float, parts: int) -> dict[str, Tensor]:
    """This micro-batch's part in each term, unweighted, of the whole step.

    share: of the valid pixels; parts: micro-batches of each process, equal in samples.
    """
    shares = {"pixels": share, "samples": 1 / (parts * distributed.world_size())}
    return {name: loss.value * shares[loss.over] for name, loss in losses.items()}


def joint_objective(losses: Mapping[str, Loss], share: float, parts: int) -> Tensor:
    """What to differentiate for one of ``parts`` micro-batches of this process.

    DDP takes the mean of the gradients over the processes, hence the factor; summed over
    micro-batches that gives the gradient of the joint batch's objective.
    """
    joint = _joint(losses, share, parts)
    return distributed.world_size() * sum(losses[name].weight * joint[name] for name in joint)


def joint_values(losses: Mapping[str, Loss], share: float, parts: int) -> dict[str, float]:
    """This micro-batch's contribution to the terms of the whole step, unweighted, and to
    ``total``, their weighted sum (to be summed over all micro-batches of all processes).
    """
    values = _joint(losses, share, parts)
    values["total"] = sum(losses[name].weight * value for name, value in values.items())
    return dict(zip(values, torch.stack([*values.values()]).detach().tolist(), strict=True))
