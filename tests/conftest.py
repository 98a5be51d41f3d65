"""What tests share: evaluations that note how clearly they decided."""

from __future__ import annotations

import pytest

from tests.equality import noting
from util.evaluate import Evaluator
from util.evaluate.tally import Tally


@pytest.fixture
def decided(monkeypatch) -> list[Tally]:
    """Evaluations note what they decide, for :func:`tests.equality.same_counts`; their tallies."""
    tallies: list[Tally] = []
    monkeypatch.setattr(Tally, "add", noting(Tally.add, tallies))
    return tallies


@pytest.fixture
def in_double(monkeypatch, decided) -> None:
    """Evaluations hand pictures to their model in float64."""
    on_device = Evaluator.on_device
    monkeypatch.setattr(Evaluator, "on_device", lambda *args: on_device(*args).double())
