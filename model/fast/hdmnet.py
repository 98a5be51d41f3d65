"""HDMNet with less work: supports around their object, one batch on a GPU, nothing copied."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fast import decoder, encoder, matching, pooling
from model.fast.derived import refine
from model.fast.ensemble import gram_of_halves
from model.fast.positions import Places, object_places
from model.fast.prior import prior_at_positions
from model.fewshot import join, map_tensors
from model.hdmnet import (
    PRIOR_SCALE,
    REDUCED,
    HDMNet,
    PreparedQuery,
    PreparedSupport,
    QueryEncoding,
)
from model.layers import hide, nearest, size_of
from model.pyramid import to_tokens

FORMS: dict[type, type] = {**encoder.FORMS, **pooling.FORMS, **matching.FORMS, **decoder.FORMS}


class AtObject(NamedTuple):
    """features [B, n, C] at the object's positions, then zeros; outside [B]: True when some
    position is not object.
    """

    features: Tensor
    outside: Tensor


class SupportEncoding(NamedTuple):
    """f2, f3 [B, C, h, w]; mask [B, H, W] uint8 (1 = object); places: the object in the maps of
    each stage, of which the first has the size of f4.
    """

    f2: Tensor
    f3: Tensor
    f4: AtObject
    f5: AtObject
    gram: Tensor | None
    mask: Tensor
    places: tuple[Places, ...]


class FastHDMNet(HDMNet):
    """The same result with less work."""

    host_masks = True
    head: pooling.CellwiseHead

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        refine(self, FORMS)

    @torch.no_grad()
    def encode_support(self, image: Tensor, mask: Tensor) -> Any:
        """As the paper's, a :class:`SupportEncoding` of this file. The mask may be in host memory:
        then nothing waits for a GPU to count the object's pixels.
        """
        seen, mask = self._masks(mask, image.device)
        image = hide(image, mask)
        around = getattr(self.encoder, "around", None)
        if around is None or not self.mask_support or image.device.type != "cpu":
            return self._support_encoding(self.encoder(image), seen, mask)
        pictures = zip(image.split(1), mask.split(1), strict=True)
        return join([self._support_encoding(around(i, m), m, m) for i, m in pictures])

    @torch.no_grad()
    def encode_episode(
        self, query_image: Tensor, images: Tensor, masks: Tensor
    ) -> tuple[QueryEncoding, SupportEncoding]:
        """query_image [B, 3, H, W]; images [B·K, 3, H, W] and masks [B·K, H, W] of the supports."""
        # A GPU fills better with one batch; on a CPU picture by picture needs less memory.
        if query_image.device.type == "cpu" or query_image.shape[-2:] != images.shape[-2:]:
            return super().encode_episode(query_image, images, masks)
        seen, masks = self._masks(masks, images.device)
        features = self.encoder(torch.cat([query_image, hide(images, masks)]))
        batch = query_image.shape[0]
        return (
            self._query_encoding(*(f[:batch] for f in features)),
            self._support_encoding([f[batch:] for f in features], seen, masks),
        )

    def _masks(self, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8, 1 = object: where ``mask`` is, and on ``device``."""
        seen = self._object(mask)
        if mask.device == device:
            return seen, seen
        return seen, self._object(mask.to(device, non_blocking=True))

    def _support_encoding(self, features: Any, seen: Tensor, mask: Tensor) -> SupportEncoding:
        """``seen`` and ``mask`` as :meth:`_masks` gives them."""
        f2, f3, f4 = features
        inside = [nearest(seen, size) for size in self.pyramid.sizes(size_of(f4))]
        # In training on a GPU nothing may wait for a count: all positions are kept there.
        count = not self.training or seen.device.type == "cpu"
        places = tuple(object_places(stage, count) for stage in inside)
        outside = (inside[0] == 0).flatten(1).any(dim=1)
        if seen.device != mask.device:
            places, outside = map_tensors(
                (places, outside), lambda t: t.to(mask.device, non_blocking=True)
            )
        at = places[0]
        f5 = self.head.at(self._rectified(f4), at.positions) * at.valid[:, :, None]
        return SupportEncoding(
            f2, f3, AtObject(at.of(to_tokens(f4)), outside), AtObject(f5, outside),
            self._gram(f2), mask, places,
        )  # fmt: skip

    def _rectified(self, f4: Tensor) -> Tensor:
        return f4 if getattr(self.encoder, "block_relu", False) else super()._rectified(f4)

    def _gram(self, f2: Tensor) -> Tensor | None:
        return None if self.ensemble is None else gram_of_halves(f2)

    def _places(
        self, encoding: Any, level: int, sequence: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        places = encoding.places[level]
        return places.of(sequence), places.valid

    def _reduce(self, conv: nn.Conv2d, f2: Tensor, f3: Tensor) -> Tensor:
        """Without the copy that cat makes."""
        weight, channels = conv.weight, f3.shape[1]
        x = F.conv2d(f3, weight[:, :channels]) + F.conv2d(f2, weight[:, channels:])
        return self.reduce_dropout(F.relu(x))

    def _merge(
        self, conv: nn.Conv2d, feature: Tensor, prototype: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """The prototype is the same everywhere: convolved once, not at every position."""
        weight = conv.weight
        x = F.conv2d(feature, weight[:, :REDUCED])
        x = x + F.conv2d(prototype[:, :, None, None], weight[:, REDUCED : 2 * REDUCED])
        if prior is not None:
            x = x + F.conv2d(PRIOR_SCALE * prior, weight[:, 2 * REDUCED :])
        return F.relu(x)

    @torch.no_grad()
    def _prior(self, query: PreparedQuery, supports: PreparedSupport) -> Tensor:
        pairs = ((query.f5, supports.f5), (query.f4, supports.f4))
        found = [prior_at_positions(to_tokens(q), *s) for q, s in pairs]
        return torch.stack(found, dim=1).unflatten(2, size_of(query.feature))
