"""Any model of timm as a feature pyramid, its last three levels: ``backbone: timm/<name>``.

Convolutional networks keep stride 16 where they can dilate instead; transformers give their last
levels at one stride, for pictures of any size where they can.
"""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from model.layers import Encoder, Features, align, size_of

HEAD_WIDTH = 512  # at most
# Each family of timm takes some of these; the first that a model takes are its own.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"output_stride": 16},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
)


# Pictures as a family wants them where timm gives that roughly: mean and deviation of all channels.
# EfficientNet-Lite was trained with (x - 127) / 128.
INPUT = {"tf_efficientnet_lite": (127 / 255, 128 / 255)}


def create(name: str, pretrained: bool = False) -> nn.Module:
    """timm's model ``name`` as its last three feature maps.

    Raises ValueError where timm has no such model, or no features of it.
    """
    common: dict[str, Any] = {
        "pretrained": pretrained,
        "features_only": True,
        "out_indices": (-3, -2, -1),
    }
    for options in OPTIONS:
        try:
            return timm.create_model(name, **common, **options)
        except (TypeError, NotImplementedError):  # an option that this family has not
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


class TimmEncoder(Encoder):
    """f2, f3, f4: the last three levels, f2 and f4 resized to f3 with align_corners=True.

    Pictures come with the mean and deviation of ImageNet; ``mean`` and ``std`` (RGB, of values in
    0..1) are those that the network was trained with, to which they are turned.
    """

    net: Any  # what it has beside a module's attributes, timm declares nowhere
    scale: Tensor
    shift: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = create(name).to(memory_format=torch.channels_last)
        self.channels = tuple(self.net.feature_info.channels())
        self.reduction = self.net.feature_info.reduction()[1]
        self.head_width = min(HEAD_WIDTH, 1 << (self.channels[2].bit_length() - 1))
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

    def forward(self, image: Tensor) -> Features:
        """image [B, 3, H, W], normalised."""
        image = image * self.scale + self.shift
        maps = self.net(image.contiguous(memory_format=torch.channels_last))
        if getattr(self.net, "output_fmt", None) == "NHWC":
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        size = size_of(maps[1])
        return Features(*(align(x, size).contiguous() for x in maps))
