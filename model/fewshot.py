"""What every few-shot model of this project offers, whatever its method.

A forward pass is five steps, so that evaluation and prediction can keep and reuse the results of
the first four:

    encode_query, encode_support      the frozen encoder: depends on the picture (and mask) alone
    prepare_query, prepare_support    learned, but still independent of the episode's other pictures
    match                             everything that mixes query and supports

The intermediate results are named tuples of tensors (nested tuples allowed), batch first. Tensors
that list support positions may differ in length between pictures; they are padded with zeros when
they are joined, and a ``valid`` tensor beside them says which positions count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import align, align_rows, fix_batch_norms, full_precision, size_of
from model.registry import Requirements

if TYPE_CHECKING:
    from util.config import Config

BAND = 64


class Output(NamedTuple):
    """Result of an episode batch.

    final: logits [B, 2, H, W] (background, object); meta: the same without the base learner, or
    None; base: logits of the base learner [B, 1+N, h, w], or None; prior: [B, 2, h, w] in [-1, 1],
    or None; correlations: mean correlation maps [B, h_l, w_l], finest stage first.
    """

    final: Tensor
    meta: Tensor | None
    base: Tensor | None
    prior: Tensor | None
    correlations: list[Tensor]


class Loss(NamedTuple):
    """A term of what training minimises, the sum of weight times value over all terms.

    value: scalar; weight; over: what ``value`` is a mean over, 'pixels' (those of the query's mask,
    of a picture's in stage 1, that are not 255) or 'samples'. N processes, or a batch in parts,
    follow the gradient of one process with the joint batch by weighting the terms accordingly.
    """

    value: Tensor
    weight: float = 1.0
    over: Literal["pixels", "samples"] = "pixels"


def total(losses: Mapping[str, Loss]) -> Tensor:
    """The objective of a batch that is whole."""
    return reduce(torch.add, (loss.weight * loss.value for loss in losses.values()))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a nested (named) tuple; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    items = [map_tensors(item, function) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def join(encodings: list[Any]) -> Any:
    """Concatenate encodings along the batch dimension, padding ragged axes with zeros."""
    first = encodings[0]
    if first is None:
        return None
    if not isinstance(first, Tensor):
        items = [join(list(column)) for column in zip(*encodings, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
    if len(encodings) == 1:
        return first
    size = [max(extent) for extent in zip(*(t.shape[1:] for t in encodings), strict=True)]
    return torch.cat([_pad(t, size) for t in encodings])


def _pad(tensor: Tensor, size: list[int]) -> Tensor:
    if list(tensor.shape[1:]) == size:
        return tensor
    amounts = [(0, want - have) for have, want in zip(tensor.shape[1:], size, strict=True)]
    return F.pad(tensor, [amount for pair in reversed(amounts) for amount in pair])


def split_shots(encoding: Any, shots: int) -> Any:
    """[B*K, ...] -> [B, K, ...] for every tensor."""
    return map_tensors(encoding, lambda tensor: tensor.unflatten(0, (-1, shots)))


def join_shots(episodes: list[list[Any]]) -> Any:
    """Support encodings of B episodes with K supports each -> one encoding with [B, K, ...]."""
    flat = join([support for supports in episodes for support in supports])
    return split_shots(flat, len(episodes[0]))


class FewShotModel(nn.Module):
    """Base class: the forward pass in five steps, frozen modules, losses.

    ``frozen``: names of the submodules that are never trained (and always in evaluation mode).
    ``host_masks``: whether ``encode_support`` wants its mask in host memory wherever the model is,
    so as to look at it without waiting.
    ``requirements``: what a configuration must know of the method (:mod:`model.registry`).
    A method that is trained with another number of supports than it is evaluated with says so in
    an attribute ``train_shot`` (HSNet: 1).
    ``object_above``: the probability above which a place counts as object outside training
    (:meth:`shifted`).
    """

    frozen: tuple[str, ...] = ()
    host_masks: bool = False
    requirements: Requirements = Requirements()
    fix_bn: bool = False
    object_above: float = 0.5

    @classmethod
    def from_config(cls, cfg: Config) -> FewShotModel:
        """The model that ``cfg`` describes, with fresh weights; reads no file.

        Raises ValueError for options that do not go together.
        """
        raise TypeError(f"{cls.__name__} must define from_config")

    def encode_query(self, image: Tensor) -> Any:
        """Frozen part of a query picture: image [B, 3, H, W], normalised."""
        raise TypeError(f"{type(self).__name__} must define encode_query")

    def encode_support(self, image: Tensor, mask: Tensor) -> Any:
        """Frozen part of a support: image [B, 3, H, W], mask [B, H, W] (1 object, 0, 255)."""
        raise TypeError(f"{type(self).__name__} must define encode_support")

    def encode_episode(self, query_image: Tensor, images: Tensor, masks: Tensor) -> tuple[Any, Any]:
        """Both at once; models override it where one pass over all pictures is faster."""
        # Supports first: less of them is kept while the query is encoded.
        support = self.encode_support(images, masks)
        return self.encode_query(query_image), support

    def prepare_query(self, encoding: Any) -> Any:
        """Learned part of a query picture; of the encoding alone."""
        return encoding

    def prepare_support(self, encoding: Any) -> Any:
        """Learned part of a support; of the encoding alone."""
        return encoding

    def match(
        self,
        query: Any,
        supports: Any,
        size: tuple[int, int],
        class_index: Tensor | None = None,
    ) -> Output:
        """Prepared query (batch B) against prepared supports ([B, K, ...]); logits at ``size``."""
        raise TypeError(f"{type(self).__name__} must define match")

    def shifted(self, logits: Tensor) -> Tensor:
        """logits [B, 2, h, w] -> the same; outside training the object's less the log-odds of
        ``object_above``, so that it is the larger where its probability was above that. Models call
        it in :meth:`match`."""
        if self.training or self.object_above == 0.5:
            return logits
        background, foreground = logits.split(1, dim=1)
        shift = math.log(self.object_above / (1 - self.object_above))
        return torch.cat([background, foreground - shift], dim=1)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming a size that works, when the network cannot take this one."""

    def forward(
        self,
        query_image: Tensor,
        support_images: Tensor,
        support_masks: Tensor,
        class_index: Tensor | None = None,
    ) -> Output:
        """Segment a batch of episodes.

        query_image [B, 3, H, W] and support_images [B, K, 3, H, W], normalised; support_masks
        [B, K, H, W] with 1 = object, 0 = rest, 255 = ignore; class_index [B], the episode's class
        among the base classes (0-based), in training only. In evaluation mode ``Output.base`` has
        the input's size; in training its loss enlarges it, part by part.
        """
        size = size_of(query_image)
        self.check_size(*size)
        self.check_size(*size_of(support_images))
        query, support = self.encode_episode(
            query_image, support_images.flatten(0, 1), support_masks.flatten(0, 1)
        )
        query = self.prepare_query(query)
        support = split_shots(self.prepare_support(support), support_images.shape[1])
        out = self.match(query, support, size, class_index)
        if out.base is None or self.training:
            return out
        return out._replace(base=align(out.base, size))

    def losses(self, out: Output, query_mask: Tensor, base_mask: Tensor | None) -> dict[str, Loss]:
        """The terms by name: ``main`` and whatever else the method has.

        query_mask [B, H, W], integer, 1 = object, 0 = rest, 255 = ignore; base_mask [B, H, W] with
        0..N and 255, or None.
        """
        raise TypeError(f"{type(self).__name__} must define losses")

    def param_groups(self, cfg: Config) -> list[dict[str, Any]]:
        """Parameters to optimise, with ``lr_scale`` relative to ``base_lr`` and a ``name``."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [{"name": type(self).__name__, "params": params, "lr_scale": 1.0}]

    def freeze(self) -> None:
        """Take the frozen submodules out of training; called at the end of construction."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()

    def derive(self) -> None:
        """To be called when the weights are final: loaded, or trained for the time being.

        Parts that compute something from their weights alone (with a method ``derive``) may do so
        once from now on, as long as they are not being trained. Loading and moving weights renews
        it; weights that are changed otherwise ask for another call.
        """
        for part in self.modules():
            derive = getattr(part, "derive", None)
            if part is not self and derive is not None:
                derive()

    def learnable_state(self) -> dict[str, Tensor]:
        """The part of the state dict that training changes."""
        prefixes = tuple(f"{name}." for name in self.frozen)
        return {k: v for k, v in self.state_dict().items() if not k.startswith(prefixes)}

    def train(self, mode: bool = True) -> FewShotModel:
        """Training mode, except for frozen modules and, with ``fix_bn``, every batch norm."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        if self.fix_bn:
            fix_batch_norms(self)
        return self


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in float32, pixels with target 255 left out (0 when all are).

    logits [B, C, h, w], enlarged to the target's size where they are smaller; target [B, H, W],
    integer.
    """
    height, width = size_of(target)
    # Without gradients nothing has to be kept: bands of rows bound the memory of enlarged logits
    # and log-softmax, which for a base learner's many classes would exceed everything else.
    rows = height if logits.requires_grad else BAND
    with torch.autocast(logits.device.type, enabled=False):
        total: Tensor | float = 0.0
        for first in range(0, height, rows):
            end = min(first + rows, height)
            if size_of(logits) == (height, width):
                band = logits[:, :, first:end]
            else:
                band = align_rows(full_precision(logits), (height, width), first, end)
            total = total + F.cross_entropy(
                full_precision(band),
                target[:, first:end].long(),
                ignore_index=255,
                reduction="sum",
            )
        return total / (target != 255).sum().clamp(min=1)
