"""Whether a picture shows the class at all: what was found, compared with the supports' objects.

A few-shot model is trained on pictures that show the class, and paints something on all others
too. The frozen encoder can tell: the object found and those of the supports are described by the
means of its last features over them, once on the whole picture and once with all but the object
hidden, and compared in a space where what differs between objects of one class counts little
(whitened by the within-class covariance). A logistic regression over the two cosines and how sure
the few-shot prediction and the prior are gives a probability.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fewshot import Output
from model.layers import Encoder, full_precision, hide, nearest, size_of

EVIDENCE = ("alone", "in place", "probability", "share", "prior f5", "prior f4")
SURE = 0.5
LEAST = 0.02  # of the picture is looked at, however little was found


class Presence(nn.Module):
    """Two descriptions of ``channels`` numbers -> a probability that the class is there.

    Buffers: ``centre`` [2, C] and ``whitening`` [2, C, C] of descriptions; ``mean``, ``deviation``
    and ``weight`` [6] of :data:`EVIDENCE`, ``bias``; ``threshold``: below it the class counts as
    not found. All are fitted (:mod:`util.presence`), none is trained.
    """

    centre: Tensor
    whitening: Tensor
    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2, channels))
        self.register_buffer("whitening", torch.eye(channels).repeat(2, 1, 1))
        self.register_buffer("mean", torch.zeros(len(EVIDENCE)))
        self.register_buffer("deviation", torch.ones(len(EVIDENCE)))
        self.register_buffer("weight", torch.zeros(len(EVIDENCE)))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def evidence(self, look: Look, supports: Tensor) -> Tensor:
        """:data:`EVIDENCE` [6] of what was found, for supports described by [K, 2, C]."""
        known = F.normalize(self._place(supports).mean(0), dim=-1)
        return torch.cat([(self._place(look.found) * known).sum(-1), look.confidence])

    def forward(self, look: Look, supports: Tensor) -> Tensor:
        """A probability, see :meth:`evidence`."""
        return self.probability(self.evidence(look, supports))

    def probability(self, evidence: Tensor) -> Tensor:
        """Evidence [..., 6] -> [...]."""
        standard = (evidence - self.mean) / self.deviation
        return (standard @ self.weight + self.bias).sigmoid()

    def _place(self, descriptions: Tensor) -> Tensor:
        """[..., 2, C] -> the same in the space of comparison, of length 1."""
        centred = (descriptions - self.centre)[..., None, :]
        return F.normalize((centred @ self.whitening)[..., 0, :], dim=-1)


class Look(NamedTuple):
    """found [2, C]: descriptions of what was found; confidence [4]: the rest of the evidence."""

    found: Tensor
    confidence: Tensor


def look_at(encoder: Encoder, image: Tensor, whole: Tensor, out: Output) -> Look:
    """image [1, 3, H, W], normalised; whole [1, C, h, w], its f4; out: what the model says of it,
    of which the prediction without the base learner counts."""
    logits = full_precision(out.final if out.meta is None else out.meta)
    probability = logits[0].softmax(0)[1]
    region = found_region(probability)
    share = (probability > SURE).float().mean().clamp(min=LEAST / 20).log()
    highest = share.new_zeros(2) if out.prior is None else full_precision(out.prior[0]).amax((1, 2))
    confidence = torch.cat([torch.stack([probability[region].mean(), share]), highest])
    return Look(describe(encoder, image, region[None], whole), confidence)


def describe(encoder: Encoder, image: Tensor, region: Tensor, whole: Tensor) -> Tensor:
    """Means of f4 over a region with all else hidden, and of the whole picture's: [2, C].

    image [1, 3, H, W], normalised; region [1, H, W], boolean; whole [1, C, h, w], f4 of the image.
    """
    alone = encoder(hide(image, region))[2]
    inside = nearest(region, size_of(whole))[0]
    if not inside.any():  # thinner than the grid: the cell that has most of it
        share = F.adaptive_avg_pool2d(region[:, None].float(), size_of(whole))[0, 0]
        inside = share == share.max()
    return torch.cat([alone, whole])[:, :, inside].float().mean(-1)


def found_region(probability: Tensor) -> Tensor:
    """Where the object was found, [h, w] -> boolean: above 0.5, or the surest 2 %."""
    bound = torch.quantile(probability.flatten()[::7].float(), 1 - LEAST).clamp(max=SURE)
    return probability >= bound
