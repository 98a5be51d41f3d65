"""Integer counts behind the intersection over union, and what is reported from them.

Everything is counted in int64 on the model's device; nothing is read back before the end. Counts
from several processes are added up exactly (:meth:`BinaryCounts.reduce`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

from util.runtime.distributed import reduce_counts

# Columns of the last axis of BinaryCounts.counts.
HIT, PREDICTED, OBJECT, VALID = range(4)


def fraction(numerator: Tensor, denominator: Tensor) -> Tensor:
    """float64 quotient of integer tensors; NaN where the denominator is 0."""
    quotient = numerator.double() / denominator.double()
    return torch.where(denominator > 0, quotient, torch.nan)


def mean_of_defined(values: Tensor) -> float:
    """Mean over the entries that are not NaN; NaN when there are none."""
    return float(values[~values.isnan()].mean()) if values.numel() else math.nan


class BinaryCounts:
    """Object / background counts per run, class and prediction head.

    counts: int64 [runs, classes, heads, 4] = pixels of (prediction and object), prediction,
    object, and all pixels that are not ignored. Intersection and union of object and background
    follow from these four.
    """

    def __init__(
        self,
        runs: int,
        classes: Sequence[int],
        heads: Sequence[str] = ("final",),
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes, self.heads = tuple(classes), tuple(heads)
        self.row = {class_id: i for i, class_id in enumerate(self.classes)}
        shape = (runs, len(self.classes), len(self.heads), 4)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(
        self, runs: Sequence[int], class_ids: Sequence[int], found: Tensor, target: Tensor
    ) -> Tensor:
        """Count B predictions.

        found: bool [B, heads, H, W], True = object; target: uint8 [B, H, W] with 1 = object,
        0 = rest, 255 = ignore. Returns the B rows that were added, int64 [B, heads, 4].
        Indices are Python integers: no tensor is copied to the device, none is waited for.
        """
        valid = (target != 255)[:, None]
        true = (target == 1)[:, None]
        rows = torch.stack(
            [
                (found & true).sum((-2, -1)),
                (found & valid).sum((-2, -1)),
                true.sum((-2, -1)).expand(-1, found.shape[1]),
                valid.sum((-2, -1)).expand(-1, found.shape[1]),
            ],
            dim=-1,
        )
        for run, class_id, row in zip(runs, class_ids, rows, strict=True):
            self.counts[run, self.row[class_id]] += row
        return rows

    def class_iou(self, head: str = "final") -> Tensor:
        """IoU of each class: float64 [runs, classes]; NaN where a class has no pixel at all."""
        return object_iou(self.counts[:, :, self.heads.index(head)])

    def miou(self, head: str = "final") -> list[float]:
        """For each run the mean over its classes of Σ intersection / Σ union, in [0, 1]."""
        return [mean_of_defined(row) for row in self.class_iou(head)]

    def fb_iou(self, head: str = "final") -> list[float]:
        """For each run the mean of object and background IoU over all its episodes, in [0, 1]."""
        return fb_iou(self.counts[:, :, self.heads.index(head)])

    def everything_found(self) -> Tensor:
        """Counts [runs, classes, 4] of a prediction that calls every pixel object."""
        counts = self.counts[:, :, 0].clone()
        counts[..., HIT], counts[..., PREDICTED] = counts[..., OBJECT], counts[..., VALID]
        return counts

    def reduce(self) -> None:
        """Add the counts of all processes."""
        self.counts = reduce_counts(self.counts)


def object_iou(counts: Tensor) -> Tensor:
    """Object IoU of counts [..., 4]: float64 [...], NaN where the union is empty."""
    union = counts[..., PREDICTED] + counts[..., OBJECT] - counts[..., HIT]
    return fraction(counts[..., HIT], union)


def fb_iou(counts: Tensor) -> list[float]:
    """FB-IoU of counts [runs, classes, 4], summed over the classes first."""
    total = counts.sum(1)
    union = total[:, PREDICTED] + total[:, OBJECT] - total[:, HIT]
    background = fraction(total[:, VALID] - union, total[:, VALID] - total[:, HIT])
    both = torch.stack([object_iou(total), background], dim=1)
    return [mean_of_defined(row) for row in both]


class ClassCounts:
    """Counts of a segmentation into classes 0..N per run, for the base learner.

    counts: int64 [runs, 3, N + 1] = pixels of (prediction and label), prediction, label.
    """

    def __init__(self, runs: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        shape = (runs, 3, num_classes)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def count(self, predicted: Tensor, target: Tensor) -> Tensor:
        """int64 [3, N + 1] of class maps [...] with values 0..N, and 255 = ignore in ``target``."""
        size = self.counts.shape[-1]
        target = target.flatten().long()
        ignored = target == 255
        predicted = predicted.flatten().long()

        def histogram(values: Tensor, left_out: Tensor) -> Tensor:
            # Not bincount: on a GPU that waits for the greatest value.
            bins = torch.zeros(size + 1, dtype=torch.int64, device=values.device)
            values = values.masked_fill(left_out, size)
            return bins.scatter_add_(0, values, torch.ones_like(values))[:size]

        return torch.stack(
            [
                histogram(target, ignored | (predicted != target)),
                histogram(predicted, ignored),
                histogram(target, ignored),
            ]
        )

    def add(self, run: int, predicted: Tensor, target: Tensor) -> None:
        """Count one prediction (or batch) in ``run``; see :meth:`count`."""
        self.counts[run] += self.count(predicted, target)

    def class_iou(self) -> Tensor:
        """float64 [runs, N + 1]; NaN where a class is neither predicted nor there."""
        hit, predicted, label = self.counts.unbind(1)
        return fraction(hit, predicted + label - hit)

    def miou(self, background: bool = False) -> list[float]:
        """For each run the mean IoU over the classes 1..N (0..N with ``background``)."""
        return [mean_of_defined(row) for row in self.class_iou()[:, 0 if background else 1 :]]

    def reduce(self) -> None:
        """Add the counts of all processes."""
        self.counts = reduce_counts(self.counts)


class ThresholdCounts:
    """Histograms of score maps over object and background, for a search over thresholds.

    counts: int64 [runs, classes, maps, STEPS, 2]: how many valid background (0) and object (1)
    pixels have a score in bin k, which begins at -1 + k / 200. Scores are clamped to [-1, 1].
    """

    STEPS = 401

    def __init__(
        self, runs: int, classes: Sequence[int], maps: int, device: torch.device | str = "cpu"
    ) -> None:
        self.row = {class_id: i for i, class_id in enumerate(classes)}
        shape = (runs, len(self.row), maps, self.STEPS, 2)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, run: int, class_id: int, scores: Tensor, target: Tensor) -> None:
        """scores: float [maps, H, W]; target: uint8 [H, W], 1 = object, 0 = rest, 255 = ignore."""
        maps = scores.shape[0]
        bins = ((scores.float().clamp(-1, 1) + 1) * 200).floor().long().flatten(1)
        target = target.flatten()
        slot = bins * 2 + (target == 1)
        slot = slot.masked_fill(target == 255, self.STEPS * 2)
        histogram = torch.zeros(
            maps, self.STEPS * 2 + 1, dtype=torch.int64, device=self.counts.device
        )
        histogram.scatter_add_(1, slot, torch.ones_like(slot))
        self.counts[run, self.row[class_id]] += histogram[:, :-1].unflatten(1, (self.STEPS, 2))

    def at_every_threshold(self) -> Tensor:
        """int64 [maps, STEPS, runs, classes, 4]: counts of "score ≥ threshold" for each one."""
        found = self.counts.flip(3).cumsum(3).flip(3)
        total = self.counts.sum(3, keepdim=True).expand_as(found)
        columns = [found[..., 1], found.sum(-1), total[..., 1], total.sum(-1)]
        return torch.stack(columns, dim=-1).permute(2, 3, 0, 1, 4)

    def best(self) -> tuple[int, float, Tensor]:
        """(map, threshold, counts [runs, classes, 4]) with the highest mIoU, mean over runs."""
        counts = self.at_every_threshold()
        miou = object_iou(counts).nanmean(-1).nanmean(-1)
        best = int(miou.nan_to_num(-1).argmax())
        chosen, step = divmod(best, self.STEPS)
        return chosen, -1 + step / 200, counts[chosen, step]

    def reduce(self) -> None:
        """Add the counts of all processes."""
        self.counts = reduce_counts(self.counts)


def spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(mean, standard deviation, half width of the 95 % interval of the mean) over runs.

    Sample standard deviation and Student's t, since runs are few; None for both with one run.
    """
    sample = torch.tensor(list(values), dtype=torch.float64)
    runs, mean = len(sample), float(sample.mean())
    if runs < 2:
        return mean, None, None
    deviation = float(sample.std(unbiased=True))
    return mean, deviation, float(stdtrit(runs - 1, 0.975)) * deviation / runs**0.5
