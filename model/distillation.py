"""KL distillation between the correlation maps of adjacent stages (Eq. 8-9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import full_precision, plain, size_of


def distillation_loss(
    correlations: list[Tensor], query_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Mean over the stages of KL(teacher ‖ student) over positions, averaged over the batch.

    correlations: maps [B, h_l, w_l], finest first, 1/t included. query_mask [B, H, W] with 1 =
    object. Teacher of the coarsest stage: the ground truth; of the others: the detached map of the
    next coarser stage, resized (align_corners=False).
    """
    with torch.autocast(query_mask.device.type, enabled=False):
        maps = [full_precision(correlation) for correlation in correlations]
        teacher = ground_truth_teacher(query_mask, size_of(maps[-1]), maps[-1].dtype)
        total = maps[-1].new_zeros(())
        for level in reversed(range(len(maps))):
            student = maps[level]
            if level < len(maps) - 1:
                coarse = plain(maps[level + 1].detach()[:, None], size_of(student))
                teacher = (coarse.flatten(1) / temperature).log_softmax(dim=1)
            log_student = (student.flatten(1) / temperature).log_softmax(dim=1)
            total = total + F.kl_div(log_student, teacher, reduction="batchmean", log_target=True)
        return total / len(maps)


def ground_truth_teacher(mask: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Log of the uniform distribution [B, h·w] where the resized object mask is largest.

    Other positions get the smallest log-probability whose exponential is 0. Ignored pixels (255)
    count as not object. An empty mask gives the uniform distribution over all positions.
    """
    resized = plain((mask == 1)[:, None].to(dtype), size).flatten(1)
    largest = resized == resized.amax(dim=1, keepdim=True)
    uniform = -largest.sum(dim=1, keepdim=True).to(dtype).log()
    return torch.where(largest, uniform, torch.finfo(dtype).min / 4)
