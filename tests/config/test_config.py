"""Configuration: reading, inheritance, overrides, refusals, foreign files."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from util.config import Config, add_config_arguments, config_from_dict, load_config
from util.config.__main__ import markdown
from util.config.schema import IGNORED, KEYS, SECTIONS
from util.runtime.errors import FewShotError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(p for p in ROOT.glob("config/*/*_split*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def empty(write):
    return write("")


def refusal(path, overrides=()) -> str:
    with pytest.raises(FewShotError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# ------------------------------------------------------------------ access


def test_flat_and_by_section(empty):
    cfg = load_config(empty)
    assert cfg.shot == cfg.TRAIN.shot == 1
    assert cfg.Method.arch == cfg.arch == "HDMNet"
    with pytest.raises(AttributeError, match="nearest: batch_size"):
        cfg.batchsize  # noqa: B018
    with pytest.raises(AttributeError, match="replace"):
        cfg.shot = 5


def test_pickles_copies_and_compares_by_value(empty):
    cfg = load_config(empty, ["shot", 5])
    assert pickle.loads(pickle.dumps(cfg)) == cfg == copy.deepcopy(cfg)
    assert cfg != cfg.replace(shot=1)
    assert len(pickle.dumps(cfg)) < 10_000
    other = cfg.about(cfg.replace(split=2).fold)
    assert pickle.loads(pickle.dumps(other)).fold == other.fold != cfg.fold


def test_every_key_states_its_type(empty):
    """What a type checker is told of ``cfg.<key>`` is what stands there."""
    hints = get_type_hints(Config)
    for cfg in (load_config(empty), load_config(empty, ["data_set", "x", "folds", "[[1], [a]]"])):
        for name in KEYS:
            kinds = get_args(hints[name]) if get_origin(hints[name]) is UnionType else [hints[name]]
            kinds = [(int, float) if kind is float else get_origin(kind) or kind for kind in kinds]
            value = getattr(cfg, name)
            assert any(isinstance(value, kind) for kind in kinds), name
            assert isinstance(value, bool) == (kinds == [bool]), name
    assert (hints["shot"], hints["val_list"], hints["data_root"]) == (int, str | None, str)


def test_lists_are_copies(empty):
    cfg = load_config(empty)
    cfg.seeds.append(1)
    assert cfg.seeds == [510, 365, 382, 322, 988, 98, 742, 17, 595, 106]


def test_dump_and_dict_read_back(empty, write):
    cfg = load_config(empty, ["shot", "5", "name", "a", "folds", "[[1, 2], [3]]", "data_set", "x"])
    assert load_config(write(cfg.dump(), "again.yaml")) == cfg
    assert config_from_dict(cfg.to_dict(), "checkpoint") == cfg
    assert list(cfg.to_dict()) == list(SECTIONS)


WITHOUT_TORCH = """
import sys
from util.config import load_config
from util.runtime.errors import FewShotError

for arch in ("HDMNet", "HSNet", "PSPNet", "HMDNet"):
    try:
        assert load_config(sys.argv[1], ["arch", arch]).arch == arch != "HMDNet"
    except FewShotError as error:
        assert arch == "HMDNet" and "nearest: HDMNet" in str(error)
