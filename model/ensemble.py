"""Fusion of the few-shot prediction with the base learner's (as in BAM) and K-shot reweighting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import full_precision

EPSILON = 1e-7


def gram(feature: Tensor) -> Tensor:
    """Cosine similarity between channels: [B, C, h, w] -> [B, C, C], in float32 or better."""
    with torch.autocast(feature.device.type, enabled=False):
        flat = full_precision(feature).flatten(2)
        products = torch.matmul(flat, flat.mT)
        norm = flat.norm(dim=2, keepdim=True)
        return products / (norm * norm.mT + EPSILON)


def gram_distance(query: Tensor, support: Tensor) -> Tensor:
    """‖G_q − G_s‖_F / ‖1‖_F: query [B, C, C], support [B, K, C, C] -> [B, K]."""
    channels = query.shape[-1]
    return (query[:, None] - support).flatten(2).norm(dim=2) / channels


class ShotReweighting(nn.Module):
    """Weights of K supports from their sorted Gram distances: [B, K] -> [B, K], summing to 1.

    ``restore_order``: give each support the weight computed for its own value; the released code
    applies the weights, computed on the sorted values, by position.
    """

    def __init__(self, shots: int, hidden: int, restore_order: bool) -> None:
        super().__init__()
        self.shots = shots
        self.restore_order = restore_order
        self.reduce = nn.Conv2d(shots, hidden, 1)
        self.expand = nn.Conv2d(hidden, shots, 1)

    def forward(self, distances: Tensor) -> Tensor:
        """distances [B, K] -> weights [B, K]."""
        ordered, order = distances.sort(dim=1)
        scores = self.expand(self.reduce(ordered[:, :, None, None]).relu())[:, :, 0, 0]
        if self.restore_order:
            scores = scores.gather(1, order.argsort(dim=1))
        return full_precision(scores).softmax(dim=1)


class Ensemble(nn.Module):
    """Meta logits, adjustment factor and base map -> final logits, at encoder size.

    ``unlearned``: in training the base map is that of a base learner that never had the episode's
    class, see :func:`base_foreground`.
    """

    def __init__(
        self, shots: int, hidden: int, restore_order: bool, unlearned: bool = False
    ) -> None:
        super().__init__()
        self.unlearned = unlearned
        self.gram_merge = _two_to_one()
        self.base_merge = _two_to_one()
        self.reweight = ShotReweighting(shots, hidden, restore_order) if shots > 1 else None

    def optimised(self) -> list[Tensor]:
        """What training moves. The released optimiser leaves the K-shot reweighting network out; it
        learns with ``restore_order``, which mends the release's other mistake with it.
        """
        learned = [self.gram_merge.weight, self.base_merge.weight]
        if self.reweight is not None and self.reweight.restore_order:
            learned += self.reweight.parameters()
        return learned

    def factor(self, query_gram: Tensor, support_grams: Tensor) -> Tensor:
        """Adjustment factor [B]: weighted sum of the K Gram distances.

        The reweighting network exists for the trained number of shots; any other number of
        supports is weighted uniformly.
        """
        distances = gram_distance(query_gram, support_grams)
        if self.reweight is None or self.reweight.shots != distances.shape[1]:
            return distances.mean(dim=1)
        return (self.reweight(distances) * distances).sum(dim=1)

    def forward(
        self, meta: Tensor, base: Tensor, factor: Tensor, class_index: Tensor | None
    ) -> Tensor:
        """meta [B, 2, h, w] and base [B, 1+N, h, w] logits, factor [B] -> final [B, 2, h, w].

        class_index [B]: in training, the episode's own base class, left out of the base map.
        """
        with torch.autocast(meta.device.type, enabled=False):
            background, foreground = full_precision(meta).softmax(dim=1).split(1, dim=1)
            base_map = base_foreground(full_precision(base), class_index, self.unlearned)
            plane = factor.to(background.dtype)[:, None, None, None].expand_as(background)
            background = self.gram_merge(torch.cat([background, plane], dim=1))
            foreground = self.gram_merge(torch.cat([foreground, plane], dim=1))
            background = self.base_merge(torch.cat([background, base_map], dim=1))
            return torch.cat([background, foreground], dim=1)


def base_foreground(base: Tensor, class_index: Tensor | None, unlearned: bool = False) -> Tensor:
    """Sum of the base classes' probabilities [B, 1, h, w], without ``class_index`` (0-based).

    As published its probability is left out of the sum: on the object itself the map is near 0,
    and never wrong. ``unlearned``: its logit is left out of the softmax, so that the object's
    pixels go to the other classes and the background, as those of a novel class do.
    """
    if class_index is None:
        return base.softmax(dim=1)[:, 1:].sum(dim=1, keepdim=True)
    own = F.one_hot(class_index + 1, base.shape[1]).bool()[:, :, None, None]
    if unlearned:
        probabilities = base.masked_fill(own, -torch.inf).softmax(dim=1)
    else:
        probabilities = base.softmax(dim=1).masked_fill(own, 0)
    return probabilities[:, 1:].sum(dim=1, keepdim=True)


def _two_to_one() -> nn.Conv2d:
    conv = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    return conv
