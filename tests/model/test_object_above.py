"""From which probability a place is object (``object_above``)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.fewshot import FewShotModel
from model.hsnet import vote
from tests.models import build, episode, run

HSNET = {
    "arch": "HSNet", "kernel4d": "center_pivot", "hyper_layers": "all", "pyramid": (8, 16, 32),
}  # fmt: skip
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


def shift_of(published, model, data, head):
    """By how much the log-odds of ``model`` lie above those of ``published``; both outputs."""
    with torch.no_grad():
        outputs = run(published, data), run(model, data)
    one, other = (getattr(out, head) for out in outputs)
    return (other[:, 1] - other[:, 0]) - (one[:, 1] - one[:, 0]), outputs


def trained_alike(*models, data):
    """Whether all say the same in training, to the last bit."""
    outputs = []
    for model in models:
        torch.manual_seed(0)
        outputs.append(run(model.train(), data, training=True).final)
    return all(torch.equal(outputs[0], other) for other in outputs)


def test_hdmnet_moves_its_logits_before_the_fusion_and_outside_training_alone():
    published, model = build(), build(object_above=0.2)
    data = episode((64, 64), batch=2)
    moved, (before, after) = shift_of(published, model, data, "meta")
    assert torch.allclose(moved, torch.tensor(4.0).log(), atol=1e-4)
    assert not torch.allclose(before.final, after.final, atol=1e-3)  # the fusion has seen it
    assert trained_alike(published, model, data=data)


def test_hsnet_moves_each_supports_logits_before_the_vote_and_outside_training_alone():
    published, model = build(**HSNET), build(**HSNET, object_above=0.2)
    data = episode((64, 64), batch=2)
    moved, _ = shift_of(published, model, data, "final")
    assert torch.allclose(moved, torch.tensor(4.0).log(), atol=1e-4)
    several = episode((64, 64), batch=2, shot=3)
    with torch.no_grad():
        voted = run(model, several).final
        each = [
            run(model, several | {n: several[n][:, k : k + 1] for n in SUPPORTS}).final
            for k in range(3)
        ]
    assert torch.equal(voted, vote(each))
    assert trained_alike(published, model, data=data)