sys.exit("torch" in sys.modules)
"""


def test_reading_a_configuration_does_not_import_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(PUBLISHED[0])], cwd=ROOT, check=True)


def test_result_folder(empty):
    cfg = load_config(empty, ["shot", "5", "split", "2", "backbone", "vgg16"])
    assert cfg.exp_dir() == Path("exp/pascal/HDMNet/split2/vgg16/5shot")
    assert cfg.replace(name="a").exp_dir() == Path("exp/pascal/HDMNet/split2/vgg16/5shot/a")
    base = cfg.replace(arch="PSPNet", exp_root="/x")
    assert base.exp_dir() == Path("/x/pascal/PSPNet/split2/vgg16")
    shifted = cfg.replace(trained_on="coco")
    assert shifted.exp_dir().parts[1] == "pascal_from_coco"


def test_fold(empty):
    cfg = load_config(empty, ["split", 1])
    assert cfg.num_base == 15 and cfg.fold.novel == (6, 7, 8, 9, 10)
    assert cfg.replace(data_set="coco").num_base == 60


def test_defaults_that_follow_other_keys(empty):
    cfg = load_config(empty)
    assert (cfg.optimizer, cfg.episodes, cfg.data_root) == ("adamw", 1000, "data/pascal")
    assert cfg.pretrained == "initmodel/resnet50_v2.pth"
    assert cfg.base_weight == "exp/pascal/PSPNet/split0/resnet50/best.pth"
    other = cfg.replace(data_set="coco", backbone="vgg16", split=3, name="try")
    assert (other.episodes, other.val_list) == (10000, "lists/coco/val.txt")
    assert other.pretrained == "initmodel/vgg16_bn.pth"
    assert other.base_weight == "exp/coco/PSPNet/split3/vgg16/best.pth"
    hsnet = cfg.replace(arch="HSNet", stem="7x7")
    assert (hsnet.optimizer, hsnet.pretrained, hsnet.base_weight) == ("adam", "torchvision", None)
    assert cfg.replace(arch="PSPNet").optimizer == "sgd"
    assert load_config(empty, ["data_set", "mine", "data_root", "x"]).train_list is None
    assert load_config(empty, ["pretrained", "none"]).pretrained == "none"


# ------------------------------------------------------------------ files


def test_inherit(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("TRAIN: {shot: 5, epochs: 7, split: 1}\n", "base.yaml")
    write("TRAIN: {epochs: 8}\nMethod: {stages: 2}\n", "more.yaml")
    path = write("inherit: [../base.yaml, ../more.yaml]\nTRAIN: {split: 2}\n", "sub/leaf.yaml")
    cfg = load_config(path, ["stages", "1"])
    assert (cfg.shot, cfg.epochs, cfg.split, cfg.stages) == (5, 8, 2, 1)


def test_inherit_mistakes(write):
    assert "circle" in refusal(write("inherit: my.yaml\n"))
    write("inherit: one.yaml\n", "two.yaml")
    assert "circle" in refusal(write("inherit: two.yaml\n", "one.yaml"))
    assert "nothere.yaml" in refusal(write("inherit: nothere.yaml\n"))
    assert "inherit" in refusal(write("inherit: 5\n"))


def test_mistake_in_a_parent_names_the_parent(write):
    write("TRAIN: {shot: 0}\n", "parent.yaml")
    message = refusal(write("inherit: parent.yaml\n"))
    assert "parent.yaml" in message and "TRAIN.shot" in message and "not 0" in message


def test_yaml_quirks(write):
    cfg = load_config(write("TRAIN: {base_lr: 1e-3}\nMethod: {amp: off, compile: off}\nshot: 2\n"))
    assert (cfg.base_lr, cfg.amp, cfg.compile, cfg.shot) == (1e-3, "off", "off", 2)
    assert load_config(write("\ufeffTRAIN:\n  shot: 3\nMethod:\n")).shot == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TRAIN:\n  shots: 1\n", "TRAIN.shots is unknown; nearest: shot"),
        ("TRAIN:\n  batchsize: 1\n", "nearest: batch_size"),
        ("TRAIN:\n  subepoch_val: True\n", "nearest: SubEpoch_val"),
        ("TRIAN:\n  shot: 1\n", "'TRIAN'; nearest: TRAIN"),
        ("TRAIN: 5\n", "TRAIN must hold keys"),
        ("TRAIN:\n  3: 1\n", "keys are text"),
        ("TRAIN:\n  shot: 1\n  shot: 2\n", "shot is given twice"),
        ("TRAIN:\n  shot: 1\nDATA:\n  shot: 2\n", "DATA.shot and TRAIN.shot disagree"),
        ("TRAIN:\n  shot: [\n", "not valid YAML (line"),
        ("- a\n", "sections"),
        ("TRAIN: " + "[" * 5000, "not valid YAML"),
        ("!!python/object/apply:os.system ['touch hacked']\n", "not valid YAML"),
        ("TRAIN:\n  shot:\n", "TRAIN.shot needs a value"),
        ("DATA:\n  data_root: 2012\n", "write it in quotes"),
        ("TRAIN:\n  base_lr: .nan\n", "base_lr must be a number"),
        ("TRAIN:\n  base_lr: fast\n", "base_lr must be a number"),
        ("a: &a [*a]\n", "unknown"),
    ],
)
def test_bad_files(write, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    message = refusal(write(text))
    assert words in message and "my.yaml" in message
    assert not Path("hacked").exists()


def test_unreadable_files(tmp_path, write):
    assert "no such configuration" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80" * 9)
    assert "not valid YAML" in refusal(binary)
    assert "too large" in refusal(write("# " + "x" * 2**20))
    refusal("a\0b")


def test_alias_bomb_is_refused_quickly(write):
    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefg", "bcdefgh")]  # noqa: B905
    assert "unknown" in refusal(write("\n".join(lines)))
    bomb = "x: &x [[1, 2, 3]]\n".replace("x:", "TRAIN: {seeds:").replace("\n", "}\n")
    refusal(write(bomb))


# ------------------------------------------------------------------ values and combinations


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["shot", "0"], "shot must be a whole number from 1"),
        (["TRAIN.shot", "-1"], "override TRAIN.shot"),
        (["shot", "1.5"], "not 1.5"),
        (["shot", "True"], "not True"),
        (["evaluate", "1"], "True or False"),
        (["split", "7"], "folds 0 to 3"),
        (["data_set", "fss", "split", "1"], "only fold 0"),
        (["folds", "[[1], [2]]", "split", "2"], "folds 0 to 1"),
        (["folds", "[[1], [9]]", "class_names", "[a, b]"], "class 9"),
        (["folds", "[[1], []]"], "folds must be"),
        (["class_names", "[a, a]"], "twice"),
        (["stages", "5"], "stages must be a whole number from 1 to 4"),
        (["stages", "0"], "stages"),
        (["train_h", "24"], "train_h 24 does not suit HDMNet with resnet50; 25 works"),
        (["backbone", "vgg16", "val_size", "48"], "49 works"),
        (["arch", "HSNet", "backbone", "vgg16", "val_size", "280"], "val_size 280"),
        (["arch", "BAM"], "nearest: HDMNet"),
        (["backbone", "resnet34"], "resnet18"),
        (["matching", "cosine"], "correlation or attention"),
        (["amp", "on"], "off or bf16 or fp16"),
        (["pyramid", "[8, 4]"], "some of 8 or 16 or 32, not [8, 4]"),
        (["ignore_label", "0"], "255"),
        (["scale_min", "2"], "scale_min 2.0 is above scale_max"),
        (["rotate_max", "-20"], "rotate_min"),
        (["runs", "11"], "runs 11 needs as many seeds"),
        (["seeds", "[1, 1]"], "twice"),
        (["arch", "PSPNet", "batch_size", "1", "fix_bn", "False"], "batch_size 1"),
        (["name", "../x"], "folder"),
        (["data_set", "a/b"], "folder"),
        (["data_set", ""], "folder"),
        (["shot"], "has no value"),
        (["shoot", "1"], "nearest: shot"),
        (["TRIAN.shot", "1"], "nearest: TRAIN"),
        (["folds", "[[1"], "not valid YAML"),
        ([5, 1], "keys are text"),
        ("shot", "list of keys"),
        (["data_set", "mine", "val_list", "v.txt"], "val_list is given and train_list is not"),
        (["split_lists", "lists"], "split_lists is read for data_set fss without folds only"),
        (["data_set", "fss", "folds", "[[a], [b]]", "split_lists", "lists"], "split_lists is read"),
        (["data_root", "''"], "a path is empty"),
        (["base_lr", 10**400], "base_lr must be"),
        (["epochs", "0x" + "f" * 6000], "epochs is too large"),
    ],
)
def test_impossible(empty, overrides, words):
    assert words in refusal(empty, overrides)


def test_combinations_name_the_file(empty):
    assert str(empty) in refusal(empty, ["split", "4"])


def test_replace_validates(empty):
    cfg = load_config(empty)
    with pytest.raises(FewShotError, match="shot"):
        cfg.replace(shot=0)
    with pytest.raises(FewShotError, match="nearest: epochs"):
        cfg.replace(epoch=3)


def test_overrides_take_typed_values_and_text(empty, tmp_path):
    cfg = load_config(
        empty,
        ["shot", 5, "Method.backbone", "vgg16", "base_lr", "1e-5", "rotate_min", "-20"]
        + ["data_root", tmp_path, "name", "2020", "weight", "a: [b.pth", "seeds", "[3]", "runs", 1]
        + ["cache_gb", "null", "train_list", "", "TRAIN.data_set", "demo", "amp", False],
    )
    assert (cfg.shot, cfg.backbone, cfg.base_lr, cfg.rotate_min) == (5, "vgg16", 1e-5, -20.0)
    assert (cfg.data_root, cfg.name, cfg.weight) == (str(tmp_path), "2020", "a: [b.pth")
    assert (cfg.seeds, cfg.cache_gb, cfg.amp) == ([3], None, "off")
    assert (cfg.data_set, cfg.train_list) == ("demo", "lists/demo/train.txt")


def test_command_line_options_add_up():
    import argparse

    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(["--config", "x", "--opts", "shot", "5", "--opts", "rotate_min", "-1"])
    assert args.opts == ["shot", "5", "rotate_min", "-1"]


def test_size_rules_are_those_of_the_models(empty):
    """What the configuration refuses early is what the network refuses."""
    from model import build_model

    cases = [("HDMNet", "resnet18", ""), ("HDMNet", "vgg16", ""), ("HSNet", "vgg16", "")]
    cases += [("HSNet", "resnet18", ""), ("HSNet", "vgg16", "[8, 16]")]
    for arch, backbone, pyramid in cases:
        options = ["arch", arch, "backbone", backbone]
        options += ["width", "8", "stem", "7x7"] if backbone == "resnet18" else []
        options += ["pyramid", pyramid] if pyramid else []
        model = build_model(load_config(empty, [*options, "val_size", 400]))
        for size in (20, 24, 25, 33, 48, 49, 64, 100, 256, 280, 288, 400):
            try:
                load_config(empty, [*options, "val_size", size])
                allowed = True
            except FewShotError:
                allowed = False
            try:
                model.check_size(size, size)
                works = True
            except ValueError:
                works = False
            assert allowed == works, (*options, size)


# ------------------------------------------------------------------ the project's own files


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_own_files_load(path):
    cfg = load_config(path)
    data_set, split, backbone = path.stem.split("_", 2)
    arch = "HDMNet"
    for suffix, other in (("_base", "PSPNet"), ("_hsnet", "HSNet")):
        if backbone.endswith(suffix):
            backbone, arch = backbone.removesuffix(suffix), other
    assert (cfg.data_set, f"split{cfg.split}") == (data_set, split)
    assert (cfg.exp_dir().parts[4], cfg.arch) == (backbone, arch)
    assert cfg.notes == ()
    assert len(path.read_text().splitlines()) < 15


def test_the_model_for_use_holds_nothing_out():
    folder = ROOT / "config/photos"
    cfg, base = (load_config(folder / f"photos_all{kind}.yaml") for kind in ("", "_base"))
    assert cfg.fold.base == cfg.fold.novel == tuple(range(1, 21))
    assert cfg.base_weight == str(base.exp_dir() / "best.pth")
    one = load_config(folder / "photos_split1_tf_efficientnet_lite0.yaml")
    assert [one.fold.names[c] for c in one.fold.novel] == ["bus", "car", "cat", "chair", "cow"]
    assert len({str(c.exp_dir()) for c in (cfg, base, one)}) == 3


def test_key_names_are_unique():
    assert len(KEYS) == sum(len(keys) for keys in SECTIONS.values())


def test_the_documentation_has_every_key():
    """`python -m util.config.schema` prints the tables that docs/config.md ends with."""
    assert (ROOT / "docs/config.md").read_text().rstrip().endswith(markdown().rstrip())


def test_all_own_files_are_there():
    names = {path.stem for path in PUBLISHED}
    for data_set in ("pascal", "coco"):
        for split in range(4):
            for backbone in ("resnet50", "vgg16"):
                for kind in ("", "_base", "_hsnet"):
                    assert f"{data_set}_split{split}_{backbone}{kind}" in names
    assert "demo_split0_resnet18" in names and "fss_split0_resnet50_hsnet" in names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pascal/pascal_split0_resnet50", (473, 473, 200, 4, 0.9, 1.1, 1e-4, 0.01, "adamw", 0.9)),
        ("coco/coco_split3_vgg16", (633, 633, 50, 6, 0.8, 1.25, 1e-4, 0.01, "adamw", 0.9)),
        ("pascal/pascal_split0_vgg16_base", (417, 473, 100, 12, 0.5, 2, 2.5e-4, 1e-4, "sgd", 0.9)),
        ("coco/coco_split1_resnet50_base", (417, 633, 20, 12, 0.5, 2, 2.5e-4, 1e-4, "sgd", 0.9)),
    ],
)
def test_published_hyper_parameters(name, expected):
    cfg = load_config(ROOT / f"config/{name}.yaml")
    assert expected == (
        cfg.train_h, cfg.val_size, cfg.epochs, cfg.batch_size, cfg.scale_min, cfg.scale_max,
        cfg.base_lr, cfg.weight_decay, cfg.optimizer, cfg.power,
    )  # fmt: skip
    assert cfg.train_w == cfg.train_h and (cfg.rotate_min, cfg.rotate_max) == (-10, 10)


def test_published_hsnet():
    cfg = load_config(ROOT / "config/coco/coco_split2_resnet50_hsnet.yaml")
    assert (cfg.train_h, cfg.train_w, cfg.val_size, cfg.batch_size) == (400, 400, 400, 20)
    assert (cfg.optimizer, cfg.base_lr, cfg.weight_decay, cfg.power) == ("adam", 1e-3, 0, 0)
    assert (cfg.stem, cfg.pretrained, cfg.augment) == ("7x7", "torchvision", False)


# ------------------------------------------------------------------ other people's files

PFENET = """
DATA:
  data_root: ../data/VOCdevkit2012/VOC2012
  train_list: ./lists/pascal/voc_sbd_merge_noduplicate.txt
  val_list: ./lists/pascal/val.txt
  classes: 2

