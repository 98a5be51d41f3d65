"""Tables of the papers: published numbers, files that are wrong, settings that must load."""

from __future__ import annotations

import pytest
import torch
import yaml

from model import build_model
from util.config.schema import ROLES
from util.reproduce.cells import cells_of
from util.reproduce.tables import FOLDER, ROOT, Column, load_table, load_tables, table_of
from util.runtime.errors import FewShotError

TABLES = load_tables()
ISSUED = {  # a few of each, as the papers print them
    "hdmnet-table1": {("HDMNet, ResNet-50", 1): 50.0, ("HDMNet, ResNet-50", 5): 56.0,
                      ("HDMNet, VGG-16", 1): 45.9, ("HDMNet, VGG-16", 5): 52.4},
    "hdmnet-table2": {("HDMNet, ResNet-50", 1): 69.4, ("BAM, ResNet-50", 5): 70.9,
                      ("HSNet, VGG-16", 5): 64.1, ("PFENet, VGG-16", 1): 58.0},
    "hdmnet-table3": {("baseline", 1): 44.7, ("+ ensemble", 1): 45.8, ("+ hierarchy", 1): 47.9,
                      ("+ correlation", 1): 48.3, ("+ distillation", 1): 50.0},
    "hdmnet-table4": {("S1", 1): 47.1, ("S4", 1): 48.6, ("CyCTR", 1): 40.3,
                      ("S3", "parameters"): 2.8, ("S3", "ms"): 27.4, ("BAM", "gflop"): 26.0},
    "hdmnet-supplementary1": {("PASCAL-5i, without", 1): 61.3, ("COCO-20i, without", 1): 33.4,
                              ("PASCAL-5i, with mask", 1, 1): 75.4},
    "hdmnet-supplementary2": {("T = 0.5", 1): 48.6, ("T = 1", 1): 50.0, ("T = 2", 1): 49.4,
                              ("T = 5", 1, 3): 47.5},
    "hdmnet-supplementary3": {("without ReLU", 1): 49.7, ("without ReLU", 5): 55.5,
                              ("with ReLU", 5, 0): 50.6, ("with ReLU", 5): 56.0},
    "hsnet-pascal": {("HSNet, VGG-16", 1): 59.7, ("HSNet, ResNet-50", 5, 3): 67.1,
                     ("HSNet, ResNet-101", 1): 66.2,
                     ("HSNet, ResNet-101, without support masking", 5): 63.7},
    "hsnet-coco": {("HSNet, ResNet-50", 1): 39.2, ("HSNet, ResNet-101", 5): 49.5,
                   ("HSNet, ResNet-101", 5, 2): 51.8},
    "hsnet-fss": {("HSNet, VGG-16", 1): 82.3, ("HSNet, ResNet-101", 5): 88.5},
    "hsnet-domain-shift": {("HSNet, ResNet-50", 1): 61.6, ("HSNet, ResNet-101", 5): 70.3},
    "hsnet-kernels": {("original", "ms"): 512.17, ("separable", "gb"): 1.5,
                      ("center-pivot", "gflop"): 20.56, ("center-pivot", 5): 70.4},
}  # fmt: skip


@pytest.mark.parametrize("name", ISSUED)
def test_published_numbers(name):
    rows = {row.name: row.published for row in TABLES[name].rows}
    for (row, what, *fold), number in ISSUED[name].items():
        mean = Column("mean", what) if isinstance(what, int) else Column(what)
        assert rows[row][Column("miou", what, *fold) if fold else mean] == number


def test_means_are_those_of_their_folds():
    """A number that was mistyped would stand out; the papers round each of them."""
    for table in TABLES.values():
        for row in table.rows:
            for shot in table.shots:
                folds = [
                    n for c, n in row.published.items() if c.fold is not None and c.shot == shot
                ]
                if folds and (table.name, row.name, shot) != (
                    "hdmnet-supplementary2",
                    "T = 0.5",
                    1,
                ):
                    assert sum(folds) / 4 == pytest.approx(
                        row.published[Column("mean", shot)], abs=0.11
                    )


def test_methods_of_others_are_published_only():
    others = {row.name.split(",")[0] for t in TABLES.values() for row in t.rows if not row.config}
    assert others == {"PFENet", "BAM", "CyCTR"}


@pytest.mark.parametrize("data", [None, "demo"])
def test_every_cell_loads_and_its_model_is_built(data):
    """One model for each set of options that a model depends on, without weights."""
    keys = ROLES["encoder"] + ROLES["network"] + ROLES["objective"] + ("shot", "fix_bn")
    built = set()
    for name, table in TABLES.items():
        if data and any(row.evaluate_on for row in table.rows):
            continue
        for cell in cells_of(table, data):
            for setting in filter(None, (cell.base, cell.train, cell.test)):
                cfg = setting.cfg
                key = str([getattr(cfg, key) for key in (*keys, *others(cfg.arch))])
                if key not in built:
                    built.add(key)
                    with torch.device("meta"):
                        build_model(cfg).check_size(cfg.val_size, cfg.val_size) if (
                            setting is not cell.base
                        ) else build_model(cfg)
            assert cell.folder == cell.train.cfg.exp_dir(), name
    assert len(built) > 10


