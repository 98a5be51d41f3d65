"""The hierarchical self-attention pyramid: patch embedding, spatial-reduction attention, Mix-FFN.

Maps are [B, C, h, w]; token sequences are [B, h·w, C] in row-major order.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import strided

EPS = 1e-6
HEADS = (2, 4, 8, 8)
REDUCTIONS = (4, 2, 1, 1)
STRIDES = (1, 2, 2, 2)
DEPTH = 2
DROPOUT = 0.1


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h·w, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h·w, C] -> [B, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, size)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, n, C] -> [B, heads, n, C / heads]."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """[B, heads, n, d] -> [B, n, heads · d]."""
    return tokens.transpose(1, 2).flatten(2)


class PatchEmbedding(nn.Module):
    """Convolution to the stage's resolution, then LayerNorm: [B, C, h, w] -> tokens and size."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        kernel = 1 if stride == 1 else 3
        self.projection = nn.Conv2d(dim, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, h, w] -> tokens [B, h'·w', C] and their size (h', w')."""
        x = self.projection(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class Projections(nn.Module):
    """The query, key, value and output projections of an attention, without bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(DROPOUT)


class SelfAttention(nn.Module):
    """Multi-head attention whose keys and values come from a strided convolution of the tokens."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = Projections(dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(dim, eps=EPS) if reduction > 1 else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x [B, h·w, C] -> [B, h·w, C]."""
        source = x
        if self.reduce is not None and self.norm is not None:
            source = self.norm(to_tokens(self.reduce(to_map(x, size))))
        attended = F.scaled_dot_product_attention(
            split_heads(self.project.query(x), self.heads),
            split_heads(self.project.key(source), self.heads),
            split_heads(self.project.value(source), self.heads),
        )
        return self.project.dropout(self.project.out(join_heads(attended)))


class MixFFN(nn.Module):
    """1×1 conv to 4 C, depth-wise 3×3, GELU, 1×1 conv back: [B, h·w, C] -> [B, h·w, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Conv2d(hidden, dim, 1)
        self.dropout_hidden = nn.Dropout(DROPOUT)
        self.dropout_out = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [B, h·w, C] of a map of ``size`` (h, w) -> [B, h·w, C]."""
        x = self.widen(to_map(x, size))
        return to_tokens(self.dropout_out(self.contract(self.dropout_hidden(x))))

    def widen(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 4 C, h, w], after the GELU."""
        return F.gelu(self.depthwise(self.expand(x)))


class TransformerLayer(nn.Module):
    """x + SelfAttention(LN x), then + MixFFN(LN x)."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = SelfAttention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = MixFFN(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [B, h·w, C] of a map of ``size`` (h, w) -> [B, h·w, C]."""
        x = x + self.attention(self.norm1(x), size)
        return x + self.ffn(self.norm2(x), size)


class Stage(nn.Module):
    """Patch embedding, two transformer layers, LayerNorm."""

    def __init__(self, dim: int, heads: int, reduction: int, stride: int) -> None:
        super().__init__()
        self.embed = PatchEmbedding(dim, stride)
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, reduction) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, h, w] -> normalised tokens [B, h_l·w_l, C] and the stage's size (h_l, w_l)."""
        tokens, size = self.embed(x)
        for layer in self.layers:
            tokens = layer(tokens, size)
        return self.norm(tokens), size


class Pyramid(nn.ModuleList):
    """The stages, finest first; the same weights serve query and support."""

    def __init__(self, dim: int, stages: int) -> None:
        super().__init__(
            Stage(dim, HEADS[stage], REDUCTIONS[stage], STRIDES[stage]) for stage in range(stages)
        )

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Each stage's size for an input map of ``size``; the first stage keeps it."""
        found = []
        for stride in STRIDES[: len(self)]:
            size = strided(size, stride)
            found.append(size)
        return found

    def smallest_map(self) -> int:
        """Rows and columns that the pyramid's input needs at least."""
        need = 1
        for stage in reversed(range(len(self))):
            need = max(need, REDUCTIONS[stage])
            # A stride-2 embedding halves rounding up, so one row less than twice is enough.
            need = need if STRIDES[stage] == 1 else 2 * need - 1
        return need


def initialise(module: nn.Module) -> None:
    """Mix-Transformer initialisation: normal of std 0.02 for linear, fan-out for convolutions."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