TRAIN:
  layers: 50
  sync_bn: True
  train_h: 473
  train_w: 473
  val_size: 473
  scale_min: 0.9  # minimum random scale
  scale_max: 1.1 # maximum random scale
  rotate_min: -10  # minimum random rotate
  rotate_max: 10  # maximum random rotate
  zoom_factor: 8  # zoom factor for final prediction during training, be in [1, 2, 4, 8]
  ignore_label: 255
  padding_label: 255
  aux_weight: 1.0
  train_gpu: [0]
  workers: 8  # data loader workers
  batch_size: 4  # batch size for training
  batch_size_val: 1
  base_lr: 0.0025
  epochs: 200
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed: 321
  print_freq: 10
  save_freq: 10
  save_path: exp/pascal/split0_resnet50/model
  weight:
  resume:
  evaluate: True
  split: 2
  shot: 5
  vgg: True
  fix_random_seed_val: True
  warmup: False
  use_coco: False
  use_split_coco: False
  resized_val: True
  ori_resize: True

Distributed:
  dist_url: tcp://127.0.0.1:6789
  dist_backend: 'nccl'
  multiprocessing_distributed: False
  world_size: 1
  rank: 0
  use_apex: False
  opt_level: 'O0'
  keep_batchnorm_fp32:
  loss_scale:
