"""Small pieces shared by the models: resizing, convolution with batch norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Module)


class Modules(nn.ModuleList, Generic[Part]):
    """A list of modules of one class, for those who check types."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[Part] = ()) -> None: ...

        def __iter__(self) -> Iterator[Part]: ...


class Features(NamedTuple):
    """f2, f3, f4 [B, C, h, w] of encoder stages 2, 3, 4, resized to f3 where they differ.

    h and w are the picture's height and width divided by the encoder's reduction, rounded up.
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor


class Backbone(nn.Module):
    """What turns a picture into features."""

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming a size that works, where it cannot take pictures of this one."""


class Encoder(Backbone):
    """A picture [B, 3, H, W], normalised -> :class:`Features`; what a model must know about it.

    channels: those of f2, f3, f4; reduction: pixels of the picture for a cell of them; head_width:
    channels that suit f5.
    """

    channels: tuple[int, ...]
    reduction: int
    head_width: int


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of [..., h, w]."""
    return x.shape[-2], x.shape[-1]


def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of what a layer of ``stride`` makes of a map of ``size``: rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def align(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] with align_corners=True."""
    if size_of(x) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def align_rows(x: Tensor, size: tuple[int, int], first: int, end: int) -> Tensor:
    """Rows first … end - 1 of ``align(x, size)``."""
    high = x.shape[2] - 1
    at = torch.arange(first, end, dtype=torch.float64, device=x.device)
    at = at * (high / max(1, size[0] - 1))
    low = at.long().clamp(max=high)
    share = (at - low).to(x.dtype)[:, None]
    rows = torch.lerp(x[:, :, low], x[:, :, (low + 1).clamp(max=high)], share)
    return align(rows, (end - first, size[1]))


def plain(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] with align_corners=False."""
    if size_of(x) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of [B, h, w] (any dtype); the corner pixel of each cell is taken."""
    rows = _nearest_index(mask.shape[-2], size[0], mask.device)
    columns = _nearest_index(mask.shape[-1], size[1], mask.device)
    return mask[..., rows[:, None], columns]


def _nearest_index(source: int, target: int, device: torch.device) -> Tensor:
    # As F.interpolate(mode='nearest'): floor(i * scale), computed in float32.
    index = torch.arange(target, dtype=torch.float32, device=device) * (source / target)
    return index.long().clamp(max=source - 1)


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """image [B, C, H, W], zero where mask [B, H, W] is."""
    return image * mask[:, None].to(image.dtype)


def full_precision(x: Tensor) -> Tensor:
    """float32 for half-precision tensors; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class ConvNorm(nn.Module):
    """Convolution followed by batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, **options) -> None:
        super().__init__()
        options.setdefault("bias", False)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, **options)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, h, w] -> [B, O, h', w']."""
        return self.bn(self.conv(x))


def fix_batch_norms(module: nn.Module) -> None:
    """Put every batch norm below ``module`` in evaluation mode (``fix_bn``)."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