def others(arch: str) -> tuple[str, ...]:
    """HSNet has no base learner; FSS-1000 would be asked for its class folders."""
    return () if arch == "HSNet" else ("num_base",)


def test_a_folder_is_a_function_of_the_settings():
    """Tables share runs; different settings never share a folder."""
    found: dict = {}
    for table in TABLES.values():
        for cell in cells_of(table):
            found.setdefault(cell.folder, set()).add(str(cell.train.cfg.to_dict()))
    assert all(len(settings) == 1 for settings in found.values())
    one = {
        name: {c.folder for c in cells_of(TABLES[name]) if (c.shot, c.fold) == (1, 0)}
        for name in ("hdmnet-table3", "hdmnet-table4", "hdmnet-supplementary2")
    }
    whole = ROOT.joinpath("exp/coco/HDMNet/split0/resnet50/1shot").relative_to(ROOT)
    assert all(whole in folders for folders in one.values())
    hdmnet = {f for folders in one.values() for f in folders if "HDMNet" in f.parts}
    masks = {c.folder for c in cells_of(TABLES["hdmnet-supplementary1"], "demo") if c.fold == 0}
    assert len(hdmnet) == 5 + 3 + 3 and len(masks) == 2


def test_five_shots_of_hsnet_are_votes_of_a_model_trained_with_one():
    one, five = (c for c in cells_of(TABLES["hsnet-fss"]) if c.row.name == "HSNet, VGG-16")
    assert one.folder == five.folder and one.result != five.result
    assert five.test.cfg.weight == str(one.folder / "best.pth")
    shift = cells_of(TABLES["hsnet-domain-shift"])[0]
    assert shift.train.cfg.data_set == "coco" and shift.test.cfg.trained_on == "coco"
    with pytest.raises(FewShotError, match="two data sets"):
        cells_of(TABLES["hsnet-domain-shift"], "demo")


WRONG = {
    "rows.a.published.1.mean": ({"rows": {"a": {"published": {1: {"mean": "x"}}}}}, "a number"),
    "rows.a.published.1.mean ": ({"rows": {"a": {"published": {1: {"mean": 101}}}}}, "to 100"),
    "rows.a.published.5": ({"rows": {"a": {"published": {5: {"mean": 1.0}}}}}, "no shot"),
    "rows.a.published.1.folds": (
        {"rows": {"a": {"published": {1: {"folds": [1.0]}}}}, "columns": ["folds", "mean"]},
        "list 4 numbers",
    ),
    "rows.a.publshed": ({"rows": {"a": {"publshed": {}}}}, "nearest: published"),
    "rows.a.options.temperatur": (
        {"rows": {"a": {"config": "config/coco/coco_split{fold}_vgg16.yaml",
                        "options": {"temperatur": 1}}}}, "nearest: temperature",
    ),
    "rows.a.options.temperature": (
        {"rows": {"a": {"config": "config/coco/coco_split{fold}_vgg16.yaml",
                        "options": {"temperature": -1}}}}, "from 0.001",
    ),
    "rows.a.config": ({"rows": {"a": {"config": "config/coco/coco.yaml"}}}, "a file such as"),
    "rows.a": ({"rows": {"a": {}}}, "neither a config nor"),
    "columns": ({"columns": ["mean", "speed"]}, "some of"),
    "shots": ({"shots": [1, 1]}, "once"),
    "figure": ({"figure": "pie"}, "categories"),
    "paper": ({"paper": None}, "must be text"),
    "titel": ({"titel": "x"}, "nearest: title"),
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_table_is_one_sentence(tmp_path, key):
    change, words = WRONG[key]
    right = {"paper": "P", "place": "Table", "title": "T", "columns": ["mean"]}
    right["rows"] = {"a": {"published": {1: {"mean": 50.0}}}}
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(right))
    assert load_table(path).rows[0].published == {Column("mean", 1): 50.0}
    path.write_text(yaml.safe_dump({**right, **change}))
    with pytest.raises(FewShotError) as error:
        load_table(path)
    text = str(error.value)
    assert text.startswith(f"{path}: {key.strip()} ") and words in text and "\n" not in text


def test_a_table_of_ones_own_may_have_a_backbone_of_timm(tmp_path):
    rows = {
        arch: {"config": f"config/photos/photos_split{{fold}}_tf_efficientnet_lite0{suffix}.yaml"}
        for arch, suffix in (("HDMNet", ""), ("HSNet", "_hsnet"))
    }
    path = tmp_path / "t.yaml"
    content = {"paper": "P", "place": "Table", "title": "T", "columns": ["mean"], "rows": rows}
    path.write_text(yaml.safe_dump(content))
    cells = cells_of(load_table(path))
    assert {(c.train.cfg.arch, c.train.cfg.backbone, c.fold) for c in cells} == {
        (arch, "timm/tf_efficientnet_lite0", fold) for arch in rows for fold in range(4)
    }


def test_a_missing_key_and_an_unknown_table(tmp_path):
    (tmp_path / "t.yaml").write_text("paper: P\nplace: x\nrows: {a: {}}\n")
    with pytest.raises(FewShotError, match="title is missing"):
        load_table(tmp_path / "t.yaml")
    with pytest.raises(FewShotError, match="nearest: hdmnet-table3"):
        table_of("hdmnet-tabel3")
    assert len(TABLES) == len(list(FOLDER.iterdir()))
