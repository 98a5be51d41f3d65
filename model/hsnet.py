"""HSNet: Hypercorrelation Squeeze for Few-Shot Segmentation (Min, Kang, Cho; ICCV 2021)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.conv4d import KERNELS
from model.fewshot import FewShotModel, Loss, Output, map_tensors, segmentation_loss
from model.hsnet_backbone import ResNetTaps, VGGTaps, build_backbone
from model.hypercorrelation import Support, hypercorrelation, object_weight, resized_mask
from model.layers import align, size_of
from model.registry import REQUIREMENTS, STRIDES, of_one_size, squeezed

if TYPE_CHECKING:
    from model.timm_encoder import TimmTaps
    from util.config import Config

GROUPS = 4  # of every GroupNorm
CHANNELS = (16, 64, 128)
# Of each pyramid level's squeezing block: sides of the kernels, strides over the support.
SQUEEZE = {8: ((5, 5, 3), (4, 4, 2)), 16: ((5, 3, 3), (4, 2, 2)), 32: ((3, 3, 3), (2, 2, 2))}
HYPER_LAYERS = ("all", "shallow", "deep")


def block(
    kernel4d: str, inputs: int, outputs: tuple, sides: tuple, strides: tuple
) -> nn.Sequential:
    """4D convolutions, each with GroupNorm of four groups and ReLU."""
    layers: list[nn.Module] = []
    for channels, side, stride in zip(outputs, sides, strides, strict=True):
        layers += [KERNELS[kernel4d](inputs, channels, side, stride)]
        layers += [nn.GroupNorm(GROUPS, channels), nn.ReLU(inplace=True)]
        inputs = channels
    return nn.Sequential(*layers)


class Learner(nn.Module):
    """Encoder and decoder over the hypercorrelation pyramid (Sec. 4.2 and 4.3).

    ``layers``: for each stride of the pyramid how many features are correlated there. The finest
    stride of a full pyramid is 8.
    """

    def __init__(self, layers: dict[int, int], kernel4d: str = "center_pivot") -> None:
        super().__init__()
        self.strides = sorted(layers, reverse=True)  # coarse to fine
        self.squeeze = nn.ModuleDict(
            {
                str(stride): block(kernel4d, layers[stride], CHANNELS, *SQUEEZE[stride])
                for stride in self.strides
            }
        )
        width = CHANNELS[-1]
        self.mix = nn.ModuleDict(
            {
                str(stride): block(kernel4d, width, (width,) * 3, (3, 3, 3), (1, 1, 1))
                for stride in self.strides[1:]
            }
        )
        self.decoder1 = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, CHANNELS[1], 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.decoder2 = nn.Sequential(
            nn.Conv2d(CHANNELS[1], CHANNELS[1], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(CHANNELS[1], 2, 3, padding=1),
        )

    def forward(self, pyramid: dict[int, Tensor]) -> Tensor:
        """For each stride a hypercorrelation [B, layers, h_q, w_q, h_s, w_s] -> logits
        [B, 2, 2 h, 2 w] at twice the finest query size.
        """
        coarsest, *finer = self.strides
        mixed = self.squeeze[str(coarsest)](pyramid[coarsest])
        for stride in finer:
            squeezed = self.squeeze[str(stride)](pyramid[stride])
            # The query maps of all support positions as one batch of pictures.
            maps = mixed.permute(0, 4, 5, 1, 2, 3)
            maps = align(maps.flatten(0, 2), tuple(squeezed.shape[2:4])).unflatten(
                0, maps.shape[:3]
            )
            mixed = self.mix[str(stride)](maps.permute(0, 3, 4, 5, 1, 2) + squeezed)
        return self.decode(mixed.mean((4, 5)))

    def decode(self, context: Tensor) -> Tensor:
        """[B, 128, h, w] -> logits [B, 2, 2 h, 2 w]."""
        x = self.decoder1(context)
        return self.decoder2(align(x, (2 * x.shape[-2], 2 * x.shape[-1])))


class HSNet(FewShotModel):
    """The whole. Trained with one support an episode; K supports vote.

    ``pyramid``: strides of the levels in use, out of 8, 16, 32. ``hyper_layers``: correlate all
    features of a level, or only its first ('shallow') or last ('deep'). ``kernel4d``:
    'center_pivot', 'separable' or 'full'. ``backbone_lr``: 0, the backbone is frozen; else it is
    fine-tuned with that share of the learning rate. Its batch norms keep their statistics.
    """

    frozen: tuple[str, ...] = ("encoder",)
    train_shot = 1
    requirements = REQUIREMENTS["HSNet"]

    def __init__(
        self,
        encoder: ResNetTaps | VGGTaps | TimmTaps,
        pyramid: tuple[int, ...] = STRIDES,
        hyper_layers: str = "all",
        kernel4d: str = "center_pivot",
        mask_support: bool = True,
        backbone_lr: float = 0.0,
    ) -> None:
        super().__init__()
        if not pyramid or not set(pyramid) <= set(STRIDES):
            raise ValueError(f"pyramid {list(pyramid)} must list strides out of {list(STRIDES)}")
        if hyper_layers not in HYPER_LAYERS:
            raise ValueError(f"hyper_layers {hyper_layers!r} is not one of {HYPER_LAYERS}")
        if kernel4d not in KERNELS:
            raise ValueError(f"kernel4d {kernel4d!r} is not one of {', '.join(KERNELS)}")
        self.pyramid = tuple(sorted(set(pyramid)))
        self.hyper_layers = hyper_layers
        self.mask_support = mask_support
        self.backbone_lr = backbone_lr
        self.encoder = encoder
        counts = dict(zip(STRIDES, encoder.layers, strict=True))
        layers = {s: counts[s] if hyper_layers == "all" else 1 for s in self.pyramid}
        self.learner = Learner(layers, kernel4d)
        if backbone_lr:
            self.frozen = ()
        self.freeze()

    @classmethod
    def from_config(cls, cfg: Config) -> HSNet:
        """Model of a configuration: backbone, stem, width and the options of the class."""
        return cls(
            build_backbone(cfg),
            pyramid=tuple(cfg.pyramid),
            hyper_layers=cfg.hyper_layers,
            kernel4d=cfg.kernel4d,
            mask_support=cfg.mask_support,
            backbone_lr=cfg.backbone_lr,
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming the nearest multiple of 8 that works, where the support grids of
        the pyramid's levels do not come out equal (VGG-16 at 280², say)."""
        self.encoder.check_size(height, width)
        bad = [size for size in (height, width) if not self._fits(size)]
        if not bad:
            return
        candidates = sorted(range(8, bad[0] + 1024, 8), key=lambda size: abs(size - bad[0]))
        works = next(size for size in candidates if self._fits(size))
        raise ValueError(
            f"HSNet cannot take {height}x{width} pictures: at {bad[0]} the support grids of its "
            f"pyramid differ ({self._squeezed(bad[0])}); {works} works"
        )

    def _squeezed(self, size: int) -> dict[int, int]:
        grids = dict(zip(STRIDES, self.encoder.grids(size), strict=True))
        return squeezed({stride: grids[stride] for stride in self.pyramid})

    def _fits(self, size: int) -> bool:
        return size > 0 and of_one_size(self._squeezed(size))

    def _taps(self, image: Tensor) -> Any:
        """The features in use, as (stride, [B, C, h, w])."""
        places = {s: -1 for s in STRIDES}
        last = dict(zip(STRIDES, (n - 1 for n in self.encoder.layers), strict=True))
        for group, tap in self.encoder(image):
            stride = STRIDES[group]
            places[stride] += 1
            wanted = {"shallow": 0, "deep": last[stride]}.get(self.hyper_layers, places[stride])
            if stride in self.pyramid and places[stride] == wanted:
                yield stride, tap

    def train(self, mode: bool = True) -> HSNet:
        """Training mode; the backbone's batch norms keep their statistics."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _learned(self) -> torch.set_grad_enabled:
        """Around the backbone: gradients where it is fine-tuned and they are wanted."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_lr > 0)

    def encode_query(self, image: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """image [B, 3, H, W], normalised -> for each level, fine to coarse, its layers
        [B, C, h, w]."""
        levels: dict[int, list[Tensor]] = {stride: [] for stride in self.pyramid}
        with self._learned():
            for stride, tap in self._taps(image):
                levels[stride].append(tap)
        return tuple(tuple(layers) for layers in levels.values())

    def encode_support(self, image: Tensor, mask: Tensor) -> tuple[Support, ...]:
        """image [B, 3, H, W], normalised; mask [B, H, W] (1 object, 0, 255, or soft in 0..1) ->
        for each level, fine to coarse, a :class:`Support`."""
        weight = self._object_weight(mask, image.dtype)
        supports = []
        for layers in self.encode_query(image):
            resized = resized_mask(weight, size_of(layers[0]))
            supports.append(Support(resized, tuple(tap * resized[:, None] for tap in layers)))
        return tuple(supports)

    def _object_weight(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights [B, H, W] in 0..1; 1 everywhere where masks are not used."""
        weight = object_weight(mask, dtype)
        return weight if self.mask_support else torch.ones_like(weight)

    def match(
        self,
        query: Any,
        supports: Any,
        size: tuple[int, int],
        class_index: Tensor | None = None,
    ) -> Output:
        """Logits for one support; for K supports the vote, as scores 0 and 1 (``class_index``
        changes nothing here). ``correlations`` (evaluation mode only): for each level, finest
        first, the mean over layers and over the positions of the object in all supports,
        [B, h, w]."""
        shots = supports[0].mask.shape[1]
        if self.training and shots != 1:
            raise ValueError(f"HSNet is trained with one support an episode, not {shots}")
        results = []
        for shot in range(shots):
            support = map_tensors(supports, partial(torch.select, dim=1, index=shot))
            results.append(self._one_shot(query, support))
        logits = [align(self.shifted(logits), size) for logits, _ in results]
        final = logits[0] if shots == 1 else vote(logits)
        correlations = []
        for maps in zip(*(maps for _, maps in results), strict=True):
            totals, counts = (torch.stack(part).sum(0) for part in zip(*maps, strict=True))
            correlations.append(totals / counts.clamp(min=1)[:, None, None])
        return Output(final, None, None, None, correlations)

    def _one_shot(self, query: Any, supports: tuple[Support, ...]) -> tuple[Tensor, list]:
        """Logits at twice the finest query size, and in evaluation mode for each level the sum of
        the correlations over support positions (mean over layers) [B, h, w] and the number of
        positions [B]."""
        inputs, maps = {}, []
        for stride, layers, support in zip(self.pyramid, query, supports, strict=True):
            inputs[stride] = hypercorrelation(layers, support.layers)
            if not self.training:
                positions = (support.mask > 0).sum((1, 2))
                maps.append((inputs[stride].mean(1).sum((3, 4)), positions))
        return self.learner(inputs), maps

    def losses(self, out: Output, query_mask: Tensor, base_mask: Tensor | None) -> dict[str, Loss]:
        """Cross-entropy at input size."""
        return {"main": Loss(segmentation_loss(out.final, query_mask))}

    def param_groups(self, cfg: Config) -> list[dict[str, Any]]:
        """The learner at ``base_lr``; a backbone that is fine-tuned at its share of it."""
        groups = [("HSNet", 1.0, self.learner), ("backbone", self.backbone_lr, self.encoder)]
        return [
            {"name": name, "params": list(part.parameters()), "lr_scale": scale}
            for name, scale, part in groups
            if scale
        ]


def vote(logits: list[Tensor]) -> Tensor:
    """Decision of K predictions [B, 2, H, W] as scores 0 and 1, [B, 2, H, W]."""
    return decided(torch.stack([shot.argmax(1) for shot in logits]).sum(0)).to(logits[0].dtype)


def decided(votes: Tensor) -> Tensor:
    """How many of K predictions say object, [B, H, W] -> scores 0 and 1, float32 [B, 2, H, W].

    A pixel's votes are divided by the largest number of votes in its picture (at least 1); it is
    object where that is 0.5 or more.
    """
    most = votes.flatten(1).amax(1).clamp(min=1)[:, None, None]
    decision = (2 * votes >= most).float()
    return torch.stack([1 - decision, decision], dim=1)
