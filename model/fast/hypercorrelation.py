"""Hypercorrelations at the support positions that the mask leaves; they are zero at all others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.fast.derived import compute_dtype
from model.hypercorrelation import EPSILON
from model.layers import full_precision, size_of


class Support(NamedTuple):
    """Support features of one pyramid level, at the positions that the mask leaves.

    mask [B, h, w]: resized mask, 0..1; positions [B, P]: its non-zero positions in row-major order;
    layers: one [B, P, C] for each layer, multiplied by the mask and normalised. P is the largest
    count in the batch; what stands behind an image's own count means nothing.
    """

    mask: Tensor
    positions: Tensor
    layers: tuple[Tensor, ...]


def normalise_(feature: Tensor, dim: int) -> Tensor:
    """``feature`` divided by (its norm along ``dim`` + 1e-5); changes ``feature`` in place."""
    norm = torch.linalg.vector_norm(full_precision(feature), dim=dim, keepdim=True)
    return feature.div_(norm.add_(EPSILON))


def query_layer(tap: Tensor) -> Tensor:
    """Normalised query feature with the channels last: [B, C, h, w] -> [B, h, w, C] (in place)."""
    return normalise_(tap.permute(0, 2, 3, 1), -1)


def support_positions(mask: Tensor) -> Tensor:
    """Non-zero positions of resized masks [B, h, w] -> [B, P], row-major; P as in Support."""
    outside = mask.flatten(1) <= 0
    # A stable sort puts the positions inside first and keeps their order.
    order = torch.sort(outside.to(torch.uint8), dim=1, stable=True).indices
    return order[:, : int((~outside).sum(1).max())]


def support_layer(tap: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Masked, normalised support feature: tap [B, C, h, w], mask [B, h, w], positions [B, P] ->
    [B, P, C]."""
    tokens = tap.flatten(2).transpose(1, 2)
    images = torch.arange(len(tokens), device=tap.device)[:, None]
    weight = mask.flatten(1).gather(1, positions)[..., None]
    return normalise_(tokens[images, positions] * weight.to(tokens.dtype), -1)


class SparseHypercorrelation(NamedTuple):
    """Hypercorrelations of a batch at the support positions that the mask leaves; zero elsewhere.

    maps: for each image [P, layers, h_q, w_q]; positions: for each image its P positions in the
    support grid, row-major, ascending; grid: (h_s, w_s).
    """

    maps: list[Tensor]
    positions: list[list[int]]
    grid: tuple[int, int]

    def is_full(self) -> bool:
        """Whether every image has all positions of the grid."""
        return all(len(listed) == self.grid[0] * self.grid[1] for listed in self.positions)

    def dense(self) -> Tensor:
        """[B, h_s, w_s, layers, h_q, w_q]; for one image with all positions a view."""
        if self.is_full():
            maps = self.maps[0][None] if len(self.maps) == 1 else torch.stack(self.maps)
        else:
            area = self.grid[0] * self.grid[1]
            maps = self.maps[0].new_zeros(len(self.maps), area, *self.maps[0].shape[1:])
            for image, listed, values in zip(maps, self.positions, self.maps, strict=True):
                image[listed] = values
        return maps.unflatten(1, self.grid)

    def total(self) -> Tensor:
        """Sum over support positions of the mean over layers, [B, h_q, w_q]."""
        return torch.stack([full_precision(m).sum(0).mean(0) for m in self.maps])


def correlate(query: tuple[Tensor, ...], support: Support) -> SparseHypercorrelation:
    """Efficient form, from normalised features: for each layer query [B, h, w, C] against the
    listed positions of the support; matrix products written straight into place.
    """
    dtype = compute_dtype(query[0])
    batch, height, width, _ = query[0].shape
    counts = (support.mask > 0).sum((1, 2)).tolist()
    results = []
    with torch.autocast(query[0].device.type, enabled=False):
        for image in range(batch):
            n = counts[image]
            out = torch.empty(n, len(query), height * width, dtype=dtype, device=query[0].device)
            for layer, (q, s) in enumerate(zip(query, support.layers, strict=True)):
                q, s = q[image].flatten(0, 1).to(dtype), s[image, :n].to(dtype)
                torch.mm(s, q.t(), out=out[:, layer])
            results.append(out.relu_().unflatten(2, (height, width)))
    listed = [p[:n] for p, n in zip(support.positions.tolist(), counts, strict=True)]
    return SparseHypercorrelation(results, listed, size_of(support.mask))
