"""From which probability a place is object (``object_above``)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.fewshot import FewShotModel
from model.hsnet import vote
from tests.models import build, episode, run

SUPPORTS = ("support_images", "support_masks")


@given(st.floats(0.01, 0.99), st.lists(st.floats(-20, 20), min_size=1))
def test_a_place_is_object_where_it_is_likelier_than_that(above, odds):
    model = FewShotModel().eval()
    model.object_above = above
    odds = torch.tensor(odds, dtype=torch.float64)
    moved = model.shifted(torch.stack([odds / 3, odds * 4 / 3])[None, :, None])[0, :, 0]
    clear = (odds.sigmoid() - above).abs() > 1e-9
    assert ((moved[1] > moved[0]) == (odds.sigmoid() > above))[clear].all()
    assert torch.equal(moved[0], odds / 3)


@pytest.mark.parametrize("arch", ["HDMNet", "HSNet"])
def test_asked_for_it_moves_the_logits_outside_training_alone(arch):
    changes = {"arch": arch}
    if arch == "HSNet":
        changes |= {"kernel4d": "center_pivot", "hyper_layers": "all", "pyramid": (8, 16, 32)}
    published, model = build(**changes), build(**changes, object_above=0.2)
    data = episode((64, 64), batch=2)
    with torch.no_grad():
        before, after = run(published, data), run(model, data)
    one, other = (out.final if out.meta is None else out.meta for out in (before, after))
    moved = (other[:, 1] - other[:, 0]) - (one[:, 1] - one[:, 0])
    assert torch.allclose(moved, torch.tensor(4.0).log(), atol=1e-4)
    if arch == "HDMNet":  # the fusion has seen it
        assert not torch.allclose(before.final, after.final, atol=1e-3)
    else:  # each support's answer before the vote
        several = episode((64, 64), batch=2, shot=3)
        with torch.no_grad():
            voted = run(model, several).final
            each = [
                run(model, several | {n: several[n][:, k : k + 1] for n in SUPPORTS}).final
                for k in range(3)
            ]
        assert torch.equal(voted, vote(each))
    trained = []
    for each in (published, model):
        torch.manual_seed(0)
        trained.append(run(each.train(), data, training=True).final)
    assert torch.equal(*trained)
