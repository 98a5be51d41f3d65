"""Real COCO pictures from the COCO configurations: lists, both stages, evaluation.

The pictures (77 + 51 of COCO 2014 with their instances) are not part of the project: without them
beside it these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_case import environment
from util.config import load_config
from util.lists import build_index
from util.prepare.__main__ import main as prepare

REPOSITORY = Path(__file__).resolve().parents[1]
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
