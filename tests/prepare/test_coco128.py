"""Real COCO pictures from the COCO configurations: lists, both stages, evaluation, prediction.

The pictures (77 + 51 of COCO 2014 with their instances) are not part of the project: without them
beside it these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.equality import same_labels
from tests.own_pictures import untrained
from tests.training_case import environment
from util.config import load_config
from util.data.episodes import EpisodeSampler
from util.data.index import build_index
from util.data.transform import object_mask, read_image, read_pair
from util.evaluate import Evaluator
from util.predict.predictor import FewShotPredictor
from util.prepare.__main__ import main as prepare

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY.parent / "shared" / "data" / "coco128"
CONFIGS = REPOSITORY / "config" / "coco"

pytestmark = pytest.mark.skipif(
    not PICTURES.is_dir(), reason="the coco128 pictures are not beside the project"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """``--opts`` that name the prepared pictures and a folder for results."""
    folder = tmp_path_factory.mktemp("coco128")
    out, lists = folder / "coco", folder / "lists"
    prepare(["coco", "--root", str(PICTURES), "--out", str(out), "--lists", str(lists)])
    return {
        "data_root": out,
        "train_list": lists / "train.txt",
        "val_list": lists / "val.txt",
        "exp_root": folder / "exp",
    }


def words(**options):
    return [str(word) for option in options.items() for word in option]


def call(*arguments, **options):
    """Run a script or module with ``--opts``."""
    command = [sys.executable, *map(str, arguments), "--opts", *words(**options)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300
    )


def succeed(*arguments, **options):
    done = call(*arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(*arguments, **options):
    """The one sentence of a command that must end with exit status 2."""
    done = call(*arguments, **options)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def config(split, kind="resnet50"):
    return CONFIGS / f"coco_split{split}_{kind}.yaml"


# Counted by hand from the masks that the published preparation makes.
@pytest.mark.parametrize("split, train, val", [(0, 22, 34), (1, 38, 18), (2, 39, 18), (3, 38, 18)])
def test_pictures_of_each_split(data, split, train, val):
    cfg = load_config(config(split), words(**data))
    assert len(build_index(cfg, "train").entries) == train
    assert len(build_index(cfg, "val").entries) == val


def test_classes_that_cannot_form_an_episode_are_named(data, tmp_path):
    report = tmp_path / "report.json"
    lists = ("-m", "util.lists", "--config", config(0), "--check", "--stats", "--json", report)
    shown = succeed(*lists, **data)
    assert "75 pairs read, 0 bad" in shown and "51 pairs read, 0 bad" in shown
    for entry in json.loads(report.read_text())["lists"]:
        assert entry["bad"] == []
        for mode in entry["modes"].values():
            # The other pictures of an episode's class are not the query, so one is not enough;
            # a query may show less of the class than a support must.
            few = {name for name, count in mode["pictures"].items() if count == 0}
            many = {name for name, count in mode["pictures"].items() if count > 1}
            assert few <= set(mode["left_out"]) and not many & set(mode["left_out"])
            for name in mode["left_out"]:
                assert name in shown


@pytest.mark.slow
def test_both_stages_and_evaluation(data):
    small = {"train_h": 73, "train_w": 73, "val_size": 73, "batch_size": 2, "workers": 1}
    small = {**data, **small, "max_iterations": 3, "episodes": 4, "runs": 2}
    folder = data["exp_root"] / "coco"

    # Stage 2 without stage 1, and 5 shots where no class has 6 pictures: said before anything runs.
    assert "train_base.py" in refuse("train.py", "--config", config(0), **small)
    succeed("train_base.py", "--config", config(0, "resnet50_base"), pretrained="none", **small)
    sentence = refuse("train.py", "--config", config(0), shot=5, **small)
    assert "no class has 5 support picture(s)" in sentence and "potted plant has most" in sentence
    assert not (folder / "HDMNet").exists()

    shown = succeed("train.py", "--config", config(0), **small)
    assert "left out, fewer than 1 support" in shown and "hair drier" in shown
    small["max_iterations"] = 5
    resumed = succeed("train.py", "--config", config(0), "--resume", "auto", **small)
    assert "resumed at epoch 1, iteration 3" in resumed

    shown = succeed("test.py", "--config", config(0), **small)
    assert "left out" in shown and "scissors" in shown
    result = json.loads((folder / "HDMNet/split0/resnet50/1shot/result.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [510, 365]
    assert 0 <= result["mean"]["miou"] <= 1 and 0 < result["mean"]["fb_iou"] <= 1
    assert result["runs"][0]["class_iou"]["scissors"] is None

    # Five supports for a model that was trained with one: 23 pictures show people.
    weight = folder / "HDMNet/split0/resnet50/1shot/best.pth"
    shown = succeed("test.py", "--config", config(0), "--weight", weight, shot=5, **small)
    assert "trained with 1 support(s)" in shown and "left out, fewer than 5 support" in shown

    hsnet = config(1, "resnet50_hsnet")
    succeed("train.py", "--config", hsnet, pretrained="none", **small)
    succeed("test.py", "--config", hsnet, **small)
    weight = folder / "HSNet/split1/resnet50/1shot/best.pth"
    sentence = refuse("test.py", "--config", hsnet, "--weight", weight, shot=5, **small)
    assert "val.txt: no class has 5 support picture(s)" in sentence


# ------------------------------------------------------------------------------- prediction

NARROW = {"backbone": "resnet18", "width": 8, "val_size": 97, "min_pixels": 500, "workers": 0}


def narrow(data, **changes):
    """Configuration of split 0 for a narrow network, its index and a model with random weights."""
    cfg = load_config(config(0), words(**{**data, **NARROW, **changes}))
    return cfg, build_index(cfg, "test"), untrained(cfg)


def predicted(predictor, index, episode):
    """The predictor's label map for an episode of the evaluation, from the same files."""
    predictor.reset()
    for at in episode.supports:
        predictor.add_support(*index.pairs[at], label=episode.class_id)
    return predictor.predict(index.pairs[episode.query].image).mask


