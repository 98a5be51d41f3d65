"""The comparisons of tests/equality.py see what they are there to see."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.equality import Decided, bits, same_counts, same_labels, same_sums, same_weights
from util.evaluate.metrics import BinaryCounts


def test_bits() -> None:
    one = {"a": [torch.ones(2), None], "b": 3}
    assert bits(one, {"a": [torch.ones(2), None], "b": 3})
    nearly = torch.tensor([1, 1 + 1e-7])
    assert not bits(one, {"a": [nearly, None], "b": 3})
    assert not bits(torch.ones(2), torch.ones(2).double())


@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_sums(dtype, most) -> None:
    values = torch.tensor([10.0, -3.0], dtype=dtype)
    assert same_sums(values, values + 9 * most) and not same_sums(values, values + 11 * most)
    assert same_weights({"w": values}, {"w": values + most}, most)
    assert not same_weights({"w": values}, {"w": values * (1 + 2 * most)}, most)


def test_labels_may_differ_where_logits_are_close() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 0.5]], [[1e-6, 1.0, 0.5]]]])
    labels = logits.argmax(1)
    assert same_labels(labels, labels, logits)
    for place, allowed in enumerate((True, False, True)):
        other = labels.clone()
        other[0, 0, place] ^= 1
        assert same_labels(labels, other, logits) is allowed


def result(margins, found) -> SimpleNamespace:
    """One evaluated episode of three pixels, ``margins`` in favour of the object."""
    values = torch.tensor([[[0.0] * 3], [margins]], dtype=torch.float64)
    counts = BinaryCounts(1, [1])
    target = torch.ones(1, 1, 3, dtype=torch.uint8)
    counts.add([0], [1], torch.tensor([[[found]]]), target)
    decided = {("final", 0, 0): Decided(values, (values[1] - values[0]).abs()[None])}
    tally = SimpleNamespace(counts=counts, base=None, prior=None, decided=decided)
    return SimpleNamespace(counts=tally, runs=[sum(found)], baselines=None)


def test_counts_differ_by_what_is_close_only() -> None:
    clear, close = [1.0, -1.0, 2.0], [1.0, -1.0, 1e-12]
    one = result(clear, [True, False, True])
    assert same_counts(one, result(clear, [True, False, True]))
    assert not same_counts(one, result(clear, [True, False, False]))
    assert not same_counts(one, result([1.0, -1.0, 2.1], [True, False, True]))
    one = result(close, [True, False, True])
    assert same_counts(one, result([1.0, -1.0, -1e-12], [True, False, False]))
    assert not same_counts(one, result([1.0, -1.0, -1e-12], [False, False, False]))
    assert not same_counts(one, result(close, [True, False, False])), "equal values, equal labels"
    other = result(close, [True, False, True])
    other.runs = [0]
    assert not same_counts(one, other), "figures follow from counts"
