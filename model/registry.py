"""The methods by name, and what each requires of a configuration.

No torch is imported here: a configuration is completed and checked before there is a model, and
where there never is one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from util.config.schema import Settings

# Name -> class, or "module:class", which is imported when a model is built.
ARCHITECTURES: dict[str, str | type[Any]] = {
    "HDMNet": "model.hdmnet:HDMNet",
    "HSNet": "model.hsnet:HSNet",
    "PSPNet": "model.pspnet:PSPNet",
}


def _any_size(cfg: Settings, size: int) -> bool:
    return True


@dataclass(frozen=True)
class Requirements:
    """What a configuration must know of a method: ``requirements`` of its class.

    optimizer: the default one; base_learner: the architecture that stage 1 trains for it; is_base:
    whether it is such a one; joint_batch: whether its paper counts the batch of all GPUs together;
    options: which it reads of the keys that not every method reads, None for all; fits: whether it
    can take pictures with sides of so many pixels, as far as this is known before it is built.
    """

    optimizer: str = "adamw"
    base_learner: str | None = None
    is_base: bool = False
    joint_batch: bool = False
    options: tuple[str, ...] | None = None
    fits: Callable[[Settings, int], bool] = _any_size


STRIDES = (8, 16, 32)  # of the features that HSNet can correlate


def rounded_up(size: int) -> tuple[int, ...]:
    """Rows (columns) at strides 8, 16 and 32 for a picture of ``size`` rows (columns), as ResNets
    and timm's networks have them."""
    return tuple(-(-size // stride) for stride in STRIDES)


def squeezed(grids: Mapping[int, int]) -> dict[int, int]:
    """Sides of HSNet's support grids, stride -> side, behind its squeezing blocks: these divide a
    grid of stride s by 256 / s in all, rounding up."""
    return {stride: -(-side // (256 // stride)) for stride, side in grids.items()}


def of_one_size(grids: Mapping[int, int]) -> bool:
    """Whether grids can be mixed: all have one side, and a position."""
    return len(set(grids.values())) == 1 and min(grids.values()) > 0


def _fits_hdmnet(cfg: Settings, size: int) -> bool:
    """The finest grid must fill one window of the first self-attention's reduction, 4x4."""
    return size > 3 * (16 if cfg.backbone == "vgg16" else 8)


def _fits_hsnet(cfg: Settings, size: int) -> bool:
    """The grids of the backbone are rounded down in VGG and up in ResNets."""
    vgg = cfg.backbone == "vgg16"
    return of_one_size(squeezed({s: size // s if vgg else -(-size // s) for s in cfg.pyramid}))


REQUIREMENTS = {
    "HDMNet": Requirements(
        base_learner="PSPNet",
        options=(
            "mask_support", "stages", "matching", "hierarchy", "ensemble", "block_relu", "fidelity",
            "kshot_trans_dim", "distill", "temperature", "own_class", "fusion_lr",
            "object_above",
        ),
        fits=_fits_hdmnet,
    ),
    "HSNet": Requirements(
        optimizer="adam",
        joint_batch=True,
        options=(
            "mask_support", "kernel4d", "hyper_layers", "pyramid", "backbone_lr", "object_above",
        ),
        fits=_fits_hsnet,
    ),
    "PSPNet": Requirements(optimizer="sgd", is_base=True, options=("freeze_encoder",)),
}  # fmt: skip


def method(arch: str) -> type[Any]:
    """The class of an architecture."""
    found = ARCHITECTURES[arch]
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def requirements(arch: str) -> Requirements:
    """Those of an architecture; of a name that nobody knows, what most methods need.

    One that is not in :data:`REQUIREMENTS` is asked itself, and imported for it.
    """
    if arch in REQUIREMENTS or arch not in ARCHITECTURES:
        return REQUIREMENTS.get(arch, Requirements())
    return getattr(method(arch), "requirements", Requirements())


def reads(arch: str, key: str) -> bool:
    """Whether a configuration's key means something to an architecture."""
    options = requirements(arch).options
    if options is None or key in options:
        return True
    return not any(key in (known.options or ()) for known in REQUIREMENTS.values())
