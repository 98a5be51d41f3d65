"""A backbone of timm, with convolutions and as a vision transformer, on the whole way: both stages,
going on, two processes, evaluation, export, prediction. Random weights: nothing is downloaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.equality import bits, same_counts
from tests.evaluate.test_evaluate import evaluate, lively
from tests.evaluate.test_evaluate import make_data as evaluation_data
from tests.models import build
from tests.own_pictures import disc
from tests.train.test_distributed import finish, start
from tests.train.test_loop import StopAt, configure, run, same_run
from tests.training_case import ROOT, call, environment, make_data, train
from train import EpisodicStage
from train_base import BaseStage
from util.predict import FewShotPredictor
from util.runtime.errors import FewShotError, Interrupted
from util.train.checkpoints import read_state

BACKBONES = ["timm/test_efficientnet", "timm/test_vit"]
SIZE = {"train_h": 65, "train_w": 65, "val_size": 65}


@pytest.fixture(scope="module", params=BACKBONES)
def case(request, tmp_path_factory) -> Path:
    """Data, configurations and a base learner over a frozen encoder."""
    folder = tmp_path_factory.mktemp("timm") / "tiny"
    make_data(folder, ignored=True)
    for stage in ("stage1", "stage2"):
        path = folder / f"{stage}.yaml"
        content = yaml.safe_load(path.read_text()) | {"backbone": request.param, **SIZE}
        path.write_text(yaml.safe_dump(content))
    train(configure(folder, "stage1", freeze_encoder=True, max_iterations=2))
    return folder


def test_going_on_gives_what_was_never_stopped(case):
    options = {"max_iterations": 4, "save_every": 0, "episodes": 2}
    whole = run(case, "stage2", "undisturbed", **options)
    with pytest.raises(Interrupted, match="SIGTERM at iteration 3;"):
        run(case, "stage2", "resumed", stop=StopAt(3), **options)
    assert same_run(whole, run(case, "stage2", "resumed", resume="auto", **options))


def test_two_processes_are_one(case):
    """The same parts one after the other and side by side: sums of two terms, equal bits."""
    options = ("max_iterations", 3, "batch_size", 1, "evaluate", False)
    for processes, *more in ((1, "accumulate", 2, "name", "parts"), (2, "name", "ranks")):
        for status, errors in finish(start(case, "train.py", "stage2", processes, *options, *more)):
            assert status == 0, errors
    runs = [configure(case, "stage2", name=name).exp_dir() for name in ("parts", "ranks")]
    one, two = (read_state(folder / "last.pth")["model"] for folder in runs)
    assert bits(two, one)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_walk_counts_what_the_naive_loop_counts(backbone, tmp_path, in_double):
    model = lively(backbone=backbone, num_base=3, shot=2, compute="textbook").double()
    config = evaluation_data(tmp_path)
    changes = ("shot", 2, "compute", "textbook")
    walk = evaluate(config, model, *changes, episodes=6, baselines=True)
    naive = evaluate(config, model, *changes, episodes=6, baselines=True, engine="naive")
    assert same_counts(walk, naive)
    assert walk.counts.counts.counts[..., 1].sum() > 0, "nothing was found: the test is blind"


def test_hsnet(case):
    if "vit" in configure(case, "stage2").backbone:
        pytest.skip("a transformer has one stride")
    options = {"arch": "HSNet", "base_weight": None, "val_size": 64, "train_h": 64, "train_w": 64}
    run(case, "stage2", "hsnet", max_iterations=2, episodes=2, **options)
    cfg = configure(case, "stage2", name="hsnet", **options)
    predictor = FewShotPredictor.from_config(cfg, device="cpu")
    predictor.add_support(*disc((60, 80), 0), "disc")
    assert predictor.predict(disc((70, 50), 1)[0]).mask.shape == (70, 50)


def test_evaluation_export_and_prediction(case):
    run(case, "stage2", "trained", max_iterations=2, evaluate=False)
    cfg = configure(case, "stage2", name="trained")
    whole, part = cfg.exp_dir() / "best.pth", case / "learned.pth"
    done = call("test.py", case / "stage2.yaml", "--opts", "name", "trained")
    assert done.returncode == 0, done.stderr
    result = json.loads((cfg.exp_dir() / "result.json").read_text())
    assert result["backbone"] == cfg.backbone and 0 <= result["mean"]["miou"] <= 1
    words = [sys.executable, "-m", "util.export", whole, part]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert part.stat().st_size < whole.stat().st_size / 2
    found = []
    for weight in (whole, part):
        predictor = FewShotPredictor.from_config(cfg, weight, "cpu")
        predictor.add_support(*disc((60, 80), 0), "disc")
        found.append(predictor.predict(disc((70, 50), 1)[0]))
    assert found[0].mask.shape == (70, 50) and np.isfinite(found[0].probabilities).all()
    assert np.array_equal(found[0].probabilities, found[1].probabilities)
    state = read_state(cfg.exp_dir() / "last.pth")["model"]
    assert any(name.startswith("encoder.net.") for name in state)
    torch.testing.assert_close(state, torch.load(whole, weights_only=True)["model"])


def test_a_size_that_the_backbone_cannot_take_ends_before_there_is_data(tmp_path):
    make_data(tmp_path / "tiny", ignored=True)
    cannot = "timm/test_coatnet cannot take {0}x{0} pictures; 160x160 works"
    options = {"backbone": "timm/test_coatnet", "base_weight": None, "data_root": "nowhere"}
    for stage, train_size, val_size in (
        ("stage1", 65, 160), ("stage1", 160, 81), ("stage2", 65, 160), ("stage2", 160, 81),
    ):  # fmt: skip
        sizes = {"train_h": train_size, "train_w": train_size, "val_size": val_size}
        cfg = configure(tmp_path / "tiny", stage, **options, **sizes)
        wrong = train_size if train_size != 160 else val_size
        with pytest.raises(FewShotError, match=cannot.format(wrong)):
            (BaseStage if stage == "stage1" else EpisodicStage)(cfg, torch.device("cpu"))
    model = build(backbone="timm/test_coatnet", num_base=3)
    with pytest.raises(FewShotError, match="val_size: backbone " + cannot.format(81)):
        FewShotPredictor(model, cfg, "cpu")
