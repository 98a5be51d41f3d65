"""Every class that can be asked about is asked about, or named."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.test_evaluate import ColourModel, make_data
from util import lists as list_report
from util.config import load_config
from util.data.index import build_index, in_turn
from util.evaluate import Evaluator, plan_tasks


def encoded(suffix: str, array: np.ndarray) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


def make_tree(root: Path, sizes: dict[str, int]) -> Path:
    """Class folders with ``sizes[name]`` pictures of 8 x 8, each of them an object of 9 pixels."""
    image, mask = np.full((8, 8, 3), 90, np.uint8), np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 255
    root.mkdir()
    shared, picture = root / "one.png", encoded(".jpg", image)
    shared.write_bytes(encoded(".png", mask))
    for name, pictures in sizes.items():
        (root / name).mkdir()
        for number in range(pictures):
            (root / name / f"{number}.jpg").write_bytes(picture)
            os.link(shared, root / name / f"{number}.png")  # quicker than another file
    shared.unlink()
    return root


def configure(root: Path, *overrides, folds: object = None, data_set: str = "own"):
    config = root.with_suffix(".yaml")
    config.write_text(
        f"DATA: {{data_set: {data_set}, data_root: {root}, folds: {folds or 'null'}}}\n"
        "TRAIN: {val_size: 25, workers: 0}\nEVALUATE: {cache_gb: 1}\n"
        "Method: {backbone: resnet18, width: 8}\n"
    )
    return load_config(config, ["min_pixels", 1, *overrides])


def asked(index, episodes: int, seeds=(1, 2)) -> list[Counter]:
    """Class id -> number of episodes, for each run."""
    tasks, _ = plan_tasks(index, sorted(index.per_class), 1, seeds, episodes)
    return [Counter(t.episode.class_id for t in tasks if t.run == run) for run in range(len(seeds))]


# ------------------------------------------------------------------------------ classes in turn


@given(st.lists(st.integers(1, 7), max_size=60).map(sorted), st.data())
def test_any_number_taken_from_the_front_is_fair(classes, data) -> None:
    order = in_turn(range(len(classes)), classes)
    assert sorted(order) == list(range(len(classes))), "all of them are one pass"
    taken = Counter(classes[p] for p in order[: data.draw(st.integers(0, len(classes)))])
    for one, pictures in Counter(classes).items():
        for other in set(classes):
            # A class falls behind another only when it has no picture left.
            assert taken[one] >= taken[other] - 1 or taken[one] == pictures
    for one in set(classes):
        positions = [p for p in order if classes[p] == one]
        assert positions == sorted(positions)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    sizes = {f"class {number:04d}": 2 for number in range(1000)}
    return make_tree(tmp_path_factory.mktemp("thousand") / "tree", sizes)


@pytest.mark.parametrize("protocol", ["bam", "hsnet"])
def test_a_thousand_classes_are_all_asked_about(thousand, protocol) -> None:
    index = build_index(configure(thousand, "protocol", protocol), "test")
    assert len(index.entries) == 2000
    for episodes in (1000, 1001, 1500, 2000, 4500):
        for counts in asked(index, episodes):
            assert len(counts) == 1000 and max(counts.values()) - min(counts.values()) <= 1
    tasks, _ = plan_tasks(index, sorted(index.per_class), 1, (1,), 2000)
    assert len({task.episode.query for task in tasks}) == 2000, "each picture once"


def test_fss_validates_and_tests_on_every_picture_of_its_parts_once(thousand) -> None:
    cfg = configure(thousand, data_set="fss")
    assert cfg.episodes == 2400, "240 classes of 10 pictures"
    for mode, classes in (("val", 240), ("test", 240)):
        index = build_index(cfg, mode)
        tasks, _ = plan_tasks(index, sorted(index.per_class), 1, (1,), 2 * classes)
        queries = Counter(task.episode.query for task in tasks)
        assert len(queries) == 2 * classes and set(queries.values()) == {1}
        assert set(asked(index, classes)[0].values()) == {1}


def test_a_training_epoch_is_a_full_pass(thousand) -> None:
    index = build_index(configure(thousand, data_set="fss"), "train")
    tasks, sampler = plan_tasks(index, sorted(index.per_class), 1, (1,), 520 * 2)
    assert len(sampler) == 520 * 2 == len({task.episode.query for task in tasks})


def test_a_small_class_is_asked_about_as_often_as_it_has_pictures(tmp_path) -> None:
    tree = make_tree(tmp_path / "tree", {"apple": 2, "kiwi": 9, "pear": 5})
    counts = asked(build_index(configure(tree), "test"), 10)
    assert counts == [{1: 2, 2: 4, 3: 4}] * 2


# ------------------------------------------------------------------------- classes not asked about


def evaluated(cfg, episodes: int, capsys, seeds=(1, 2)):
    result = Evaluator(cfg, build_index(cfg, "test")).run(
        ColourModel(), seeds, episodes, progress=False
    )
    return result, capsys.readouterr().out


def test_fewer_episodes_than_classes_are_said_by_name(tmp_path, capsys) -> None:
    tree = make_tree(tmp_path / "tree", dict.fromkeys(("apple", "kiwi", "pear", "plum"), 3))
    cfg = configure(tree, folds=[["apple", "kiwi", "pear"]])
    result, shown = evaluated(cfg, 2, capsys)
    assert result.to_json(cfg, None)["not_asked"] == ["pear"]
    assert shown.count("pear") == 1 and "1 of 3 classes" in shown and "at least 3" in shown
    assert "plum" not in shown
    result, shown = evaluated(cfg, 3, capsys)
    assert result.to_json(cfg, None)["not_asked"] == [] and shown == ""


def test_a_class_missing_from_one_run_of_a_list_is_named(tmp_path, capsys) -> None:
    cfg = load_config(make_data(tmp_path / "data"))
    index = build_index(cfg, "test")
    names = sorted(cfg.fold.names[c] for c in index.per_class)
    episodes = 4  # the classes of a list are drawn: some seeds miss one
    counts = asked(index, episodes, range(12))
    one = next(s for s, found in enumerate(counts) if len(found) < 3)
    all_ = next(s for s, found in enumerate(counts) if len(found) == 3)
    result, shown = evaluated(cfg, episodes, capsys, (all_, one))
    missing = [name for name in names if result.runs[1]["class_iou"][name] is None]
    assert missing and result.not_asked == missing
    assert all(shown.count(name) == 1 for name in missing) and "one of the 2 runs" in shown


def test_what_cannot_form_an_episode_is_left_out_and_not_called_unasked(tmp_path, capsys) -> None:
    tree = make_tree(tmp_path / "tree", {"apple": 3, "kiwi": 1, "pear": 3, "plum": 2})
    cfg = configure(tree, folds=[["apple", "kiwi", "pear"]])
    result, shown = evaluated(cfg, 2, capsys)
    content = result.to_json(cfg, None)
    assert content["left_out"] == ["kiwi"] and content["not_asked"] == []
    assert shown.count("kiwi") == 1


def test_training_says_so_through_its_log(tmp_path, capsys) -> None:
    tree = make_tree(tmp_path / "tree", dict.fromkeys(("apple", "kiwi", "pear", "plum"), 3))
    cfg = configure(tree, folds=[["apple", "kiwi", "pear"]])
    evaluator, lines = Evaluator(cfg, build_index(cfg, "val"), keep_frozen=True), []
    for _ in range(3):  # epochs
        evaluator.run(ColourModel(), [321], 2, progress=False, say=lines.append)
    assert len(lines) == 1 and "pear" in lines[0]
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------- classes in no list


def test_a_class_in_none_of_the_three_lists_is_counted_and_named(tmp_path, capsys) -> None:
    names = ("ant", "bee", "cow", "dog", "elk")
    tree = make_tree(tmp_path / "tree", dict.fromkeys(names, 2))
    lists = tmp_path / "parts"
    lists.mkdir()
    for part, name in (("trn", "ant"), ("val", "bee"), ("test", "cow")):
        (lists / f"{part}.txt").write_text(f"{name}\n")
    cfg = configure(tree, "split_lists", lists, data_set="fss")
    assert "2 class(es)" in cfg.fold.note and cfg.fold.note.endswith("dog, elk")
    options = ["--config", str(tree.with_suffix(".yaml")), "--opts", "split_lists", str(lists)]
    report = tmp_path / "report.json"
    list_report.main(["--json", str(report), *options, "min_pixels", "1"])
    assert json.loads(report.read_text())["unlisted"] == ["dog", "elk"]
    assert cfg.fold.note in capsys.readouterr().out
    (lists / "val.txt").write_text("bee\ndog\nelk\n")
    assert cfg.replace(split_lists=str(lists)).fold.note == ""
