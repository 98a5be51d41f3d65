"""Matching in memory linear in the number of positions; Mix-FFN with less to keep in training."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.fast.cpu.folded_conv import Options, fold, fused
from model.fast.derived import Derives, compute_dtype
from model.matching import COSINE_T, TINY, Matcher, MatchingBlock, attention, correlation
from model.pyramid import MixFFN

# A tile of exp(C): so many support positions at least, so many elements (in float32, 4 MiB that
# stay in a CPU's caches, 16 MiB that fill a GPU).
COLUMNS = 64
CPU_ELEMENTS, GPU_ELEMENTS = 1 << 20, 1 << 22


def correlation_tiled(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 3-7 in memory linear in N: tiles of support positions, the mean without any matrix.

    Each support column is normalised over the query positions on its own, so a tile of columns is
    complete in itself; cosine / t lies in [-10, 10], so exp needs no maximum. The mean over j of
    q·k_j is q · mean(k_j).
    """
    inside = valid[:, None, :, None].to(key.dtype)
    query = F.normalize(query, dim=3) / COSINE_T
    key = F.normalize(key, dim=3) * inside
    value = value * inside
    keep = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    column = query.shape[0] * query.shape[1] * query.shape[2]
    elements = CPU_ELEMENTS if query.device.type == "cpu" else GPU_ELEMENTS
    step = max(COLUMNS, elements // column)
    out: Tensor | None = None
    for start in range(0, key.shape[2], step):
        tile = key[:, :, start : start + step], value[:, :, start : start + step]
        if keep:
            # The tile is computed again in the backward pass; nothing in it is random.
            part = checkpoint(
                _inverse_softmax_tile, query, *tile, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = _inverse_softmax_tile(query, *tile)
        out = part if out is None else out + part
    assert out is not None  # there is a tile, if only of padding
    mean_key = key.sum(dim=2) / (inside.sum(dim=2) + TINY)
    mean = torch.matmul(query, mean_key[:, :, :, None])[..., 0]
    return out, mean.mean(dim=1)


def _inverse_softmax_tile(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.matmul(query, key.mT).exp_()
    return torch.matmul(weights, value / weights.sum(dim=2)[..., None])


def attention_fused(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 2 through torch's fused attention and a mean without any matrix."""
    inside = valid[:, None, :, None].to(key.dtype)
    # A query without any valid key gets all keys, whose values are zeroed here.
    mask = valid | ~valid.any(dim=1, keepdim=True)
    out = F.scaled_dot_product_attention(
        query, key, value * inside, attn_mask=mask[:, None, None, :]
    )
    mean_key = (key * inside).sum(dim=2) / (inside.sum(dim=2) + TINY)
    mean = torch.matmul(query, mean_key[:, :, :, None])[..., 0] / math.sqrt(query.shape[3])
    return out, mean.mean(dim=1)


FASTER: dict[Matcher, Matcher] = {correlation: correlation_tiled, attention: attention_fused}


class TiledMatching(Derives, MatchingBlock):
    """The matching above; the merge's batch norm folded into its convolution."""

    def correlate(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As the paper's; a matcher without a faster form is computed as it is written."""
        return FASTER.get(self.matcher, self.matcher)(query, key, value, valid)

    def merged(self, joined: Tensor) -> Tensor:
        """As the paper's; gradients flow through the folding."""
        if self.merge.bn.training:
            return super().merged(joined)
        dtype = compute_dtype(joined)
        conv = self.derived(dtype, partial(fold, self.merge, dtype))
        if conv is not None:
            return conv(joined, rectify=True)
        weight, bias = fused(self.merge)
        return F.relu(F.conv2d(joined, weight, bias, *Options.of(self.merge.conv)))


class RecomputedFFN(MixFFN):
    """The widened maps, which outweigh everything else that a training step stores, are computed
    again in the backward pass.
    """

    def widen(self, x: Tensor) -> Tensor:
        """As the paper's."""
        if not torch.is_grad_enabled():
            return super().widen(x)
        return checkpoint(super().widen, x, use_reentrant=False, preserve_rng_state=False)


FORMS = {MatchingBlock: TiledMatching, MixFFN: RecomputedFFN}
