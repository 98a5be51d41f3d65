"""What processes do when one of them has failed."""

from __future__ import annotations

import pytest

from util.runtime import distributed
from util.runtime.errors import FewShotError, Interrupted


@pytest.fixture
def others(monkeypatch):
    """What the other processes give."""

    def give(*found: FewShotError | None) -> None:
        monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, *found])

    return give


def test_all_go_on_where_nothing_failed(others):
    others(None)
    distributed.agree(None)


def test_what_failed_in_another_process_ends_this_one(others):
    others(FewShotError("broken.png"))
    with pytest.raises(FewShotError, match="broken.png"):
        distributed.agree(None)


def test_a_mistake_counts_before_an_interruption(others):
    others(FewShotError("broken.png"))
    with pytest.raises(FewShotError, match="broken.png"):
        distributed.agree(Interrupted("stopped"))
    others(Interrupted("stopped"))
    with pytest.raises(FewShotError, match="own.png"):
        distributed.agree(FewShotError("own.png"))


def test_an_interruption_is_told_by_the_main_process_and_all_have_its_status(others, monkeypatch):
    others(Interrupted("stopped"))
    with pytest.raises(Interrupted, match="stopped"):
        distributed.agree(None)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    with pytest.raises(SystemExit) as ended:
        distributed.agree(None)
    assert ended.value.code == Interrupted.status
