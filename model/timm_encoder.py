"""Any model of timm as a feature pyramid, its last three levels: ``backbone: timm/<name>``.

For HDMNet and its base learner convolutional networks keep stride 16 where they can dilate instead;
transformers give their last levels at one stride, for pictures of any size where they can, and say
which they take where they cannot. HSNet takes networks whose last levels have strides 8, 16 and 32.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from torch import Tensor, nn

from model.layers import Encoder, Features, align, size_of
from model.registry import STRIDES, rounded_up

HEAD_WIDTH = 512  # at most
MULTIPLE = 32  # of pixels: most networks that want sides of a multiple take those of this one
# What families of timm take that have no output stride; the first that a model takes are its own.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
)
# Pictures as a family wants them where timm gives that roughly: mean and deviation of all channels.
# EfficientNet-Lite was trained with (x - 127) / 128.
INPUT = {"tf_efficientnet_lite": (127 / 255, 128 / 255)}


def create(name: str, pretrained: bool = False, stride: int = 16) -> nn.Module:
    """timm's model ``name`` as its last three feature maps, the last of ``stride`` where it can.

    Raises ValueError where timm has no such model, or no features of it.
    """
    common: dict[str, Any] = {
        "pretrained": pretrained,
        "features_only": True,
        "out_indices": (-3, -2, -1),
    }
    for options in ({"output_stride": stride}, *ANY_SIZE):
        try:
            return _padding(timm.create_model(name, **common, **options))
        except (TypeError, NotImplementedError, AssertionError):  # what this family has not
            continue
        except RuntimeError as error:
            if timm.is_model(name):
                raise ValueError(f"backbone timm/{name}: {error}") from error
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)[0]
            raise ValueError(f"timm has no model {name!r}; nearest: timm/{near}") from error
    try:
        return timm.create_model(name, **common)
    except (TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone timm/{name} gives no feature maps ({error})") from error


def _padding(net: nn.Module) -> nn.Module:
    """The network, filling up the patches at a picture's edge where it takes several sizes."""
    for part in net.modules():
        if isinstance(part, PatchEmbed) and part.img_size and not part.strict_img_size:
            vars(part)["dynamic_img_pad"] = True  # declared final
    return net


def maps(net: Any, image: Tensor) -> list[Tensor]:
    """image [B, 3, H, W] -> what the network makes of it, [B, C, h, w] each."""
    found = net(image)
    last = getattr(net, "output_fmt", None) == "NHWC"
    return [x.permute(0, 3, 1, 2) for x in found] if last else found


@cache
def _on_paper(name: str, stride: int) -> nn.Module:
    """The network without numbers, which computes sizes alone."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return create(name, stride=stride).eval()


@cache
def rows(name: str, stride: int, height: int, width: int) -> tuple[int, ...] | None:
    """Of the three feature maps of a picture; None where the network cannot take its size."""
    try:
        net = _on_paper(name, stride)
        kind = next(net.parameters()).dtype
        with torch.no_grad():
            image = torch.empty(1, 3, height, width, dtype=kind, device="meta")
            return tuple(x.shape[2] for x in maps(net, image))
    except Exception:  # whatever a network of timm raises
        return None


class Levels(nn.Module):
    """The last three feature maps of timm's model ``name``, each at its own stride.

    Pictures come with the mean and deviation of ImageNet; ``mean`` and ``std`` (RGB, of values in
    0..1) are those that the network was trained with, to which they are turned.
    """

    net: Any  # what it has beside a module's attributes, timm declares nowhere
    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, stride: int) -> None:
        super().__init__()
        self.named = name, stride
        self.net = create(name, stride=stride).to(memory_format=torch.channels_last)
        self.strides = tuple(self.net.feature_info.reduction())
        given = next((own for family, own in INPUT.items() if name.startswith(family)), None)
        default = self.net.pretrained_cfg
        self.mean, self.std = (
            ((given[0],) * 3, (given[1],) * 3)
            if given
            else (tuple(default["mean"]), tuple(default["std"]))
        )
        ours = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        theirs = torch.tensor(self.mean), torch.tensor(self.std)
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def levels(self, image: Tensor) -> list[Tensor]:
        """image [B, 3, H, W], normalised -> three maps [B, C, h, w]."""
        image = image * self.scale + self.shift
        return maps(self.net, image.contiguous(memory_format=torch.channels_last))

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming a size that works, where the network cannot take this one."""
        if rows(*self.named, height, width):
            return
        below = [max(1, side // MULTIPLE) * MULTIPLE for side in (height, width)]
        above = [-(-side // MULTIPLE) * MULTIPLE for side in (height, width)]
        near = sorted((below, above), key=lambda size: abs(size[0] - height))
        candidates = *near, self.net.pretrained_cfg["input_size"][1:]
        works = next((size for size in candidates if rows(*self.named, *size)), None)
        if works is None:  # on paper it computes nothing
            return
        raise ValueError(
            f"backbone timm/{self.named[0]} cannot take {height}x{width} pictures; "
            f"{works[0]}x{works[1]} works"
        )


class TimmEncoder(Levels, Encoder):
    """f2, f3, f4: the last three levels, f2 and f4 resized to f3 with align_corners=True."""

    def __init__(self, name: str) -> None:
        super().__init__(name, stride=16)
        self.channels = tuple(self.net.feature_info.channels())
        self.reduction = self.strides[1]
        self.head_width = min(HEAD_WIDTH, 1 << (self.channels[2].bit_length() - 1))

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        levels = self.levels(image)
        size = size_of(levels[1])
        return Features(*(align(x, size).contiguous() for x in levels))


class TimmTaps(Levels):
    """HSNet's backbone: one tap a stride. Raises ValueError for a network of other strides."""

    layers = 1, 1, 1

    def __init__(self, name: str) -> None:
        super().__init__(name, stride=STRIDES[-1])
        if self.strides != STRIDES:
            raise ValueError(
                f"HSNet needs features at strides {', '.join(map(str, STRIDES))}; backbone "
                f"timm/{name} has them at {', '.join(map(str, self.strides))}"
            )

    def grids(self, size: int) -> tuple[int, ...]:
        """Rows (columns) at strides 8, 16 and 32 for an input of ``size`` rows (columns)."""
        return rows(*self.named, size, size) or rounded_up(size)

    def forward(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """image [B, 3, H, W], normalised -> one after another (group 0 to 2, tap [B, C, h, w])."""
        yield from enumerate(x.contiguous() for x in self.levels(image))
