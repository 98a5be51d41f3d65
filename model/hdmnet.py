"""HDMNet: hierarchical dense correlation matching with a base-learner ensemble (CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder import Decoder
from model.distillation import distillation_loss
from model.encoder import build_encoder
from model.ensemble import Ensemble, gram
from model.fewshot import FewShotModel, Loss, Output, segmentation_loss
from model.layers import Encoder, Modules, align, full_precision, hide, nearest, size_of
from model.matching import MATCHERS, MatchingBlock, Tokens
from model.prior import prior_mask
from model.pspnet import BaseClassifier, PyramidHead
from model.pyramid import Pyramid, initialise, to_map, to_tokens
from model.registry import REQUIREMENTS

if TYPE_CHECKING:
    from util.config import Config

REDUCED = 256
DIM = 64
PRIOR_CHANNELS = 2
PRIOR_SCALE = 10.0
QUICK = 10.0  # learning rate of what reduces and merges, over that of the transformer
AREA_EPSILON = 0.0005
OPTIONS = (
    "num_base", "shot", "stages", "matching", "hierarchy", "distill", "ensemble", "temperature",
    "mask_support", "fidelity", "kshot_trans_dim", "own_class", "fix_bn",
)  # fmt: skip


class QueryEncoding(NamedTuple):
    """f2 … f5 [B, C, h, w]; with the ensemble gram [B, C2, C2] and base logits [B, 1+N, h, w]."""

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    base: Tensor | None


class SupportEncoding(NamedTuple):
    """f2 … f5 [B, C, h, w], f4 and f5 zero outside the object; mask [B, H, W] uint8, 1 = object."""

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    mask: Tensor


class PreparedQuery(NamedTuple):
    """feature [B, 256, h, w]; the rest as in :class:`QueryEncoding`."""

    feature: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    base: Tensor | None


class PreparedSupport(NamedTuple):
    """prototype [B, 256]; f4, f5, gram as encoded; each stage's keys and values."""

    prototype: Tensor
    f4: Tensor
    f5: Tensor
    gram: Tensor | None
    stages: tuple[Tokens, ...]


