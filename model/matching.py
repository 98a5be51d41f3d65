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

from model.layers import ConvNorm, align, full_precision
from model.pyramid import EPS, MixFFN, Projections, join_heads, split_heads, to_map

COSINE_T = 0.1
HEADS = 2
TINY = 1e-9


class Tokens(NamedTuple):
    """Support of one stage: keys and values [B, n, C] (of all K supports), valid [B, n]."""

    keys: Tensor
    values: Tensor
    valid: Tensor


def correlation(query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 3-7 as written: C = cosine / t, its inverse softmax (over query positions), masked mean.

    Returns the attended values [B, heads, N, d] and the mean correlation [B, N].
    """
    cosine = torch.matmul(F.normalize(query, dim=3), F.normalize(key, dim=3).mT)
    c = cosine / COSINE_T
    inside = valid[:, None, None, :].to(c.dtype)
    weights = c.softmax(dim=2) * inside
    mean = (c * inside).sum(dim=3) / (inside.sum(dim=3) + TINY)
    return torch.matmul(weights, value), mean.mean(dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 with masked keys: scaled dot products, softmax over the object's positions.

    The scaled dot products stand in for C in Eq. 7. Without any object position the result is 0.
    """
    scores = torch.matmul(query, key.mT) / math.sqrt(query.shape[3])
    masked = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    inside = valid[:, None, None, :].to(scores.dtype)
    weights = masked.softmax(dim=3) * inside
    mean = (scores * inside).sum(dim=3) / (inside.sum(dim=3) + TINY)
    return torch.matmul(weights, value), mean.mean(dim=1)


# Of the keys and values only those that are ``valid`` may count: how many others there are differs
# between the forms of computing. A matcher that has but this one is computed as it is written.
Matcher = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
MATCHERS: dict[str, Matcher] = {"correlation": correlation, "attention": attention}


class MatchingBlock(nn.Module):
    """One matching layer of a stage, and the merge with the prior mask that follows it.

    Query tokens attend to the support's object positions (residual), Mix-FFN (residual); the
    result, together with the prior, goes through a 3×3 conv + BN + ReLU to X_l.
    """

    def __init__(self, dim: int, prior_channels: int, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.project = Projections(dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = MixFFN(dim)
        self.merge = ConvNorm(dim + prior_channels, dim, 3, padding=1)

    def support_tokens(self, tokens: Tensor, valid: Tensor) -> Tokens:
        """Keys and values of support tokens [B, n, C]; independent of any query."""
        tokens = self.norm1(tokens)
        return Tokens(self.project.key(tokens), self.project.value(tokens), valid)

    def join(self, tokens: Tokens, trained: int) -> Tokens:
        """Tokens [B, K, n, C] of K supports as one longer sequence [B, K n, C].

        Behind the inverse softmax Eq. 6 sums over the object's positions of all supports; for
        another number of them than the model was trained with, the sum is brought to that one's.
        """
        shots = tokens.values.shape[1]
        joined = Tokens(*(tensor.flatten(1, 2) for tensor in tokens))
        if self.matcher is not correlation or shots == trained:
            return joined
        return joined._replace(values=joined.values * (trained / shots))

    def attend(
        self, query: Tensor, support: Tokens, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Query tokens [B, N, C] -> matched tokens [B, N, C], mean correlation [B, h, w]."""
        q, k, v = (
            full_precision(split_heads(x, HEADS))
            for x in (self.project.query(self.norm1(query)), support.keys, support.values)
        )
        with torch.autocast(query.device.type, enabled=False):
            attended, mean = self.correlate(q, k, v, support.valid)
        query = query + self.project.dropout(self.project.out(join_heads(attended)))
        query = query + self.ffn(self.norm2(query), size)
        return query, mean.unflatten(1, size)

    def correlate(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attended values [B, heads, N, d] and mean correlation [B, N]."""
        return self.matcher(query, key, value, valid)

    def merge_prior(self, matched: Tensor, prior: Tensor, size: tuple[int, int]) -> Tensor:
        """Matched tokens and prior [B, 2, h, w] -> X_l [B, C, h_l, w_l]."""
        joined = torch.cat([to_map(matched, size), align(prior, size).to(matched.dtype)], dim=1)
        return self.merged(joined)

    def merged(self, joined: Tensor) -> Tensor:
        """3×3 convolution, batch norm and ReLU of [B, C + 2, h, w]."""
        return F.relu(self.merge(joined))
