"""What a configuration must know of an architecture before any model is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


def _pyramid_fits(cfg: Any, size: int) -> bool:
    """HDMNet: the finest grid must fill one window of the first self-attention's reduction, 4x4."""
    return size > 3 * (16 if cfg.backbone == "vgg16" else 8)


def _hypercorrelation_fits(cfg: Any, size: int) -> bool:
    """HSNet: the squeezed support grids of the pyramid's levels must be equally large.

    The backbone's grids have size / 8, 16, 32 positions, rounded up in ResNets and down in VGG; the
    squeezing blocks divide them by 32, 16 and 8, rounding up.
    """
    squeezed = set()
    for stride in cfg.pyramid:
        grid = size // stride if cfg.backbone == "vgg16" else -(-size // stride)
        squeezed.add(-(-grid // (256 // stride)))
    return len(squeezed) == 1 and 0 not in squeezed


class Facts(NamedTuple):
    """What the configuration must know about an architecture beyond its registered name."""

    optimizer: str = "adamw"
    base_learner: str | None = None  # the architecture that stage 1 trains for it
    is_base: bool = False
    fits: Callable[[Any, int], bool] = lambda cfg, size: True


ARCHITECTURES = {
    "HDMNet": Facts(base_learner="PSPNet", fits=_pyramid_fits),
    "HSNet": Facts(optimizer="adam", fits=_hypercorrelation_fits),
    "PSPNet": Facts(optimizer="sgd", is_base=True),
}


def facts_of(arch: str) -> Facts:
    """What is known of an architecture; of one's own, what most need."""
    return ARCHITECTURES.get(arch, Facts())
