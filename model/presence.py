"""Whether a picture shows the class at all: what was found, compared with the supports' objects.

A few-shot model is trained on pictures that show the class, and paints something on all others
too. The frozen part can tell. The encoder's last features at every place of a support's object are
looked for again: in the region that was found, and anywhere in the picture; they are compared in a
space where what differs between places of one class counts little (whitened by the within-class
covariance). And the base learner says what it takes both objects for: of a class that it has not
learned it knows what it resembles. A logistic regression over these three gives a probability. How
sure the few-shot prediction is does not count: it is surer of the classes that it was trained on,
on which all this is fitted, than of those that it is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fewshot import Output
from model.layers import full_precision, nearest, size_of

if TYPE_CHECKING:
    from model.hdmnet import PreparedQuery, QueryEncoding

    Picture = QueryEncoding | PreparedQuery  # batch 1, nothing hidden; of it f4 and base are read

EVIDENCE = ("found again", "anywhere", "taken for the same")
SURE = 0.5
LEAST = 0.02  # of the picture is looked at, however little was found
SUREST = 0.99  # of the largest probability: places as sure as this are object where any is


class Description(NamedTuple):
    """An object: places [n, C], f4 where it is; names [1 + N], the mean there of the base learner's
    probabilities, background first."""

    places: Tensor
    names: Tensor


class Look(NamedTuple):
    """What was found in a picture; everywhere [m, C], f4 at all its places."""

    found: Description
    everywhere: Tensor


class Presence(nn.Module):
    """What was found and the supports' objects -> a probability that the class is there.

    Buffers: ``centre`` [C] and ``whitening`` [C, C] of features; ``usual``, ``spread`` and
    ``weight`` [3] of :data:`EVIDENCE`, ``bias``; ``threshold``: below it the class counts as not
    found. All are fitted (:mod:`util.presence`), none is trained.
    """

    centre: Tensor
    whitening: Tensor
    usual: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))
        self.register_buffer("usual", torch.zeros(len(EVIDENCE)))
        self.register_buffer("spread", torch.ones(len(EVIDENCE)))
        self.register_buffer("weight", torch.zeros(len(EVIDENCE)))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def evidence(self, look: Look, supports: Sequence[Description]) -> Tensor:
        """:data:`EVIDENCE` [3], each the mean over the supports: how like the most alike place is,
        a cosine, meaned over the places of the support's object, among those found and among all;
        Bhattacharyya's coefficient of the names."""
        found, everywhere = self.place(look.found.places), self.place(look.everywhere)
        rows = []
        for support in supports:
            known = self.place(support.places)
            again, anywhere = ((known @ among.T).amax(1).mean() for among in (found, everywhere))
            taken = (look.found.names * support.names).sqrt().sum()
            rows.append(torch.stack([again, anywhere, taken]))
        return torch.stack(rows).mean(0)

    def forward(self, look: Look, supports: Sequence[Description]) -> Tensor:
        """A probability, see :meth:`evidence`."""
        with torch.autocast(self.centre.device.type, enabled=False):
            return self.probability(self.evidence(look, supports))

    def probability(self, evidence: Tensor) -> Tensor:
        """Evidence [..., 3] -> [...]."""
        standard = (evidence - self.usual) / self.spread
        return (standard @ self.weight + self.bias).sigmoid()

    def place(self, features: Tensor) -> Tensor:
        """[..., C] -> the same in the space of comparison, of length 1."""
        return F.normalize((features - self.centre) @ self.whitening, dim=-1)


def look_at(picture: Picture, out: Output, content: tuple[int, int]) -> Look:
    """What was found: out: what the model says of the picture, of which the prediction without the
    base learner counts; content: height and width of the picture in what the model saw, from its
    top left corner: the rest is padding."""
    height, width = content
    logits = full_precision(out.final if out.meta is None else out.meta)[0]
    region, whole = torch.zeros(2, 1, *size_of(logits), dtype=torch.bool, device=logits.device)
    region[0, :height, :width] = found_region(logits[:, :height, :width].softmax(0)[1])
    whole[0, :height, :width] = True
    return Look(describe(picture, region), _at(full_precision(picture.f4), whole))


def describe(picture: Picture, region: Tensor) -> Description:
    """An object of a picture: region [1, H, W], boolean."""
    return Description(_at(full_precision(picture.f4), region), _at(names(picture), region).mean(0))


def _at(features: Tensor, region: Tensor) -> Tensor:
    """features [1, C, h, w] in a region [1, H, W] -> [n, C]."""
    inside = nearest(region, size_of(features))[0]
    if not inside.any():  # thinner than the grid: the cell that has most of it
        share = F.adaptive_avg_pool2d(region[:, None].float(), size_of(features))[0, 0]
        inside = share == share.max()
    return features[0][:, inside].T


def names(picture: Picture) -> Tensor:
    """What the base learner takes each place for, probabilities [1, 1 + N, h, w], background first;
    without a base learner [1, 1, h, w], ones."""
    if picture.base is None:
        return torch.ones_like(full_precision(picture.f4[:, :1]))
    return full_precision(picture.base).softmax(dim=1)


def unlearned(description: Description, number: int) -> Description:
    """The same as a base learner that had never learned its class ``number`` would name it."""
    if description.names.shape[-1] == 1:
        return description
    others = description.names.clone()
    others[..., 1 + number] = 0
    others = others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(others.dtype).tiny)
    return description._replace(names=others)


def found_region(probability: Tensor) -> Tensor:
    """Where the object was found, [h, w] -> boolean: above 0.5, or the surest 2 %."""
    bound = torch.quantile(probability.flatten()[::7].float(), 1 - LEAST).clamp(max=SURE)
    return probability >= bound


def given_presence(odds: Tensor, presence: float, found: bool) -> Tensor:
    """Log-odds of places to be object if the class is there -> log-odds that they are: the
    probability times ``presence``, that of the class being there at all; where it counts as found,
    no less than leaves its surest places object, if they were."""
    likely = torch.tensor(presence, dtype=odds.dtype, device=odds.device)
    if found:
        likely = likely.maximum(SURE / (SUREST * odds.amax().sigmoid())).clamp(max=1)
    return likely.log() - torch.logaddexp((-likely).log1p(), -odds)
