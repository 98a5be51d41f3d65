"""The demo: an honest data set, its preparation, its table, its Makefile target."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import build_model
from util.config import load_config
from util.config.folds import DEMO_SHAPES, DEMO_TEXTURES
from util.data.transform import read_mask
from util.demo import read_result, table
from util.prepare.demo import CLASSES, SHAPES, TEXTURES, draw_picture, prepare
from util.runtime.errors import FewShotError
from util.weights.checkpoint import load_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config" / "demo" / "demo_split0_resnet18.yaml"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(48, 110))
def test_every_picture_shows_two_classes_on_a_ground(seed, size):
    picture, label = draw_picture(np.random.default_rng(seed), size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert label.shape == (size, size) and label.dtype == np.uint8
    values, pixels = np.unique(label, return_counts=True)
    classes = {int(v): int(n) for v, n in zip(values, pixels, strict=True) if 0 < v < 255}
    assert len(classes) >= 2 and max(classes) <= CLASSES
    assert max(classes.values()) > 0.02 * size * size
    assert label.size * 0.2 < (label == 0).sum()
    assert picture[label == 0].std() > 1  # textured, not flat


def test_a_picture_is_a_function_of_its_seed():
    one, other = (draw_picture(np.random.default_rng([3, 1, 4]), 64) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert not np.array_equal(one[0], draw_picture(np.random.default_rng([3, 1, 5]), 64)[0])


def test_colour_says_nothing_about_the_class():
    """The nearest mean colour is as good as guessing among the objects of eight classes."""
    objects: dict[int, list[np.ndarray]] = {}
    for seed in range(400):
        picture, label = draw_picture(np.random.default_rng(seed), 48)
        for class_id in set(np.unique(label)) - {0, 255}:
            colour = picture[label == class_id].mean(0)
            objects.setdefault(int(class_id) % 8, []).append(colour)
    half = {c: len(colours) // 2 for c, colours in objects.items()}
    means = np.stack([np.mean(objects[c][: half[c]], axis=0) for c in sorted(objects)])
    hits = [
        np.linalg.norm(means - colour, axis=1).argmin() == place
        for place, c in enumerate(sorted(objects))
        for colour in objects[c][half[c] :]
    ]
    assert len(means) == 8 and len(hits) > 400
    assert np.mean(hits) < 1 / 8 + 3 * np.sqrt(1 / 8 * 7 / 8 / len(hits))


def test_shapes_differ_in_form_and_not_in_area():
    axis = np.linspace(-1.5, 1.5, 241)
    x, y = np.meshgrid(axis, axis)
    maps = [SHAPES[name](x, y) for name in DEMO_SHAPES]
    for inside in maps:
        assert 1.4 < inside.mean() * 9 < 2.4  # a disc of radius 0.8 has 2.0
    for i, one in enumerate(maps):
        for other in maps[:i]:
            assert (one & other).sum() / (one | other).sum() < 0.85


def test_textures_are_distinct_patterns_of_two_colours():
    axis = np.linspace(-2, 2, 65)
    u, v = np.meshgrid(axis, axis)
    patterns = {name: TEXTURES[name](u, v, np.random.default_rng(0)) for name in DEMO_TEXTURES}
    for name, blend in patterns.items():
        assert blend.shape == u.shape and 0 <= blend.min() and blend.max() <= 1
        assert (blend.std() > 0.3) == (name != "plain")
    for i, one in enumerate(patterns.values()):
        for other in list(patterns.values())[:i]:
            assert abs(one - other).mean() > 0.15


def test_prepare_writes_voc_layout(tmp_path):
    root, lists = tmp_path / "demo", tmp_path / "lists"
    prepare(root, lists, train=3, val=2, size=48, workers=1)
    assert (lists / "val.txt").read_text().splitlines() == [
        f"JPEGImages/val_0000{i}.jpg SegmentationClass/val_0000{i}.png" for i in range(2)
    ]
    for line in (lists / "train.txt").read_text().splitlines():
        image, mask = (root / name for name in line.split())
        with Image.open(mask) as palette:
            assert palette.mode == "P"
        assert Image.open(image).size == read_mask(mask).shape[::-1] == (48, 48)


def test_prepare_keeps_what_is_there_and_grows(tmp_path):
    root, lists = tmp_path / "demo", tmp_path / "lists"
    prepare(root, lists, train=2, val=1, size=48, workers=1)
    kept = root / "SegmentationClass" / "train_00001.png"
    before, content = kept.stat().st_mtime_ns, kept.read_bytes()
    broken = root / "SegmentationClass" / "train_00000.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    prepare(root, lists, train=4, val=1, size=48, workers=1)
    assert kept.stat().st_mtime_ns == before
    assert broken.read_bytes() == whole
    assert len((lists / "train.txt").read_text().splitlines()) == 4
    prepare(root, lists, train=4, val=1, size=48, seed=1, workers=1)
    assert kept.read_bytes() != content


def test_prepare_leaves_other_peoples_masks_alone(tmp_path):
    mask = tmp_path / "SegmentationClass" / "2007_000032.png"
    mask.parent.mkdir()
    mask.write_bytes(b"mine")
    with pytest.raises(FewShotError, match="SegmentationClass holds masks"):
        prepare(tmp_path, tmp_path / "lists", train=1, val=1)
    assert mask.read_bytes() == b"mine"


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 47}, {"seed": -1}])
def test_prepare_names_a_bad_option(tmp_path, wrong):
    with pytest.raises(FewShotError, match="demo set needs"):
        prepare(tmp_path, tmp_path, **wrong)


def result(miou, **extra):
    mean = {"miou": miou, "fb_iou": 0.7, "miou_meta": miou - 0.01, "fb_iou_meta": 0.69}
    start = {"dataset": "demo", "arch": "HDMNet", "split": 0, "shot": 1, "episodes": 200}
    return {**start, "runs": [{}] * 3, "mean": mean, **extra}


BASELINES = {
    "all_foreground": {"miou": 0.1, "fb_iou": 0.05},
    "prior": {"miou": 0.4, "fb_iou": 0.6},
}


@pytest.mark.parametrize(
    "final, other, verdicts",
    [
        (0.60, 0.10, ("20.0 points (as promised", "50.0 points (as promised")),
        (0.54, 0.28, ("14.0 points (LESS than promised", "26.0 points (as promised")),
        (0.56, 0.32, ("16.0 points (as promised", "24.0 points (LESS than promised")),
    ],
)
def test_table_measures_against_the_better_baseline(final, other, verdicts):
    text = table([result(final, baselines=BASELINES)], result(other, swapped_supports=True))
    assert all(verdict in text for verdict in verdicts)
    assert f"{100 * final:.2f}" in text and "40.00" in text and f"{100 * other:.2f}" in text


def test_table_has_a_row_for_each_model():
    second = result(0.5) | {"arch": "HSNet"}
    second["mean"] = {**second["mean"], "miou_meta": None}
    first = result(0.6, baselines=BASELINES)
    text = table([first, second], result(0.1, swapped_supports=True))
    assert "HSNet final" in text and "HSNet meta" not in text and "HDMNet meta" in text


def test_table_refuses_results_without_baselines(tmp_path):
    with pytest.raises(FewShotError, match="--baselines"):
        table([result(0.5)], result(0.1, swapped_supports=True))
    with pytest.raises(FewShotError, match="cannot be read"):
        read_result(tmp_path / "missing.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(FewShotError, match="no result"):
        read_result(tmp_path / "list.json")


def test_encoder_of_the_demo_fits_and_is_small():
    cfg = load_config(CONFIG)
    file = ROOT / cfg.base_weight
    assert file.stat().st_size <= 6e6
    model = build_model(cfg)
    loaded = set(load_weights(model, file).loaded)
    frozen = {k for k in model.state_dict() if k.split(".")[0] in model.frozen}
    assert frozen <= loaded


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("full", [False, True])
def test_make_demo_trains_stage_1_only_when_asked(full):
    command = ["make", "-n", "demo", *(["FULL=1"] if full else [])]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("train_base.py" in plan) == ("base_weight null" in plan) == full
    steps = ("util.prepare demo", " train.py", "--baselines", "--swap-supports", "util.demo table")
    for step in steps:
        assert step in plan
