"""Matching of query and support tokens: Eq. 2 (attention) and Eq. 3-7 (dense correlation).

Shapes: queries [B, heads, N, d]; keys and values [B, heads, n, d] of the joined support positions;
valid [B, n], True at the object's positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.layers import ConvNorm, align, full_precision
from model.pyramid import EPS, MixFFN, Projections, join_heads, split_heads, to_map

TEMPERATURE = 0.1
HEADS = 2
# A tile of exp(C): so many support positions at least, so many elements (in float32, 4 MiB that
# stay in a CPU's caches, 16 MiB that fill a GPU).
COLUMNS = 64
CPU_ELEMENTS, GPU_ELEMENTS = 1 << 20, 1 << 22
TINY = 1e-9


class Tokens(NamedTuple):
    """Support of one stage: keys and values [B, n, C] (of all K supports), valid [B, n]."""

    keys: Tensor
    values: Tensor
    valid: Tensor


def correlation_textbook(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 3-7 as written: C = cosine / t, softmax over query positions, masked mean of C.

    Returns the attended values [B, heads, N, d] and the mean correlation [B, N].
    """
    correlation = torch.matmul(F.normalize(query, dim=3), F.normalize(key, dim=3).mT) / TEMPERATURE
    inside = valid[:, None, None, :].to(correlation.dtype)
    attention = correlation.softmax(dim=2) * inside
    mean = (correlation * inside).sum(dim=3) / (inside.sum(dim=3) + TINY)
    return torch.matmul(attention, value), mean.mean(dim=1)


def correlation_tiled(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in memory linear in N: tiles of support positions, the mean without any matrix.

    Each support column is normalised over the query positions on its own, so a tile of columns is
    complete in itself; cosine / t lies in [-10, 10], so exp needs no maximum. The mean over j of
    q·k_j is q · mean(k_j).
    """
    inside = valid[:, None, :, None].to(key.dtype)
    query = F.normalize(query, dim=3) / TEMPERATURE
    key = F.normalize(key, dim=3) * inside
    value = value * inside
    keep = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    column = query.shape[0] * query.shape[1] * query.shape[2]
    elements = CPU_ELEMENTS if query.device.type == "cpu" else GPU_ELEMENTS
    step = max(COLUMNS, elements // column)
    out = None
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
    mean_key = key.sum(dim=2) / (inside.sum(dim=2) + TINY)
    mean = torch.matmul(query, mean_key[:, :, :, None])[..., 0]
    return out, mean.mean(dim=1)


def _inverse_softmax_tile(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.matmul(query, key.mT).exp_()
    return torch.matmul(weights, value / weights.sum(dim=2)[..., None])


def attention_textbook(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 2 with masked keys: scaled dot products, softmax over the object's positions.

    The scaled dot products stand in for C in Eq. 7. Without any object position the result is 0.
    """
    scores = torch.matmul(query, key.mT) / math.sqrt(query.shape[3])
    masked = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    inside = valid[:, None, None, :].to(scores.dtype)
    attention = masked.softmax(dim=3) * inside
    mean = (scores * inside).sum(dim=3) / (inside.sum(dim=3) + TINY)
    return torch.matmul(attention, value), mean.mean(dim=1)


def attention_fused(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """The same through torch's fused attention and a mean without any matrix."""
    inside = valid[:, None, :, None].to(key.dtype)
    # A query without any valid key gets all keys, whose values are zeroed here.
    mask = valid | ~valid.any(dim=1, keepdim=True)
    out = F.scaled_dot_product_attention(
        query, key, value * inside, attn_mask=mask[:, None, None, :]
    )
    mean_key = (key * inside).sum(dim=2) / (inside.sum(dim=2) + TINY)
    mean = torch.matmul(query, mean_key[:, :, :, None])[..., 0] / math.sqrt(query.shape[3])
    return out, mean.mean(dim=1)


Matcher = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
MATCHERS: dict[tuple[str, str], Matcher] = {
    ("correlation", "textbook"): correlation_textbook,
    ("correlation", "fast"): correlation_tiled,
    ("attention", "textbook"): attention_textbook,
    ("attention", "fast"): attention_fused,
}


class MatchingBlock(nn.Module):
    """One matching layer of a stage, and the merge with the prior mask that follows it.

    Query tokens attend to the support's object positions (residual), Mix-FFN (residual); the
    result, together with the prior, goes through a 3×3 conv + BN + ReLU to X_l.
    """

    def __init__(
        self, dim: int, prior_channels: int, matcher: Matcher, recompute: bool = False
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.project = Projections(dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = MixFFN(dim, recompute)
        self.merge = ConvNorm(dim + prior_channels, dim, 3, padding=1)

    def support_tokens(self, tokens: Tensor, valid: Tensor) -> Tokens:
        """Keys and values of support tokens [B, n, C]; independent of any query."""
        tokens = self.norm1(tokens)
        return Tokens(self.project.key(tokens), self.project.value(tokens), valid)

    def attend(
        self, query: Tensor, support: Tokens, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Query tokens [B, N, C] -> matched tokens [B, N, C], mean correlation [B, h, w]."""
        heads = [
            split_heads(x, HEADS)
            for x in (self.project.query(self.norm1(query)), support.keys, support.values)
        ]
        with torch.autocast(query.device.type, enabled=False):
            attended, mean = self.matcher(*(full_precision(x) for x in heads), support.valid)
        query = query + self.project.dropout(self.project.out(join_heads(attended)))
        query = query + self.ffn(self.norm2(query), size)
        return query, mean.unflatten(1, size)

    def merge_prior(self, matched: Tensor, prior: Tensor, size: tuple[int, int]) -> Tensor:
        """Matched tokens and prior [B, 2, h, w] -> X_l [B, C, h_l, w_l]."""
        joined = torch.cat([to_map(matched, size), align(prior, size).to(matched.dtype)], dim=1)
        return F.relu(self.merge(joined))
