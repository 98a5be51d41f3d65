"""From archives as downloaded to a finished evaluation, with two commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import build_model
from tests import prepare_trees as trees
from tests.prepare_trees import HEIGHT, WIDTH, box
from tests.training_case import ROOT, environment
from util.config import load_config
from util.data.index import build_index
from util.data.transform import read_image, read_mask
from util.train.checkpoints import FORMAT
from util.weights.checkpoint import serialise

EPISODES, RUNS = 6, 2
SMALL = {"width": 8, "val_size": 73, "min_pixels": 100, "workers": 0, "episodes": EPISODES,
         "runs": RUNS, "pretrained": "none"}  # fmt: skip


def pascal(root: Path) -> tuple[Path, dict[str, int]]:
    """Archives with pictures of two classes of split 3: one grey, one lying on its side."""
    val = {f"2007_00003{i}": 20 if i % 2 else 16 for i in range(3, 9)}
    voc, sbd = trees.pascal_trees(root / "tree", val)
    trees.write_jpeg(voc / "JPEGImages" / "2007_000033.jpg", grey=True)
    trees.write_jpeg(voc / "JPEGImages" / "2007_000034.jpg", orientation=8)
    return trees.pascal_archives((voc, sbd), root / "archives"), val


def coco(root: Path) -> tuple[Path, dict[str, int]]:
    """Archives with bicycles (class 2 of split 1), two polygons each: grey, lying, with a crowd."""
    bicycle = {"category_id": 2, "segmentation": [box(2, 3, 20, 20), box(40, 20, 9, 9)]}
    run_lengths = {"counts": [0, HEIGHT * 20, HEIGHT * (WIDTH - 20)], "size": [HEIGHT, WIDTH]}
    crowd = {"category_id": 1, "segmentation": run_lengths, "iscrowd": 1}
    objects = {f"00000000001{i}": [bicycle, crowd] if i == 6 else [bicycle] for i in (1, 4, 6)}
    tree = trees.coco_tree(root / "tree", objects)
    val = {f"COCO_val2014_{stem}": 2 for stem in (*objects, "000000000005")}
    return trees.coco_archives(tree, root / "archives"), val


def call(*arguments) -> str:
    """What ``python <arguments>`` prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("make, split, shot", [(pascal, 3, 1), (coco, 1, 2)])
def test_two_commands(make, split, shot, tmp_path):
    name = make.__name__
    archives, pictures = make(tmp_path)
    out, lists = tmp_path / "out", tmp_path / "lists"
    config = ROOT / "config" / name / f"{name}_split{split}_resnet50.yaml"
    small = {**SMALL, "shot": shot, "exp_root": tmp_path / "exp"}
    opts = [str(word) for item in small.items() for word in item]
    cfg = load_config(config, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.exp_dir().mkdir(parents=True)
    checkpoint = {"format": FORMAT, "model": model.state_dict(), "config": cfg.to_dict()}
    (cfg.exp_dir() / "best.pth").write_bytes(serialise(checkpoint))

    shown = call("-m", "util.prepare", name, "--root", archives, "--out", out, "--lists", lists)
    (line,) = [line for line in shown.splitlines() if line.startswith("--opts ")]
    shown = call("test.py", "--config", config, *line.split(), *opts)

    result = json.loads((cfg.exp_dir() / "result.json").read_text())
    assert f"result: {cfg.exp_dir() / 'result.json'}" in shown
    assert (result["dataset"], result["split"], result["shot"]) == (name, split, shot)
    assert result["episodes"] == EPISODES and len(result["runs"]) == RUNS
    found = {name for name, value in result["runs"][0]["class_iou"].items() if value is not None}
    assert found == {cfg.fold.names[label] for label in pictures.values()}
    for run in result["runs"]:
        assert 0 <= run["miou"] <= 1 and 0 < run["fb_iou"] < 1 and run["miou_base"] is not None

    # Every picture took part, upright like its mask.
    cfg = load_config(config, [*line.split()[1:], *opts])
    index = build_index(cfg, "test")
    pairs = {pair.image.stem: pair for pair in (index.pairs[at] for at in index.entries)}
    assert pairs.keys() == pictures.keys()
    sizes = {}
    for stem, pair in pairs.items():
        image, mask = read_image(pair.image), read_mask(pair.mask)
        assert image.shape[:2] == mask.shape and (mask == pictures[stem]).sum() >= 100
        sizes[stem] = mask.shape
    assert sorted(sizes.values())[-1] == (WIDTH, HEIGHT) != sorted(sizes.values())[0]