class HDMNet(FewShotModel):
    """The method; options as in the configuration's ``Method`` section."""

    frozen: tuple[str, ...] = ("encoder", "head", "base_learner")
    requirements = REQUIREMENTS["HDMNet"]

    def __init__(
        self,
        encoder: Encoder,
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
        kshot_trans_dim: int = 2,
        own_class: str = "left_out",
        fix_bn: bool = True,
        aux_weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.stacked = hierarchy == "stacked"
        self.shot = shot
        self.distill = distill
        self.temperature = temperature
        self.mask_support = mask_support
        self.fix_bn = fix_bn
        self.aux_weights = aux_weights

        self.encoder = encoder
        self.head = PyramidHead(encoder.channels[2], encoder.head_width)
        self.base_learner = BaseClassifier(encoder.head_width, num_base) if ensemble else None

        middle = encoder.channels[0] + encoder.channels[1]
        self.reduce_query = nn.Conv2d(middle, REDUCED, 1, bias=False)
        self.reduce_support = nn.Conv2d(middle, REDUCED, 1, bias=False)
        self.reduce_dropout = nn.Dropout2d(0.5)
        self.merge_query = nn.Conv2d(2 * REDUCED + PRIOR_CHANNELS, DIM, 1, bias=False)
        self.merge_support = nn.Conv2d(2 * REDUCED, DIM, 1, bias=False)
        self.pyramid = Pyramid(DIM, stages)
        self.matching = Modules(
            MatchingBlock(DIM, PRIOR_CHANNELS, MATCHERS[matching]) for _ in range(stages)
        )
        self.decoder = Decoder(DIM, stages)
        self.ensemble = None
        if ensemble:
            restored, unlearned = fidelity == "corrected", own_class == "unlearned"
            self.ensemble = Ensemble(shot, kshot_trans_dim, restored, unlearned)
        initialise(self.pyramid)
        initialise(self.matching)
        if not ensemble:
            self.frozen = ("encoder", "head")
        self.freeze()

    @classmethod
    def from_config(cls, cfg: Config) -> HDMNet:
        """With the options of ``cfg``'s ``Method`` section; reads no file."""
        options = {name: getattr(cfg, name) for name in OPTIONS}
        return cls(build_encoder(cfg), aux_weights=(cfg.aux_weight1, cfg.aux_weight2), **options)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError when a stage would be left without a position, or the encoder can't."""
        smallest = self.encoder.reduction * (self.pyramid.smallest_map() - 1) + 1
        if min(height, width) < smallest:
            raise ValueError(
                f"input size {height}×{width} is too small for {len(self.pyramid)} stages: "
                f"both sides must be at least {smallest}"
            )
        self.encoder.check_size(height, width)

    # -- frozen part ------------------------------------------------------------------------

    @torch.no_grad()
    def encode_query(self, image: Tensor) -> QueryEncoding:
        """image [B, 3, H, W], normalised; without gradient."""
        return self._query_encoding(*self.encoder(image))

    def _query_encoding(self, f2: Tensor, f3: Tensor, f4: Tensor) -> QueryEncoding:
        f5 = self.head(self._rectified(f4))
        base = None if self.base_learner is None else self.base_learner(f5)
        return QueryEncoding(f2, f3, f4, f5, self._gram(f2), base)

    @torch.no_grad()
    def encode_support(self, image: Tensor, mask: Tensor) -> SupportEncoding:
        """image [B, 3, H, W], mask [B, H, W] (1 object, 0, 255); hidden outside the object."""
        mask = self._object(mask)
        f2, f3, f4 = self.encoder(hide(image, mask))
        f5 = self.head(self._rectified(f4))
        inside = nearest(mask, size_of(f4))
        return SupportEncoding(f2, f3, hide(f4, inside), hide(f5, inside), self._gram(f2), mask)

    def _object(self, mask: Tensor) -> Tensor:
        """uint8, 1 = object; 1 everywhere where masks are not used."""
        return (mask == 1).to(torch.uint8) if self.mask_support else torch.ones_like(mask)

    def _rectified(self, f4: Tensor) -> Tensor:
        """What the base learner was trained on, whatever the encoder ends with."""
        return F.relu(f4)

    def _gram(self, f2: Tensor) -> Tensor | None:
        return None if self.ensemble is None else gram(f2)

    # -- learned, picture by picture --------------------------------------------------------

    def prepare_query(self, encoding: QueryEncoding) -> PreparedQuery:
        """The query's reduction of cat(f3, f2)."""
        feature = self._reduce(self.reduce_query, encoding.f2, encoding.f3)
        return PreparedQuery(feature, encoding.f4, encoding.f5, encoding.gram, encoding.base)

    def prepare_support(self, encoding: SupportEncoding) -> PreparedSupport:
        """The support's reduction, its prototype, and its way through the pyramid."""
        feature = self._reduce(self.reduce_support, encoding.f2, encoding.f3)
        prototype = masked_prototype(feature, encoding.mask)
        x = self._merge(self.merge_support, feature, prototype)
        stages = []
        for level, (stage, matching) in enumerate(zip(self.pyramid, self.matching, strict=True)):
            sequence, size = stage(x)
            x = to_map(sequence, size)
            stages.append(matching.support_tokens(*self._places(encoding, level, sequence, size)))
        return PreparedSupport(prototype, encoding.f4, encoding.f5, encoding.gram, tuple(stages))

    def _places(
        self, encoding: SupportEncoding, level: int, sequence: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """A stage's tokens [B, n, C] to match with, and which belong to the object [B, n]."""
        return sequence, nearest(encoding.mask, size).flatten(1) == 1

    def _reduce(self, conv: nn.Conv2d, f2: Tensor, f3: Tensor) -> Tensor:
        """Dropout of the ReLU of a 1×1 convolution over cat(f3, f2): [B, 256, h, w]."""
        x = conv(torch.cat([f3, f2], dim=1))
        return self.reduce_dropout(F.relu(x))

    def _merge(
        self, conv: nn.Conv2d, feature: Tensor, prototype: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """ReLU of a 1×1 convolution over cat(feature, prototype, 10 × prior): [B, 64, h, w]."""
        parts = [feature, prototype[:, :, None, None].expand_as(feature)]
        if prior is not None:
            parts.append(PRIOR_SCALE * prior)
        return F.relu(conv(torch.cat(parts, dim=1)))

    # -- query against supports -------------------------------------------------------------

    def match(
        self,
        query: PreparedQuery,
        supports: PreparedSupport,
        size: tuple[int, int],
        class_index: Tensor | None = None,
    ) -> Output:
        """Prior, pyramid with matching (Eq. 2-7), decoder (Eq. 1), fusion; logits at ``size``."""
        prior = self._prior(query, supports)
        x = self._merge(self.merge_query, query.feature, supports.prototype.mean(dim=1), prior)
        features, correlations = [], []
        stages = zip(self.pyramid, self.matching, supports.stages, strict=True)
        for stage, matching, tokens in stages:
            sequence, stage_size = stage(x)
            joined = matching.join(tokens, self.shot)
            matched, correlation = matching.attend(sequence, joined, stage_size)
            x = to_map(matched if self.stacked else sequence, stage_size)
            features.append(matching.merge_prior(matched, prior, stage_size))
            correlations.append(correlation)
        meta = self.shifted(full_precision(self.decoder(features)))
        if self.ensemble is None:
            return Output(align(meta, size), None, None, prior, correlations)
        assert query.gram is not None and supports.gram is not None and query.base is not None
        factor = self.ensemble.factor(query.gram, supports.gram)
        base = full_precision(query.base)
        final = self.ensemble(meta, base, factor, class_index)
        return Output(align(final, size), align(meta, size), base, prior, correlations)

    @torch.no_grad()
    def _prior(self, query: PreparedQuery, supports: PreparedSupport) -> Tensor:
        """[B, 2, h, w]: channel 0 from f5, channel 1 from f4."""
        pairs = ((query.f5, supports.f5), (query.f4, supports.f4))
        return torch.stack([prior_mask(*pair) for pair in pairs], dim=1)

    # -- training ---------------------------------------------------------------------------

    def losses(self, out: Output, query_mask: Tensor, base_mask: Tensor | None) -> dict[str, Loss]:
        """main (final), meta, distill, base.

        query_mask [B, H, W] with 1 = object, 0, 255; base_mask [B, H, W] with 0..N and 255. The
        base learner is frozen: its loss is reported and cannot be learned from.
        """
        losses = {"main": Loss(segmentation_loss(out.final, query_mask))}
        if out.meta is not None:
            losses["meta"] = Loss(segmentation_loss(out.meta, query_mask))
        if self.distill:
            value = distillation_loss(out.correlations, query_mask, self.temperature)
            losses["distill"] = Loss(value, self.aux_weights[0], over="samples")
        if out.base is not None and base_mask is not None:
            losses["base"] = Loss(segmentation_loss(out.base, base_mask), self.aux_weights[1])
        return losses

    def param_groups(self, cfg: Config) -> list[dict[str, Any]]:
        """Pyramid, matching and decoder at ``base_lr``; reductions and merges at ten times that,
        the fusion at ``fusion_lr`` times (as published 10).
        """
        slow = [*self.pyramid.parameters(), *self.matching.parameters(), *self.decoder.parameters()]
        quick = [self.reduce_query.weight, self.reduce_support.weight]
        quick += [self.merge_query.weight, self.merge_support.weight]
        groups: dict = {("transformer", 1.0): slow, ("reduction", QUICK): quick}
        if self.ensemble is not None:
            apart = "reduction" if cfg.fusion_lr == QUICK else "fusion"
            groups.setdefault((apart, cfg.fusion_lr), []).extend(self.ensemble.optimised())
        return [{"name": n, "params": p, "lr_scale": scale} for (n, scale), p in groups.items()]


def masked_prototype(feature: Tensor, mask: Tensor) -> Tensor:
    """Sum of feature [B, C, h, w] over the resized mask [B, H, W], by its area: [B, C]."""
    with torch.autocast(feature.device.type, enabled=False):
        feature = full_precision(feature)
        weight = align(mask[:, None].to(feature.dtype), size_of(feature)).flatten(2)
        total = torch.matmul(weight, to_tokens(feature))[:, 0]
        return total / (weight.sum(dim=2) + AREA_EPSILON)
