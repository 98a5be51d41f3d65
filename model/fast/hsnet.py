"""HSNet at the object's support positions; 4D convolutions as products that add up in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.conv4d import CenterPivotConv4d
from model.fast.conv4d import center_pivot, norm_relu, sparse_center_pivot
from model.fast.cpu.folded_conv import FoldedConv, fold
from model.fast.derived import Derives, compute_dtype, refine
from model.fast.hypercorrelation import (
    SparseHypercorrelation,
    Support,
    correlate,
    query_layer,
    support_layer,
    support_positions,
)
from model.fast.steps import FoldedBlock
from model.hsnet import HSNet, Learner
from model.hsnet_backbone import ResNetTaps
from model.hypercorrelation import resized_mask
from model.layers import align, size_of


class FoldedTaps(Derives, ResNetTaps):
    """The backbone with its batch norms folded, channels last."""

    def forward(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """As the paper's."""
        dtype = compute_dtype(image)
        folded = self.derived(dtype, partial(self._fold, dtype))
        x = image.contiguous(memory_format=torch.channels_last)
        if folded is None:
            yield from super().forward(x)
            return
        stem, (first, *stages) = folded
        for conv in stem:
            x = conv(x, rectify=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in first:
            x = block(x, rectify=True)
        for group, stage in enumerate(stages):
            for block in stage:
                tap = block(x, rectify=False)
                x = F.relu(tap)
                yield group, tap

    def _fold(self, dtype: torch.dtype) -> tuple[list[FoldedConv], list[list[FoldedBlock]]]:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        blocks = [[FoldedBlock(block, dtype) for block in stage] for stage in stages]
        return [fold(conv, dtype) for conv in self.stem], blocks


class PivotLearner(Learner):
    """With center-pivot kernels; hypercorrelations lie as in ``conv4d.py`` beside this file."""

    def forward(self, first_layers: dict[int, Tensor]) -> Tensor:
        """The output of each squeezing block's first convolution [B, h_s', w_s', C, h_q, w_q] ->
        logits [B, 2, 2 h, 2 w] at twice the finest query size.
        """
        coarsest, *finer = self.strides
        mixed = self._after_first(first_layers[coarsest], self.squeeze[str(coarsest)])
        for stride in finer:
            squeezed = self._after_first(first_layers[stride], self.squeeze[str(stride)])
            maps = align(mixed.flatten(0, 2), size_of(squeezed))
            mixed = maps.unflatten(0, squeezed.shape[:3]) + squeezed
            mix = self.mix[str(stride)]
            mixed = self._after_first(center_pivot(mixed, pivots(mix)[0]), mix)
        return self.decode(mixed.mean((1, 2)))

    @staticmethod
    def _after_first(x: Tensor, block: nn.Module) -> Tensor:
        """What ``block`` makes of the output of its first convolution."""
        *norms, last = (part for part in block.children() if isinstance(part, nn.GroupNorm))
        for norm, conv in zip(norms, pivots(block)[1:], strict=True):
            x = center_pivot(x, conv, norm)
        return norm_relu(x, last)


def pivots(block: nn.Module) -> list[CenterPivotConv4d]:
    """The center-pivot convolutions of ``block``, in their order."""
    return [part for part in block.children() if isinstance(part, CenterPivotConv4d)]


class FastHSNet(HSNet):
    """The same result with less work; kernels that are no center pivots are left as they are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.backbone_lr:  # what is folded, or left out where the mask is 0, gives no gradient
            return
        refine(self, {ResNetTaps: FoldedTaps})
        if all(map(pivots, self.learner.squeeze.values())):
            refine(self, {Learner: PivotLearner})

    @property
    def _pivots(self) -> bool:
        return isinstance(self.learner, PivotLearner)

    def encode_query(self, image: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """As the paper's, but the layers are [B, h, w, C] and normalised."""
        layers = super().encode_query(image)
        return tuple(tuple(map(query_layer, level)) for level in layers) if self._pivots else layers

    def encode_support(self, image: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """As the paper's, at the positions that the mask leaves."""
        if not self._pivots:
            return super().encode_support(image, mask)
        return self._sparse_support(image, mask)

    @torch.no_grad()
    def _sparse_support(self, image: Tensor, mask: Tensor) -> tuple[Any, ...]:
        weight = self._object_weight(mask, image.dtype)
        levels: dict[int, list[Tensor]] = {stride: [] for stride in self.pyramid}
        places: dict[int, tuple[Tensor, Tensor]] = {}
        for stride, tap in self._taps(image):
            if stride not in places:
                resized = resized_mask(weight, size_of(tap))
                places[stride] = (resized, support_positions(resized))
            levels[stride].append(support_layer(tap, *places[stride]))
        return tuple(Support(*places[stride], tuple(levels[stride])) for stride in self.pyramid)

    def _one_shot(self, query: Any, supports: tuple[Any, ...]) -> tuple[Tensor, list]:
        if not self._pivots:
            return super()._one_shot(query, supports)
        inputs, maps = {}, []
        for stride, layers, support in zip(self.pyramid, query, supports, strict=True):
            correlations = correlate(layers, support)
            first = pivots(self.learner.squeeze[str(stride)])[0]
            inputs[stride] = first_convolution(correlations, first)
            if not self.training:
                maps.append((correlations.total(), (support.mask > 0).sum((1, 2))))
        return self.learner(inputs), maps


def first_convolution(correlations: SparseHypercorrelation, conv: CenterPivotConv4d) -> Tensor:
    """First convolution of a squeezing block -> [B, h_s', w_s', C, h_q, w_q].

    On a CPU only the support positions inside the mask take part. With all positions in the mask
    the plain form is faster, and on a GPU it always is: it has far fewer, larger products.
    """
    if correlations.maps[0].device.type == "cpu" and not correlations.is_full():
        return sparse_center_pivot(*correlations, conv)
    return center_pivot(correlations.dense(), conv)