@pytest.mark.parametrize(
    "shot, resized", [(1, True), (3, True), (5, True), (1, False)], ids=lambda value: str(value)
)
def test_predictor_gives_the_masks_of_the_evaluation(data, decided, shot, resized):
    """The evaluation matches several episodes at a time: sums in another order."""
    cfg, index, model = narrow(data, shot=shot, resized_val=resized)
    result = Evaluator(cfg, index).run(model, [5], 6, details=True, progress=False)
    predictor = FewShotPredictor(model, cfg, "cpu")
    shares = []
    assert len(result.scored) == 6
    for _, episode in result.scored:
        found = predicted(predictor, index, episode)
        assert found.shape == read_image(index.pairs[episode.query].image).shape[:2]
        logits = result.counts.decided["final", 0, episode.index].values[None]
        assert same_labels(torch.from_numpy(found)[None], logits.argmax(1), logits)
        shares.append(found.mean())
    assert 0.02 < np.mean(shares) < 0.98


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_predictor_with_two_classes(data, shots):
    cfg, index, model = narrow(data)
    predictor = FewShotPredictor(model, cfg, "cpu")
    single = predictor.without_supports()
    first, second = sorted(index.per_class, key=lambda each: -len(index.per_class[each]))[:2]
    for class_id in (first, second):
        for at in index.per_class[class_id][:shots]:
            predictor.add_support(*index.pairs[at], index.names[class_id], label=class_id)
            if class_id == first:
                single.add_support(*index.pairs[at], label=class_id)
    assert predictor.shots == {index.names[first]: shots, index.names[second]: shots}
    seen = set()
    for at in index.entries[:3]:
        image = read_image(index.pairs[at].image)
        result = predictor.predict(image)
        assert result.mask.shape == image.shape[:2]
        assert result.probabilities.shape == (3, *image.shape[:2])
        np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
        # A second class takes pixels from the first and gives it none.
        assert not (result.mask == 1)[single.predict(image).mask == 0].any()
        seen |= set(np.unique(result.mask))
    assert seen == {0, 1, 2}


@pytest.fixture
def one_thread():
    """As many as the commands have: sums in another order round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_predictor_gives_the_result_of_the_command(data, tmp_path, one_thread):
    changes = {**NARROW, "episodes": 6, "runs": 1, "batch_size_val": 1}  # as the predictor
    cfg, index, model = narrow(data, **changes)
    torch.save({"model": model.state_dict()}, tmp_path / "best.pth")
    files = ("--weight", tmp_path / "best.pth", "--output", tmp_path / "result.json")
    succeed("test.py", "--config", config(0), *files, **{**data, **changes})
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]

    predictor = FewShotPredictor.from_config(cfg, tmp_path / "best.pth", "cpu")
    sampler = EpisodeSampler(index, sorted(index.per_class), cfg.shot, run["seed"])
    counts = {}
    for number in range(6):
        episode = sampler.episode(0, number)
        found = predicted(predictor, index, episode) == 1
        labels = object_mask(read_pair(*index.pairs[episode.query])[1], episode.class_id)
        found, true = found[labels != 255], labels[labels != 255] == 1
        both = np.array([(found & true).sum(), (found | true).sum()])
        counts[episode.class_id] = counts.get(episode.class_id, 0) + both
    ious = {index.names[each]: hit / union for each, (hit, union) in counts.items()}
    assert ious == {name: value for name, value in run["class_iou"].items() if value is not None}