"""

HDMNET = """
DATA:
  data_root: ../data/MSCOCO2014
  base_data_root: ../data/base_annotation/
  train_list: ./lists/coco/train.txt
  val_list: ./lists/coco/val.txt
  classes: 2

TRAIN:
  # Aug
  train_h: 633
  train_w: 633
  val_size: 633
  scale_min: 0.8
  scale_max: 1.25
  rotate_min: -10
  rotate_max: 10
  ignore_label: 255
  padding_label: 255
  # Dataset & Mode
  split: 0
  shot: 1
  data_set: 'coco'
  use_split_coco: True
  # Optimizer
  batch_size: 6
  base_lr: 1e-4
  epochs: 50
  stop_interval: 75 # stop when the best result is not updated for "stop_interval" epochs
  index_split: -1 # index for determining the params group with 10x learning rate
  power: 0.9 # 0 means no decay
  momentum: 0.9
  weight_decay: 0.01
  warmup: False
  # Viz & Save & Resume
  print_freq: 10
  save_freq: 10
  resume:  # path to latest checkpoint (default: none, such as epoch_10.pth)
  # Validate
  evaluate: True
  SubEpoch_val: True # val at the half epoch
  fix_random_seed_val: True
  batch_size_val: 1
  resized_val: True
  ori_resize: True # use original label for evaluation
  # Else
  workers: 8  # data loader workers
  fix_bn: True
  manual_seed: 321
  seed_deterministic: False
  zoom_factor: 8 # zoom factor for final prediction during training, be in [1, 2, 4, 8]

