"""HDMNet: hierarchical dense correlation matching with a base-learner ensemble (CVPR 2023)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder import Decoder
from model.distillation import distillation_loss
from model.encoder import build_encoder
from model.ensemble import Ensemble, gram
from model.fewshot import FewShotModel, Output, join, map_tensors, segmentation_loss
from model.hidden import ObjectEncoder
from model.layers import align, full_precision, nearest, set_folding
from model.matching import MATCHERS, MatchingBlock, Tokens
from model.positions import Places, all_places, object_places
from model.prior import prior_at_positions, prior_textbook
from model.pspnet import BaseClassifier, PyramidHead
from model.pyramid import Pyramid, initialise, to_map, to_tokens

REDUCED = 256
DIM = 64
PRIOR_CHANNELS = 2
PRIOR_SCALE = 10.0
AREA_EPSILON = 0.0005


class QueryEncoding(NamedTuple):
    """Frozen: f2, f3 [B, C, h, w]; f4, f5 [B, h·w, C]; gram [B, C2, C2]; base logits.

    ``gram`` and ``base`` are None without the ensemble.
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    base: Tensor | None


class SupportEncoding(NamedTuple):
    """Frozen: f2, f3 [B, C, h, w]; f4, f5 [B, n, C] at the object's positions, then zeros.

    outside [B]: True when some position is not object; mask [B, H, W] uint8 (1 = object); places:
    the object in the maps of each stage, of which the first has the size of f4. The textbook path
    keeps all n = h·w positions, zeroed outside the object.
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor
    outside: Tensor
    gram: Tensor | None
    mask: Tensor
    places: tuple[Places, ...]


class PreparedQuery(NamedTuple):
    """feature [B, 256, h, w]; the rest as in :class:`QueryEncoding`."""

    feature: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    base: Tensor | None


class PreparedSupport(NamedTuple):
    """prototype [B, 256]; per stage the keys and values of the object's positions."""

    prototype: Tensor
    f4: Tensor
    f5: Tensor
    outside: Tensor
    gram: Tensor | None
    stages: tuple[Tokens, ...]


