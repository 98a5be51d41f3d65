"""Steps of the models as ONNX can hold them, for pictures of any size and any number of supports.

The methods' own forms average over windows that depend on the picture's size, or decide by the
number of supports while Python runs. Each function here computes what the method of its name does.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ensemble import Ensemble, gram_distance
from model.fewshot import FewShotModel, Output, map_tensors
from model.hsnet import HSNet, decided
from model.layers import align, size_of
from model.matching import MatchingBlock, Tokens, correlation
from model.pspnet import BINS, PyramidHead


def exportable(model: FewShotModel) -> FewShotModel:
    """A copy of a textbook model that computes the same, ready for ``torch.export``."""
    model = copy.deepcopy(model)
    for part in model.modules():
        for name in METHODS:
            method = getattr(type(part), name, None)
            if form := FORMS.get(_origin(method)):
                setattr(part, name, partial(form, part))
    return model


def _origin(method: Any) -> str:
    """Where a method is defined: a subclass that overrides it has one of its own."""
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', '')}"


def grids(head: PyramidHead, f4: Tensor) -> list[Tensor]:
    """:meth:`PyramidHead.grids`: ONNX averages over windows of a fixed size alone."""
    pools = zip(BINS, head.pools, strict=True)
    return [F.relu(pool(average(f4, bins))) for bins, pool in pools]


def average(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling as two products: [B, C, h, w] -> [B, C, bins, bins]."""
    rows, columns = (_shares(bins, length, x) for length in size_of(x))
    return torch.matmul(torch.matmul(rows, x), columns.mT)


def _shares(bins: int, length: int, like: Tensor) -> Tensor:
    """[bins, length]: what each position gives to window i, floor(i·length / bins) up to
    ceil((i + 1)·length / bins)."""
    place = torch.arange(length, device=like.device)
    number = torch.arange(bins, device=like.device)[:, None]
    first = number * length // bins
    end = ((number + 1) * length + bins - 1) // bins
    inside = ((place >= first) & (place < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def factor(ensemble: Ensemble, query_gram: Tensor, support_grams: Tensor) -> Tensor:
    """:meth:`Ensemble.factor`: whether the reweighting network applies is seen when it runs."""
    distances = gram_distance(query_gram, support_grams)
    alike = distances.mean(dim=1)
    if ensemble.reweight is None:
        return alike
    shots = ensemble.reweight.shots
    count = torch.ones_like(distances[0], dtype=torch.int64).sum()
    # As many values as the network takes, whatever there are: used where their number is right.
    chosen = torch.minimum(torch.arange(shots, device=distances.device), count - 1)
    values = distances.index_select(1, chosen)
    weighted = (ensemble.reweight(values) * values).sum(dim=1)
    return torch.where(count == shots, weighted, alike)


def join(block: MatchingBlock, tokens: Tokens, trained: int) -> Tokens:
    """:meth:`MatchingBlock.join`: how many supports there are is seen when it runs."""
    joined = Tokens(*(tensor.flatten(1, 2) for tensor in tokens))
    if block.matcher is not correlation:
        return joined
    count = torch.ones_like(tokens.values[0, :, 0, 0]).sum()
    return joined._replace(values=joined.values * (trained / count))


def match(
    model: HSNet,
    query: Any,
    supports: Any,
    size: tuple[int, int],
    class_index: Tensor | None = None,
) -> Output:
    """:meth:`HSNet.match`: the supports are one batch, and what they say is counted in the end."""
    weight = supports[0].mask  # [B, K, h, w]
    batch, shots = weight.shape[:2]

    def repeated(tap: Tensor) -> Tensor:
        return tap[:, None].expand(batch, shots, *tap.shape[1:]).flatten(0, 1)

    def apart(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (batch, shots))

    logits, maps = model._one_shot(
        map_tensors(query, repeated), map_tensors(supports, lambda t: t.flatten(0, 1))
    )
    each = apart(align(model.shifted(logits), size))
    alone = torch.ones_like(weight[0, :, 0, 0]).sum() == 1
    final = torch.where(alone, each[:, 0], decided(each.argmax(dim=2).sum(dim=1)))
    correlations = []
    for total, count in maps:
        positions = apart(count).sum(dim=1).clamp(min=1)
        correlations.append(apart(total).sum(dim=1) / positions[:, None, None])
    return Output(final, None, None, None, correlations)


def same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """timm's convolution with TensorFlow's padding, whose width follows the picture's size."""
    pads: list[int] = []
    for side in (1, 0):
        reach = (conv.kernel_size[side] - 1) * conv.dilation[side] + 1
        stride, length = conv.stride[side], x.shape[2 + side]
        total = ((length + stride - 1) // stride - 1) * stride + reach - length
        total = torch.sym_max(total, 0) if reach < stride else total
        pads += [total // 2, total - total // 2]
    padded = F.pad(x, pads)
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """One axis after the other: onnxruntime adds all numbers of a group, millions in HSNet, one by
    one in float32, and is wrong in the fourth digit."""
    x = x.unflatten(1, (norm.num_groups, -1))
    x = x - _mean(x)
    x = (x / (_mean(x.square()) + norm.eps).sqrt()).flatten(1, 2)
    shape = (-1, *[1] * (x.ndim - 2))
    x = x if norm.weight is None else x * norm.weight.view(shape)
    return x if norm.bias is None else x + norm.bias.view(shape)


def group_norm_act(norm: Any, x: Tensor) -> Tensor:
    """timm's group norm with an activation behind it."""
    return norm.act(norm.drop(group_norm(norm, x)))


def _mean(x: Tensor) -> Tensor:
    """Over all axes from the third on, which stay with length 1."""
    for axis in reversed(range(2, x.ndim)):
        x = x.mean(axis, keepdim=True)
    return x


# Method -> what replaces it, by name: timm need not be imported for models without it.
FORMS: dict[str, Any] = {
    "model.pspnet.PyramidHead.grids": grids,
    "model.ensemble.Ensemble.factor": factor,
    "model.matching.MatchingBlock.join": join,
    "model.hsnet.HSNet.match": match,
    "torch.nn.modules.normalization.GroupNorm.forward": group_norm,
    "timm.layers.norm.GroupNorm.forward": group_norm,
    "timm.layers.norm.GroupNorm1.forward": group_norm,
    "timm.layers.norm_act.GroupNormAct.forward": group_norm_act,
    "timm.layers.norm_act.GroupNorm1Act.forward": group_norm_act,
    "timm.layers.conv2d_same.Conv2dSame.forward": same,
}
METHODS = {origin.rpartition(".")[2] for origin in FORMS}
