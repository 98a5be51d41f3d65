"""The class tables: which split trains on what, and the numbers of the base learner's classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from util.config import load_config
from util.config.folds import (
    COCO_CLASSES,
    DEMO_CLASSES,
    VOC_CLASSES,
    canonical,
    fold_of,
    split_count,
)
from util.runtime.errors import FewShotError


def make(**changes):
    keys = dict(
        data_set="pascal",
        data_root="data",
        train_list="train.txt",
        class_names=None,
        folds=None,
        split=0,
        use_split_coco=True,
        trained_on=None,
        split_lists=None,
    )
    return SimpleNamespace(**{**keys, **changes})


def folder_of_classes(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").touch()
        (root / name / "1.png").touch()
    return root


def test_tables_have_their_known_sizes_and_order():
    assert (len(VOC_CLASSES), len(COCO_CLASSES), len(DEMO_CLASSES)) == (20, 80, 64)
    assert (VOC_CLASSES[14], COCO_CLASSES[60], COCO_CLASSES[79]) == (
        "person",
        "dining table",
        "toothbrush",
    )


@pytest.mark.parametrize("split", range(4))
def test_novel_classes_follow_the_published_rules(split):
    assert fold_of(make(split=split)).novel == tuple(range(5 * split + 1, 5 * split + 6))
    coco = fold_of(make(data_set="coco", split=split))
    assert coco.novel == tuple(4 * k + split + 1 for k in range(20))
    plain = fold_of(make(data_set="coco", split=split, use_split_coco=False))
    assert plain.novel == tuple(range(20 * split + 1, 20 * split + 21))


@pytest.mark.parametrize("data_set", ["pascal", "coco", "demo"])
def test_every_class_is_held_out_by_exactly_one_split(data_set):
    folds = [fold_of(make(data_set=data_set, split=i)) for i in range(4)]
    assert split_count(make(data_set=data_set)) == 4
    assert sorted(c for fold in folds for c in fold.novel) == sorted(folds[0].names)
    for fold in folds:
        assert not set(fold.base) & set(fold.novel)
        assert sorted(fold.base + fold.novel) == sorted(fold.names)
        assert list(fold.base) == sorted(fold.base)


@pytest.mark.parametrize("split", range(4))
def test_novel_demo_classes_recombine_what_the_base_classes_show(split):
    fold = fold_of(make(data_set="demo", split=split))
    words = {class_id: name.split() for class_id, name in fold.names.items()}
    for part in (0, 1):
        shown = {words[c][part] for c in fold.base}
        assert {words[c][part] for c in fold.novel} <= shown


def test_lut_numbers_the_base_classes_upwards_and_keeps_255():
    fold = fold_of(make(split=1))
    lut = fold.lut()
    assert lut.dtype == np.uint8 and lut.shape == (256,)
    assert [lut[c] for c in fold.base] == list(range(1, 16))
    assert not lut[list(fold.novel)].any() and lut[0] == 0 and lut[255] == 255
    assert not lut[21:255].any()
    assert [fold.base_index(c) for c in fold.base] == list(range(15))
    assert fold.base_names[4:6] == ["bottle", "diningtable"]  # ids 5 and 11


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(FewShotError, match="TRAIN.split: 7 .*splits 0 to 3"):
        fold_of(make(split=7))


def test_own_folds_take_ids_and_names():
    cfg = make(data_set="mine", class_names=("a", "b", "c"), folds=((2,), ("c", "a")), split=1)
    fold = fold_of(cfg)
    assert (fold.base, fold.novel, split_count(cfg)) == ((2,), (1, 3), 2)
    with pytest.raises(FewShotError, match="class 'd', which is not there; ids are 1 to 2"):
        fold_of(make(data_set="mine", class_names=("a", "b"), folds=(("d",),)))
    with pytest.raises(FewShotError, match="no base"):
        fold_of(make(data_set="mine", class_names=("a", "b"), folds=((1, 2),)))
    with pytest.raises(FewShotError, match="for each split"):
        fold_of(make(data_set="mine", class_names=("a", "b"), folds=((),)))


@pytest.mark.parametrize(
    ("names", "folds", "expected"),
    [
        ("apple pear plum", "[[1, 3]]", "apple plum"),
        ("1 10 11 12 2 3", "[['2', 3], [1]]", "refused: 3 may mean the class '11'"),
        ("1 10 11 12 2 3", "[['2', '3'], [1]]", "2 3"),
        ("008 009 010 011", "[[010]]", "refused: 8 may mean the class '008' or '010'"),
        ("008 009 010 011", "[['010', 009]]", "009 010"),
        ("001 002 003", "[[001, 002]]", "001 002"),
        ("10 20 30", "[[10], [20]]", "10"),
        ("10 20 30", "[[1], [2]]", "10"),
        ("0 1 2", "[[0]]", "0"),
        ("0 1 2", "[[1]]", "refused: 1 may mean the class '0' (number 1 in the list) or '1'"),
        ("20240001 b", "[[20240001]]", "20240001"),
        ("0x10 b c", "[[0x10]]", "0x10"),
        ("no yes", "[[no]]", "refused: write class names such as this one in quotes"),
        ("1.5 2", "[[1.5]]", "refused: write class names such as this one in quotes"),
        ("1 2 3", "[[4]]", "refused: class 4, which is not there; ids are 1 to 3"),
    ],
)
def test_numbers_in_folds_are_places_unless_they_could_be_names(tmp_path, names, folds, expected):
    root = folder_of_classes(tmp_path / "data", names.split())
    config = tmp_path / "own.yaml"
    config.write_text(f"DATA: {{data_set: mine, data_root: {root}, folds: {folds}}}\n")
    try:
        fold = load_config(config).fold
        found = " ".join(fold.names[c] for c in fold.novel)
    except FewShotError as error:
        assert "refused" in expected and expected.removeprefix("refused: ") in str(error)
    else:
        assert found == expected


def test_own_classes_without_folds_hold_nothing_out():
    fold = fold_of(make(data_set="mine", class_names=("a", "b")))
    assert fold.base == fold.novel == (1, 2)
    assert "none held out" in fold.source


def test_own_lists_need_class_names_that_are_unique():
    with pytest.raises(FewShotError, match="DATA.class_names: data set 'mine' needs"):
        fold_of(make(data_set="mine"))
    with pytest.raises(FewShotError, match="'a' stands there twice"):
        fold_of(make(data_set="mine", class_names=("a", "a")))
    with pytest.raises(FewShotError, match="'_background_' is no class"):
        fold_of(make(data_set="mine", class_names=("_background_", "a")))
    with pytest.raises(FewShotError, match="'caf\u00e9' stands there twice"):
        fold_of(make(data_set="mine", class_names=("caf\u00e9", "cafe\u0301")))
    with pytest.raises(FewShotError, match="254"):
        fold_of(make(data_set="mine", class_names=tuple(map(str, range(300)))))


def test_class_folders_give_the_names(tmp_path):
    folder_of_classes(tmp_path, ["zebra", "ant"])
    for part, name in (("images", "1.jpg"), ("masks", "1.png")):
        (tmp_path / "bee" / part).mkdir(parents=True)
        (tmp_path / "bee" / part / name).touch()
    (tmp_path / ".hidden").mkdir()
    own = make(data_set="mine", data_root=tmp_path, train_list=None)
    assert fold_of(own).names == {1: "ant", 2: "bee", 3: "zebra"}
    (tmp_path / "notes").mkdir()
    with pytest.raises(FewShotError, match="DATA.data_root: .*notes holds no pictures"):
        fold_of(own)
    with pytest.raises(FewShotError, match="no class folders"):
        fold_of(make(data_set="mine", data_root=tmp_path / "notes", train_list=None))
    with pytest.raises(FewShotError, match="there is no folder"):
        fold_of(make(data_set="mine", data_root=tmp_path / "nowhere", train_list=None))


def test_fss_split_is_seeded_and_says_so(tmp_path):
    root = folder_of_classes(tmp_path, [f"c{i:03}" for i in range(50)])
    first = fold_of(make(data_set="fss", data_root=root, train_list=None))
    assert first == fold_of(make(data_set="fss", data_root=root, train_list=None))
    parts = (first.classes("train"), first.classes("val"), first.classes("test"))
    assert [len(part) for part in parts] == [26, 12, 12]
    assert sorted(c for part in parts for c in part) == list(range(1, 51))
    assert "not the published lists" in first.source


def test_fss_takes_the_users_class_lists(tmp_path):
    root = folder_of_classes(tmp_path / "data", ["ab", "cd", "ef", "gh"])
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "trn.txt").write_text("gh\nfewshot_data/ab\n")
    (lists / "val.txt").write_text("cd\n")
    cfg = make(data_set="fss", data_root=root, train_list=None, split_lists=lists)
    with pytest.raises(FewShotError, match="test.txt"):
        fold_of(cfg)
    (lists / "test.txt").write_text("ef\n")
    fold = fold_of(cfg)
    assert (fold.base, fold.validation, fold.novel) == ((1, 4), (2,), (3,))
    assert "class lists of" in fold.source
    (lists / "test.txt").write_text("ef\nab\n")
    with pytest.raises(FewShotError, match="'ab' stands in two"):
        fold_of(cfg)
    (lists / "test.txt").write_text("ef\nxy\n")
    with pytest.raises(FewShotError, match="line 2: there is no class folder 'xy'"):
        fold_of(cfg)


# The classes that papers list for COCO -> PASCAL.
SHIFTED = [
    "aeroplane boat chair diningtable dog person",
    "bicycle bus horse sofa",
    "bird car pottedplant sheep train tvmonitor",
    "bottle cat cow motorbike",
]


@pytest.mark.parametrize("split", range(4))
def test_domain_shift_leaves_out_what_the_model_was_trained_on(split):
    fold = fold_of(make(trained_on="coco", split=split))
    assert {fold.names[c] for c in fold.novel} == set(SHIFTED[split].split())
    assert len(fold.base) == len(fold.base_names) == 60
    assert fold.base == fold_of(make(data_set="coco", split=split)).base
    lut = fold.lut()
    for class_id, name in fold.names.items():
        if class_id in fold.novel:
            assert lut[class_id] == 0
        else:
            assert fold.base_names[lut[class_id] - 1] == canonical(name)
            assert fold.base_index(class_id) == lut[class_id] - 1


def test_domain_shift_refuses_unknown_sets():
    with pytest.raises(FewShotError, match="DATA.trained_on: 'voc' is none of coco, demo, pascal"):
        fold_of(make(trained_on="voc"))
    with pytest.raises(FewShotError, match="trains on every class here"):
        fold_of(make(data_set="mine", class_names=("person",), trained_on="pascal"))
