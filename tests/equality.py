"""The three equalities that are promised (docs/speed.md, *What equal means*), for every test.

- :func:`bits`: the same computation twice, on one machine with as many threads.
- :func:`same_sums`, :func:`same_labels`, :func:`same_counts`: the same sums in another order, as
  another batch, form or number of processes adds them up.
- An approximation has its measured error, stated where it is tested.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from util.evaluate.tally import Tally

LIMIT = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest value
BIN = 1e-6  # thresholds on the prior are compared in float32


def bits(one: Any, other: Any) -> bool:
    """Equal to the last bit: tensors, and containers of them."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(bits(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(bits, one, other))
    return one == other


def limit(values: Tensor) -> float:
    """How far rounding may move these values."""
    return LIMIT[values.dtype] * max(1.0, float(values.detach().abs().max()))


def same_sums(one: Tensor, other: Tensor) -> bool:
    """Equal but for the order of sums."""
    assert one.shape == other.shape and one.dtype == other.dtype
    return float((one - other).detach().abs().max()) <= limit(other)


def same_labels(one: Tensor, other: Tensor, logits: Tensor) -> bool:
    """Labels [B, H, W] differ only where the two largest of ``logits`` [B, C, H, W] are close."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return bool(((one == other) | (first - second <= limit(logits))).all())


# ------------------------------------------------------------------------------- evaluations


class Decided(NamedTuple):
    """What was compared for each pixel, [C, H, W], and how far it was from another outcome."""

    values: Tensor
    margin: Tensor


def noting(add: Callable, tallies: list[Tally]) -> Callable:
    """``Tally.add`` that notes everything it decides on ``tally.decided``, and new tallies.

    {(kind, run, episode): Decided}; the base learner's, which counts once a query and run, under
    ("base", run, query).
    """

    def add_and_note(self: Tally, tasks, out, query, weights: Counter) -> None:
        add(self, tasks, out, query, weights)
        if self not in tallies:
            tallies.append(self)
        noted = self.__dict__.setdefault("decided", {})
        for kind, logits in (("final", out.final), ("meta", out.meta)):
            if logits is not None:
                for task, values in zip(tasks, self._scored(logits, query), strict=True):
                    _note(noted, (kind, task.run, task.episode.index), values)
        if self.base is not None:
            for run in weights:
                values = self._scored(out.base[:1], query)[0]
                _note(noted, ("base", run, tasks[0].episode.query), values)
        if self.prior is not None:
            maps = torch.cat([out.prior, out.prior.mean(1, keepdim=True)], dim=1)
            maps = self._scored(self._enlarged(maps, tuple(out.final.shape[-2:])), query)
            for task, values in zip(tasks, maps, strict=True):
                bins = (values.double() + 1) * 200
                margin = (bins - bins.round()).abs() / 200
                key = ("prior", task.run, task.episode.index)
                noted[key] = Decided(values.clone(), margin)

    return add_and_note


def _note(noted: dict, key: tuple, values: Tensor) -> None:
    first, second = values.topk(2, dim=0).values
    noted[key] = Decided(values.clone(), (first - second)[None])


def same_counts(one: Any, other: Any) -> bool:
    """:func:`same_tallies` of two results of evaluations, whose figures follow from the counts."""
    moved = any(differences(one.counts, other.counts).values())
    figures = moved or (one.runs == other.runs and one.baselines == other.baselines)
    return same_tallies(one.counts, other.counts) and figures


def same_tallies(one: Tally, other: Tally) -> bool:
    """What two evaluations counted that add up in different orders (with fixture ``decided``).

    Everything compared is the same but for that order; counts differ by no more than there are
    pixels whose two outcomes were that close.
    """
    noted, others = one.decided, other.decided
    assert noted.keys() == others.keys() and noted
    open_: Counter[str] = Counter()
    for key, (values, margin) in noted.items():
        again = others[key].values
        if not same_sums(values, again):
            return False
        near = margin <= max(2 * limit(values), BIN if key[0] == "prior" else 0)
        moved = (values != again).any(0) if key[0] == "base" else values != again
        times = len(noted) if key[0] == "base" else 1  # counts once for each episode about it
        open_[key[0]] += int((near & moved).sum()) * times
    return all(moved <= open_[kind] for kind, moved in differences(one, other).items())


def differences(one: Tally, other: Tally) -> dict[str, int]:
    """Largest difference of a count, by what is counted."""
    found = defaultdict(int)
    for head, name in enumerate(one.counts.heads):
        found[name] = _most(one.counts.counts[:, :, head], other.counts.counts[:, :, head])
    for name in ("base", "prior"):
        tables = getattr(one, name), getattr(other, name)
        assert (tables[0] is None) == (tables[1] is None)
        if tables[0] is not None:
            found[name] = _most(*(table.counts for table in tables))
    return found


def _most(one: Tensor, other: Tensor) -> int:
    return int((one - other).abs().max())


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor], limit: float) -> bool:
    """State dicts of two trainings: each tensor within ``limit`` of its norm."""
    assert one.keys() == other.keys()
    return worst(one, other)[0] <= limit


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """Largest relative difference (norms) of a floating-point tensor, and its name."""
    floats: Iterable[str] = (name for name, tensor in one.items() if tensor.is_floating_point())
    return max(
        (float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-3)), n) for n in floats
    )
