"""Generalized few-shot evaluation: base classes and the novel one in one labelling."""

from __future__ import annotations

import json

import pytest
import torch

from tests.equality import bits
from tests.evaluate.test_evaluate import ColourModel, evaluate, evaluator_of, make_data
from tests.models import build
from util.config import load_config
from util.data.transform import restore
from util.evaluate import METRICS, plan_tasks
from util.evaluate.generalized import GENERALIZED, GeneralizedCounts, fuse
from util.runtime.errors import FewShotError

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("tiny"))


def test_the_two_fusions_by_hand():
    """Base labels 0, 1, 2; the novel class is number 3 and must be above 0.9."""
    base = torch.tensor([[0, 0, 1, 1, 2]])
    probability = torch.tensor([[0.95, 0.90, 0.95, 0.2, 1.0]])
    assert fuse(probability, base, 3, "final", 0.9).tolist() == [[3, 0, 3, 1, 3]]
    assert fuse(probability, base, 3, "base", 0.9).tolist() == [[3, 0, 1, 1, 2]]
    assert fuse(probability, base, 3, "final", 0.1).tolist() == [[3, 3, 3, 3, 3]]


def test_means_by_hand():
    """Two base classes, novel classes 7 and 9; 8 pixels a run, one of them ignored."""
    counts = GeneralizedCounts(2, 3, (7, 9))
    seven, nine = counts.number[7], counts.number[9]
    assert (seven, nine) == (3, 4)
    counts.add(0, torch.tensor([1, 1, 2, 0, 3, 3, 0, 3]), torch.tensor([1, 2, 2, 0, 3, 3, 3, 255]))
    counts.add(0, torch.tensor([nine, 0]), torch.tensor([nine, nine]))
    counts.add(1, torch.tensor([1]), torch.tensor([1]))
    means = counts.means()
    assert tuple(means) == GENERALIZED
    assert means["gfss_base"] == [pytest.approx((1 / 2 + 1 / 2) / 2), 1.0]
    assert means["gfss_novel"][0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert means["gfss_all"][0] == pytest.approx((1 / 2 + 1 / 2 + 2 / 3 + 1 / 2) / 4)
    assert means["gfss_novel"][1] != means["gfss_novel"][1], "no novel class: not a number"


@pytest.mark.parametrize("merge", ["final", "base"])
def test_the_walk_counts_what_the_naive_loop_counts(config, merge):
    """One episode after the other in both: the same computation, so the same counts."""
    options = ("merge", merge, "merge_tau", 0.5, "batch_size_val", 1)
    model = ColourModel()
    walk = evaluate(config, model, *options, generalized=True)
    naive = evaluate(config, model, *options, generalized=True, engine="naive")
    general = walk.counts.general.counts
    assert bits(general, naive.counts.general.counts)
    assert (general[:, :2, 4:].sum((0, 2)) > 0).all(), "no novel class was found: the test is blind"
    assert walk.mean == naive.mean and set(walk.mean) == {*METRICS, *GENERALIZED}


def test_counts_are_those_of_the_maps_written_out(config):
    """Every episode by hand from the model's own output, at the picture's own size."""
    evaluator = evaluator_of(config, "merge_tau", 0.4, "batch_size_val", 1)
    model = ColourModel()
    result = evaluator.run(model, [3], 6, progress=False, generalized=True)
    expected = torch.zeros_like(result.counts.general.counts)
    lut = torch.from_numpy(evaluator.cfg.fold.lut()).long()
    for task in plan_tasks(evaluator.index, (4, 5, 6), 1, [3], 6)[0]:
        query = evaluator.dataset[task.episode.query]
        support = evaluator.dataset[task.episode.supports[0]]
        class_id = task.episode.class_id
        mask = (support.mask == class_id).to(torch.uint8)
        with torch.no_grad():
            out = model(evaluator.on_device(query), evaluator.on_device(support)[None],
                        mask[None, None])  # fmt: skip
        size = tuple(query.target.shape)
        found = restore(out.final, query.content, size).softmax(1)[0, 1] > 0.4
        labels = restore(out.base, query.content, size)[0].argmax(0)
        number = 4 + (4, 5, 6).index(class_id)
        labels[found] = number
        truth = lut[query.target.long()]
        truth[query.target == class_id] = number
        for column in range(7):
            valid = truth != 255
            hit = ((labels == column) & (truth == column)).sum()
            counted = (hit, ((labels == column) & valid).sum(), (truth == column).sum())
            expected[0, :, column] += torch.stack(counted)
    assert torch.equal(result.counts.general.counts, expected)


def test_the_result_says_how_it_was_fused(config):
    result = evaluate(config, ColourModel(), generalized=True)
    content = result.to_json(load_config(config), "a.pth")
    assert content["generalized"] == {"merge": "final", "merge_tau": 0.9}
    assert all(name in content["runs"][0] for name in GENERALIZED)
    json.dumps(content, allow_nan=False)
    plain = evaluate(config, ColourModel())
    assert "generalized" not in plain.to_json(load_config(config), "a.pth")
    assert {name: result.mean[name] for name in METRICS} == plain.mean


def test_what_has_no_base_learner_is_refused(config):
    with pytest.raises(FewShotError, match="needs a base learner"):
        evaluate(config, build(num_base=3, ensemble=False), generalized=True)
