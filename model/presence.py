"""Whether a picture shows the class at all: what was found, compared with the supports' objects.

A few-shot model is trained on pictures that show the class, and paints something on all others
too. The frozen part can tell: the object found and those of the supports are described by the means
of the encoder's last features over them, once on the whole picture and once with all but the object
hidden, and compared in a space where what differs between objects of one class counts little
(whitened by the within-class covariance): with each other, and by which of the classes that this
was fitted on they resemble. They are compared, too, by what the base learner takes them for: of a
class that it has not learned it knows what it resembles. A logistic regression over these gives a
probability. How sure the few-shot prediction is does not count: it is surer of the
classes that it was trained on, on which all this is fitted, than of those that it is asked about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fewshot import Output
from model.layers import full_precision, hide, nearest, size_of

if TYPE_CHECKING:
    from model.hdmnet import HDMNet

EVIDENCE = (
    *("alone", "in place"),
    *("resembling alone", "resembling in place"),
    *("taken alone", "taken in place"),
)
SURE = 0.5
LEAST = 0.02  # of the picture is looked at, however little was found


class Description(NamedTuple):
    """An object with all else hidden, and in its place: features [..., 2, C], the means of f4;
    names [..., 2, 1 + N], the mean probabilities of the base learner's classes."""

    features: Tensor
    names: Tensor


class Presence(nn.Module):
    """What was found and the supports' objects -> a probability that the class is there.

    Buffers: ``centre`` [2, C] and ``whitening`` [2, C, C] of features; ``classes`` [M, 2, C], where
    those that it was fitted on lie; ``usual``, ``spread`` and ``weight`` [6] of :data:`EVIDENCE`,
    ``bias``; ``threshold``: below it the class counts as not found. All are fitted
    (:mod:`util.presence`), none is trained.
    """

    centre: Tensor
    whitening: Tensor
    classes: Tensor
    usual: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, channels: int, classes: int = 1) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2, channels))
        self.register_buffer("whitening", torch.eye(channels).repeat(2, 1, 1))
        self.register_buffer("classes", torch.zeros(classes, 2, channels))
        self.register_buffer("usual", torch.zeros(len(EVIDENCE)))
        self.register_buffer("spread", torch.ones(len(EVIDENCE)))
        self.register_buffer("weight", torch.zeros(len(EVIDENCE)))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def evidence(self, found: Description, supports: Description) -> Tensor:
        """:data:`EVIDENCE` [6] of what was found, for the descriptions of K supports."""
        known = F.normalize(self.place(supports.features).mean(0), dim=-1)
        both = torch.stack([self.place(found.features), known])
        alike = both.prod(0).sum(-1)
        resembling = torch.einsum("mkc,bkc->bkm", self.classes, both)
        resembling = resembling - resembling.mean(-1, keepdim=True)  # correlated over the classes
        taken = (found.names * supports.names.mean(0)).sqrt().sum(-1)  # Bhattacharyya's coefficient
        return torch.cat([alike, F.cosine_similarity(resembling[0], resembling[1], dim=-1), taken])

    def forward(self, found: Description, supports: Description) -> Tensor:
        """A probability, see :meth:`evidence`."""
        with torch.autocast(self.centre.device.type, enabled=False):
            return self.probability(self.evidence(found, supports))

    def probability(self, evidence: Tensor) -> Tensor:
        """Evidence [..., 6] -> [...]."""
        standard = (evidence - self.usual) / self.spread
        return (standard @ self.weight + self.bias).sigmoid()

    def place(self, features: Tensor) -> Tensor:
        """[..., 2, C] -> the same in the space of comparison, of length 1."""
        centred = (features - self.centre)[..., None, :]
        return F.normalize((centred @ self.whitening)[..., 0, :], dim=-1)


def look_at(
    model: HDMNet, image: Tensor, whole: Tensor, out: Output, content: tuple[int, int]
) -> Description:
    """What was found: image [1, 3, H, W], normalised; whole [1, C, h, w], its f4; out: what the
    model says of it, of which the prediction without the base learner counts; content: height and
    width of the picture in it, from its top left corner: the rest is padding."""
    height, width = content
    logits = full_precision(out.final if out.meta is None else out.meta)[0, :, :height, :width]
    region = torch.zeros_like(image[:, 0], dtype=torch.bool)
    region[0, :height, :width] = found_region(logits.softmax(0)[1])
    return describe(model, image, region, whole)


def describe(model: HDMNet, image: Tensor, region: Tensor, whole: Tensor) -> Description:
    """An object: image [1, 3, H, W], normalised; region [1, H, W], boolean; whole [1, C, h, w], f4
    of the image."""
    alone = model.encoder(hide(image, region))[2]
    inside = nearest(region, size_of(whole))[0]
    if not inside.any():  # thinner than the grid: the cell that has most of it
        share = F.adaptive_avg_pool2d(region[:, None].float(), size_of(whole))[0, 0]
        inside = share == share.max()
    both = torch.cat([alone, whole])
    over = (both, names(model, both))
    return Description(*(full_precision(each)[:, :, inside].mean(-1) for each in over))


def names(model: HDMNet, f4: Tensor) -> Tensor:
    """What the base learner takes each place for: f4 [B, C, h, w] -> probabilities
    [B, 1 + N, h, w], background first; without a base learner [B, 1, h, w], ones."""
    if model.base_learner is None:
        return torch.ones_like(f4[:, :1])
    return full_precision(model.base_learner(model.head(F.relu(f4)))).softmax(dim=1)


def unlearned(description: Description, number: int) -> Description:
    """The same as a base learner that had never learned its class ``number`` would name it."""
    if description.names.shape[-1] == 1:
        return description
    others = description.names.clone()
    others[..., 1 + number] = 0
    others = others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(others.dtype).tiny)
    return description._replace(names=others)


def together(descriptions: Iterable[Description]) -> Description:
    """Of K objects, the first axis of each field."""
    return Description(*map(torch.stack, zip(*descriptions, strict=True)))


def found_region(probability: Tensor) -> Tensor:
    """Where the object was found, [h, w] -> boolean: above 0.5, or the surest 2 %."""
    bound = torch.quantile(probability.flatten()[::7].float(), 1 - LEAST).clamp(max=SURE)
    return probability >= bound