class HDMNet(FewShotModel):
    """See the module's title; the equations are named where they are implemented.

    Options as in the configuration's ``Method`` section. ``compute``: 'fast' (exact rewritings,
    the default) or 'textbook' (the equations written down directly).
    """

    frozen = ("encoder", "head", "base_learner")
    host_masks = True

    def __init__(
        self,
        encoder: nn.Module,
        num_base: int,
        shot: int = 1,
        stages: int = 3,
        matching: str = "correlation",
        hierarchy: str = "decoupled",
        distill: bool = True,
        ensemble: bool = True,
        temperature: float = 1.0,
        mask_support: bool = True,
        fidelity: str = "released",
        compute: str = "fast",
        kshot_trans_dim: int = 2,
        fix_bn: bool = True,
        aux_weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.fast = compute == "fast"
        self.stacked = hierarchy == "stacked"
        self.corrected = fidelity == "corrected"
        self.distill = distill
        self.temperature = temperature
        self.mask_support = mask_support
        self.fix_bn = fix_bn
        self.aux_weights = aux_weights

        self.encoder = encoder
        self._object_encoder = ObjectEncoder(encoder)
        self.head = PyramidHead(encoder.channels[2], encoder.head_width)
        self.base_learner = BaseClassifier(encoder.head_width, num_base) if ensemble else None

        middle = encoder.channels[0] + encoder.channels[1]
        self.reduce_query = nn.Conv2d(middle, REDUCED, 1, bias=False)
        self.reduce_support = nn.Conv2d(middle, REDUCED, 1, bias=False)
        self.reduce_dropout = nn.Dropout2d(0.5)
        self.merge_query = nn.Conv2d(2 * REDUCED + PRIOR_CHANNELS, DIM, 1, bias=False)
        self.merge_support = nn.Conv2d(2 * REDUCED, DIM, 1, bias=False)
        self.pyramid = Pyramid(DIM, stages, recompute=self.fast)
        matcher = MATCHERS[matching, compute]
        self.matching = nn.ModuleList(
            MatchingBlock(DIM, PRIOR_CHANNELS, matcher, recompute=self.fast) for _ in range(stages)
        )
        self.decoder = Decoder(DIM, stages)
        self.ensemble = (
            Ensemble(shot, kshot_trans_dim, restore_order=self.corrected) if ensemble else None
        )
        initialise(self.pyramid)
        initialise(self.matching)
        set_folding(self, self.fast)
        if not ensemble:
            self.frozen = ("encoder", "head")
        self.freeze()

    @classmethod
    def from_config(cls, cfg: Any) -> HDMNet:
        """With the options of ``cfg``'s ``Method`` section; reads no file."""
        return cls(
            build_encoder(cfg),
            num_base=cfg.num_base,
            shot=cfg.shot,
            stages=cfg.stages,
            matching=cfg.matching,
            hierarchy=cfg.hierarchy,
            distill=cfg.distill,
            ensemble=cfg.ensemble,
            temperature=cfg.temperature,
            mask_support=cfg.mask_support,
            fidelity=cfg.fidelity,
            compute=cfg.compute,
            kshot_trans_dim=cfg.kshot_trans_dim,
            fix_bn=cfg.fix_bn,
            aux_weights=(cfg.aux_weight1, cfg.aux_weight2),
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError when a stage would be left without a position or a key."""
        need = self.pyramid.smallest_map()
        if min(self.encoder.output_size(height), self.encoder.output_size(width)) < need:
            smallest = next(s for s in range(1, 10_000) if self.encoder.output_size(s) >= need)
            raise ValueError(
                f"input size {height}×{width} is too small for {len(self.pyramid)} stages: "
                f"both sides must be at least {smallest}"
            )

    # -- frozen part ------------------------------------------------------------------------

    @torch.no_grad()
    def encode_query(self, image: Tensor) -> QueryEncoding:
        """image [B, 3, H, W], normalised; without gradient."""
        return self._query_encoding(self.encoder(self._layout(image)))

    @torch.no_grad()
    def encode_support(self, image: Tensor, mask: Tensor) -> SupportEncoding:
        """image [B, 3, H, W], mask [B, H, W] (1 object, 0, 255); hidden outside the object.

        The mask may be in host memory: then nothing waits for a GPU to count the object's pixels.
        """
        seen, mask = self._object_masks(mask, image.device)
        image = hide(image, mask)
        around = self.fast and self.mask_support and image.device.type == "cpu"
        if not around or torch.compiler.is_compiling():
            return self._support_encoding(self.encoder(self._layout(image)), seen, mask)
        pictures = zip(self._layout(image).split(1), mask.split(1), strict=True)
        return join([self._support_encoding(self._object_encoder(i, m), m, m) for i, m in pictures])

    @torch.no_grad()
    def encode_episode(
        self, query_image: Tensor, images: Tensor, masks: Tensor
    ) -> tuple[QueryEncoding, SupportEncoding]:
        """query_image [B, 3, H, W]; images [B·K, 3, H, W] and masks [B·K, H, W] of the supports."""
        # A GPU fills better with one batch; on a CPU picture by picture needs less memory.
        together = self.fast and query_image.device.type != "cpu"
        if not together or query_image.shape[-2:] != images.shape[-2:]:
            return super().encode_episode(query_image, images, masks)
        seen, masks = self._object_masks(masks, images.device)
        features = self.encoder(self._layout(torch.cat([query_image, hide(images, masks)])))
        batch = query_image.shape[0]
        return (
            self._query_encoding(type(features)(*(f[:batch] for f in features))),
            self._support_encoding(type(features)(*(f[batch:] for f in features)), seen, masks),
        )

    def _layout(self, image: Tensor) -> Tensor:
        """The memory format that convolutions prefer."""
        return image.contiguous(memory_format=torch.channels_last) if self.fast else image

    def _object_masks(self, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8, 1 = object: where ``mask`` is, and on ``device``."""

        def objects(mask: Tensor) -> Tensor:
            return (mask == 1).to(torch.uint8) if self.mask_support else torch.ones_like(mask)

        seen = objects(mask)
        if mask.device == device:
            return seen, seen
        return seen, objects(mask.to(device, non_blocking=True))

    def _query_encoding(self, features) -> QueryEncoding:
        rectified = self._rectified(features.f4)
        f5 = self.head.fast(rectified) if self.fast else self.head(rectified)
        return QueryEncoding(
            f2=features.f2,
            f3=features.f3,
            f4=to_tokens(features.f4),
            f5=to_tokens(f5),
            gram=gram(features.f2) if self.ensemble is not None else None,
            base=self.base_learner(f5) if self.ensemble is not None else None,
        )

    def _support_encoding(self, features, seen: Tensor, mask: Tensor) -> SupportEncoding:
        """``seen`` and ``mask`` as :meth:`_object_masks` gives them."""
        sizes = self.pyramid.sizes((features.f4.shape[2], features.f4.shape[3]))
        inside = [nearest(seen, size) for size in sizes]
        places = tuple(map(self._places, inside))
        outside = (inside[0] == 0).flatten(1).any(dim=1)
        if seen.device != mask.device:
            places, outside = map_tensors(
                (places, outside), lambda t: t.to(mask.device, non_blocking=True)
            )
        rectified, at = self._rectified(features.f4), places[0]
        if self.fast:
            f4 = at.of(to_tokens(features.f4))
            f5 = self.head.fast_at(rectified, at.positions) * at.valid[:, :, None]
        else:
            f4 = to_tokens(features.f4) * at.valid[:, :, None]
            f5 = to_tokens(self.head(rectified)) * at.valid[:, :, None]
        return SupportEncoding(
            f2=features.f2,
            f3=features.f3,
            f4=f4,
            f5=f5,
            outside=outside,
            gram=gram(features.f2) if self.ensemble is not None else None,
            mask=mask,
            places=places,
        )

    def _rectified(self, f4: Tensor) -> Tensor:
        """What the base learner was trained on, whatever ``block_relu`` says about f4."""
        return f4 if self.encoder.block_relu else F.relu(f4)

    def _places(self, inside: Tensor) -> Places:
        if not self.fast:
            return all_places(inside)
        # In training on a GPU nothing may wait for a count: all positions are kept there.
        return object_places(inside, count=not self.training or inside.device.type == "cpu")

    # -- learned, picture by picture --------------------------------------------------------

    def prepare_query(self, encoding: QueryEncoding) -> PreparedQuery:
        """The query's reduction of cat(f3, f2)."""
        feature = self._reduce(self.reduce_query, encoding)
        return PreparedQuery(feature, encoding.f4, encoding.f5, encoding.gram, encoding.base)

    def prepare_support(self, encoding: SupportEncoding) -> PreparedSupport:
        """The support's reduction, its prototype, and its way through the pyramid."""
        feature = self._reduce(self.reduce_support, encoding)
        prototype = masked_prototype(feature, encoding.mask)
        x = self._merge(self.merge_support, feature, prototype)
        tokens = []
        for stage, matching, places in zip(
            self.pyramid, self.matching, encoding.places, strict=True
        ):
            sequence, size = stage(x)
            x = to_map(sequence, size)
            tokens.append(matching.support_tokens(places.of(sequence), places.valid))
        return PreparedSupport(
            prototype,
            encoding.f4,
            encoding.f5,
            encoding.outside,
            encoding.gram,
            tuple(tokens),
        )

    def _reduce(self, conv: nn.Conv2d, encoding: QueryEncoding | SupportEncoding) -> Tensor:
        """Dropout of the ReLU of a 1×1 convolution over cat(f3, f2): [B, 256, h, w]."""
        f2, f3 = encoding.f2, encoding.f3
        if self.fast:  # without the copy that cat makes
            weight, channels = conv.weight, f3.shape[1]
            x = F.conv2d(f3, weight[:, :channels]) + F.conv2d(f2, weight[:, channels:])
        else:
            x = conv(torch.cat([f3, f2], dim=1))
        return self.reduce_dropout(F.relu(x))

    def _merge(
        self, conv: nn.Conv2d, feature: Tensor, prototype: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """ReLU of a 1×1 convolution over cat(feature, prototype, 10 × prior): [B, 64, h, w]."""
        if not self.fast:
            spread = prototype[:, :, None, None].expand_as(feature)
            parts = [feature, spread] + ([] if prior is None else [PRIOR_SCALE * prior])
            return F.relu(conv(torch.cat(parts, dim=1)))
        # The prototype is the same everywhere: convolve it once, not at every position.
        weight = conv.weight
        x = F.conv2d(feature, weight[:, :REDUCED])
        x = x + F.conv2d(prototype[:, :, None, None], weight[:, REDUCED : 2 * REDUCED])
        if prior is not None:
            x = x + F.conv2d(PRIOR_SCALE * prior, weight[:, 2 * REDUCED :])
        return F.relu(x)

    # -- query against supports -------------------------------------------------------------

    def match(
        self,
        query: PreparedQuery,
        supports: PreparedSupport,
        size: tuple[int, int],
        class_index: Tensor | None = None,
        with_base: bool = True,
    ) -> Output:
        """Prior, pyramid with matching (Eq. 2-7), decoder (Eq. 1), fusion; logits at ``size``."""
        prior = self._prior(query, supports)
        x = self._merge(self.merge_query, query.feature, supports.prototype.mean(dim=1), prior)
        features, correlations = [], []
        for stage, matching, tokens in zip(
            self.pyramid, self.matching, supports.stages, strict=True
        ):
            sequence, stage_size = stage(x)
            # The K supports become one longer sequence.
            joined = Tokens(*(tensor.flatten(1, 2) for tensor in tokens))
            matched, correlation = matching.attend(sequence, joined, stage_size)
            x = to_map(matched if self.stacked else sequence, stage_size)
            features.append(matching.merge_prior(matched, prior, stage_size))
            correlations.append(correlation)
        meta = full_precision(self.decoder(features))
        if self.ensemble is None:
            return Output(align(meta, size), None, None, prior, correlations)
        factor = self.ensemble.factor(query.gram, supports.gram)
        base = full_precision(query.base)
        final = self.ensemble(meta, base, factor, class_index)
        if not with_base:
            base = None
        elif not self.training:  # there its loss enlarges them, part by part
            base = align(base, size)
        return Output(align(final, size), align(meta, size), base, prior, correlations)

    @torch.no_grad()
    def _prior(self, query: PreparedQuery, supports: PreparedSupport) -> Tensor:
        """[B, 2, h, w]: channel 0 from f5, channel 1 from f4."""
        channels = []
        for q, s in ((query.f5, supports.f5), (query.f4, supports.f4)):
            if self.fast:
                channels.append(prior_at_positions(q, s, supports.outside))
            else:
                channels.append(prior_textbook(q, s))
        return torch.stack(channels, dim=1).unflatten(2, tuple(query.feature.shape[-2:]))

    # -- training ---------------------------------------------------------------------------

    def losses(self, out: Output, query_mask: Tensor, base_mask: Tensor | None) -> dict:
        """main (final), meta, distill, base, each unweighted, and total, weighted.

        query_mask [B, H, W] with 1 = object, 0, 255; base_mask [B, H, W] with 0..N and 255. The
        base learner is frozen: its loss is reported and cannot be learned from.
        """
        losses = {"main": segmentation_loss(out.final, query_mask)}
        total = losses["main"]
        if out.meta is not None:
            losses["meta"] = segmentation_loss(out.meta, query_mask)
            total = total + losses["meta"]
        if self.distill:
            losses["distill"] = distillation_loss(out.correlations, query_mask, self.temperature)
            total = total + self.aux_weights[0] * losses["distill"]
        if out.base is not None and base_mask is not None:
            losses["base"] = segmentation_loss(out.base, base_mask)
            total = total + self.aux_weights[1] * losses["base"]
        return {**losses, "total": total}

    def param_groups(self, cfg: Any) -> list[dict[str, Any]]:
        """Pyramid, matching and decoder at ``base_lr``; reductions, merges, fusion at ten times.

        The released optimiser leaves the K-shot reweighting network out; ``fidelity: corrected``
        trains it with the fusion.
        """
        slow = [*self.pyramid.parameters(), *self.matching.parameters(), *self.decoder.parameters()]
        quick = [
            conv.weight
            for conv in (
                self.reduce_query, self.reduce_support, self.merge_query, self.merge_support
            )
        ]  # fmt: skip
        if self.ensemble is not None:
            quick += [self.ensemble.gram_merge.weight, self.ensemble.base_merge.weight]
            if self.corrected and self.ensemble.reweight is not None:
                quick += list(self.ensemble.reweight.parameters())
        return [
            {"name": "transformer", "params": slow, "lr_scale": 1.0},
            {"name": "reduction", "params": quick, "lr_scale": 10.0},
        ]


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """image [B, 3, H, W], zero where mask [B, H, W] is."""
    return image * mask[:, None].to(image.dtype)


def masked_prototype(feature: Tensor, mask: Tensor) -> Tensor:
    """Sum of feature [B, C, h, w] over the resized mask [B, H, W], by its area: [B, C]."""
    with torch.autocast(feature.device.type, enabled=False):
        feature = full_precision(feature)
        weight = align(mask[:, None].to(feature.dtype), tuple(feature.shape[-2:])).flatten(2)
        total = torch.matmul(weight, to_tokens(feature))[:, 0]
        return total / (weight.sum(dim=2) + AREA_EPSILON)
