"""Prior mask: for each query position, its best cosine similarity with the support's object."""

from __future__ import annotations

import torch
from torch import Tensor

from model.layers import size_of

EPSILON = 1e-7


def prior_mask(query: Tensor, support: Tensor) -> Tensor:
    """Maximum over all support positions of the cosine similarity, mean over the K supports.

    query [B, C, h, w]; support [B, K, C, h', w'], zeroed outside the object. Returns [B, h, w] in
    [-1, 1].
    """
    q, s = query.flatten(2), support.flatten(3)
    product = torch.einsum("bcn,bkcm->bknm", q, s)
    norms = q.norm(dim=1)[:, None, :, None] * s.norm(dim=2)[:, :, None, :]
    best = (product / (norms + EPSILON)).amax(dim=3)
    return best.mean(dim=1).unflatten(1, size_of(query))
