"""Random numbers as functions of what they are for, never of what was drawn before.

Everything random in training depends on (seed, epoch, item) or (seed, iteration, place in the
batch) alone. So there is no random state to carry around: a resumed run, another number of
workers, a validation in between, or the same batch spread over more processes draw the same
numbers.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

ORDER, DROPOUT, INIT = 101, 102, 103  # what a number is drawn for; part of its key


def mix(*key: int) -> int:
    """A well spread 63-bit seed from non-negative integers."""
    low, high = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def seed_everything(seed: int) -> None:
    """Seed the global generators (weight initialisation) and ask cuDNN for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(mix(seed, INIT))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def use_tf32(wanted: bool) -> None:
    """Allow or forbid TF32 in float32 products and convolutions on GPUs."""
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted


def epoch_order(items: int, needed: int, seed: int, epoch: int) -> np.ndarray:
    """[needed] item numbers of one epoch: a permutation, repeated (newly drawn) when too short."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, ORDER])))
    rounds = -(-needed // items)
    return np.concatenate([generator.permutation(items) for _ in range(rounds)])[:needed]


class DropoutStream:
    """One generator for each sample of the running batch; all dropout layers draw from them."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []

    def start(self, device: torch.device, seed: int, iteration: int, places: range) -> None:
        """Begin a forward pass of samples that stand at ``places`` of the whole step's batch."""
        torch.manual_seed(mix(seed, iteration, DROPOUT, places.start))  # for a model's own draws
        self.generators = [
            torch.Generator(device).manual_seed(mix(seed, iteration, DROPOUT, place))
            for place in places
        ]


class SampleDropout(nn.Dropout):
    """Dropout whose mask for a sample does not depend on which others share its batch.

    x [B * r, ...] with the r rows of a sample beside each other (r = 1 for queries, K for
    supports); ``whole_channels``: Dropout2d, x [B * r, C, h, w].
    """

    def __init__(self, p: float, whole_channels: bool, stream: DropoutStream) -> None:
        super().__init__(p)
        self.whole_channels = whole_channels
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        generators = self.stream.generators
        rows, rest = divmod(len(x), len(generators))
        if rest:
            raise ValueError(f"{len(x)} rows of features for {len(generators)} samples")
        shape = (rows, x.shape[1], 1, 1) if self.whole_channels else (rows, *x.shape[1:])
        kept = [
            torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p, generator=g)
            for g in generators
        ]
        return x * torch.cat(kept).div_(1 - self.p)


def per_sample_dropout(model: nn.Module) -> DropoutStream:
    """Replace every Dropout and Dropout2d of ``model`` in place; the stream that feeds them."""
    stream = DropoutStream()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.Dropout, nn.Dropout2d):
                dropout = SampleDropout(child.p, type(child) is nn.Dropout2d, stream)
                setattr(module, name, dropout.train(child.training))
    return stream