## deprecated multi-processing training
# Distributed:
#   dist_url: tcp://127.0.0.1:6789

Method:
  layers: 50
  vgg: False
  low_fea: 'layer2' # low_fea for computing the Gram matrix
  kshot_trans_dim: 2 # K-shot dimensionality reduction
  merge: 'final' # fusion operation for the final base map
  merge_tau: 0.9 # fusion threshold tau for base map
  aux_weight1: 1.0
  aux_weight2: 1.0

Test_Finetune:
  ann_type: 'mask' # mask/bbox
"""


def test_pfenet_file_loads(write):
    cfg = load_config(write(PFENET))
    assert (cfg.backbone, cfg.data_set, cfg.split, cfg.shot) == ("vgg16", "pascal", 2, 5)
    assert cfg.train_list.endswith("voc_sbd_merge_noduplicate.txt")
    assert any("save_path" in note for note in cfg.notes)


def test_hdmnet_file_loads(write):
    cfg = load_config(write(HDMNET))
    assert (cfg.backbone, cfg.data_set, cfg.base_lr, cfg.batch_size) == (
        "resnet50",
        "coco",
        1e-4,
        6,
    )
    assert (cfg.kshot_trans_dim, cfg.ann_type, cfg.batch_size) == (2, "mask", 6)
    assert {note.split()[1] for note in cfg.notes} >= {"DATA.classes", "TRAIN.zoom_factor"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("zoom_factor: 8", "zoom_factor: 4", "outputs always have the size of the input"),
        ("resume:  #", "resume: exp/a.pth #", "pass --resume FILE"),
        ("low_fea: 'layer2'", "low_fea: 'layer3'", "Gram matrices"),
        ("merge: 'final'", "merge: 'sup'", "merge must be final or base"),
        ("layers: 50", "layers: 34", "layers must be 18, 50, 101 or 152"),
        ("vgg: False", "vgg: maybe", "vgg must be True or False"),
        ("kshot_trans_dim", "kshot_trans_dims", "nearest: kshot_trans_dim"),
        ("layers: 50", "layers: 50\n  backbone: vgg16", "remove layers"),
        ("ann_type: 'mask'", "ann_type: 'scribble'", "mask or bbox"),
        ("manual_seed: 321", "manual_seed: 321\n  arch: PFENet", "nearest: "),
        ("manual_seed: 321", "manual_seed: 321\n  ppm_scales: [60, 30]", "PFENet's other keys"),
    ],
)
def test_foreign_files_are_refused_with_advice(write, old, new, words):
    assert old in HDMNET
    message = refusal(write(HDMNET.replace(old, new)))
    assert words in message and "my.yaml" in message


def test_foreign_keys_as_overrides(empty):
    cfg = load_config(empty, ["layers", "101", "use_coco", "True", "classes", "2"])
    assert (cfg.backbone, cfg.data_set) == ("resnet101", "coco")
    assert not set(IGNORED) & set(KEYS)


# ------------------------------------------------------------------ fuzzing

TEXT = st.text(max_size=12)
ODD_TEXT = st.sampled_from(
    ["2001-99-99", "!!bool x", "!!int ''", "!!timestamp x", "0b_", "{[a]: b}", "&a [*a]", "~", "",
     "[" * 400, "0x" + "f" * 5000, "1e999", "off", ".inf", "? a", "%x", "@", "`", "<<: 1", "- -",
     "!!set {a}", "!!binary x", "!!omap a", "9" * 5000, "1:99:99", "!!python/name:os.system", "\t",
     "\x00"]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=4)
    | TEXT
    | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*KEYS, *IGNORED, "vgg", "layers", "use_coco", "inherit"]) | TEXT
FUZZ = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loads_or_is_refused(path, overrides=()):
    try:
        cfg = load_config(path, overrides)
    except FewShotError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    else:
        assert isinstance(cfg, Config)
        assert config_from_dict(cfg.to_dict(), "again") == cfg


@FUZZ
@given(data=st.data())
def test_any_override_loads_or_is_refused(empty, data):
    section = st.sampled_from(["", "", "TRAIN.", "Method.", "TEST.", "x."])
    pairs = data.draw(st.lists(st.tuples(section, NAMES, VALUES | TEXT | ODD_TEXT), max_size=3))
    loads_or_is_refused(empty, [item for s, name, value in pairs for item in (s + name, value)])


@FUZZ
@given(
    document=st.dictionaries(
        st.sampled_from([*SECTIONS, "TEST", "inherit", "nothing"]) | TEXT,
        st.dictionaries(NAMES, VALUES, max_size=3) | VALUES,
        max_size=3,
    )
)
def test_any_document_loads_or_is_refused(tmp_path, document):
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    loads_or_is_refused(path)


@FUZZ
@given(text=st.binary(max_size=60) | (TEXT | ODD_TEXT).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_load_or_are_refused(tmp_path, text):
    for content in (text, b"TRAIN:\n  shot: " + text):
        path = tmp_path / "fuzz.yaml"
        path.write_bytes(content)
        loads_or_is_refused(path)
