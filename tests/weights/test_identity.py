"""Weights know what they are: for every pair of (trained with, asked) the same result or a refusal.

Networks with random weights stand for trained ones; their checkpoints are those of train.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import ARCHITECTURES, build_model
from model.registry import reads
from tests.models import episode
from tests.models import run as forward
from tests.training_case import ROOT, environment, make_data
from util.config import Config, load_config
from util.config.folds import COCO_CLASSES, VOC_CLASSES, canonical
from util.config.schema import KEYS, SECTIONS
from util.data.loader import make_plan
from util.runtime.errors import FewShotError
from util.train.checkpoints import read_state
from util.train.optim import build_optimizer
from util.train.progress import Progress, restore, snapshot
from util.weights import identity
from util.weights.checkpoint import read_checkpoint, serialise
from util.weights.export import export
from util.weights.identity import Use, origin_of
from util.weights.load import load_model, model_of
from util.weights.pretrained import load_pretrained

SCALER = torch.amp.GradScaler("cpu", enabled=False)
SIZE = 64
# A value other than the default for every option that makes another network of the same tensors,
# or other tensors.
CHANGED = {
    "HDMNet": {
        "block_relu": False, "mask_support": False, "stages": 3, "matching": "attention",
        "hierarchy": "stacked", "ensemble": False, "fidelity": "corrected", "kshot_trans_dim": 3,
        "distill": False, "temperature": 2.0, "own_class": "unlearned", "backbone": "vgg16",
        "width": 4, "stem": "7x7", "absent": 0.1,
    },
    "HSNet": {
        "mask_support": False, "kernel4d": "separable", "hyper_layers": "deep",
        "pyramid": [16, 32], "backbone": "vgg16", "width": 4, "stem": "7x7", "backbone_lr": 0.01,
        "absent": 0.1,
    },
}  # fmt: skip
PAIRS = [(arch, key) for arch, options in CHANGED.items() for key in options]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("identity") / "tiny"
    make_data(folder, pictures=8)
    return folder


def configure(folder: Path, file: str = "stage2.yaml", **changes: Any) -> Config:
    changes = {"train_h": SIZE, "train_w": SIZE, "val_size": SIZE, **changes}
    return load_config(folder / file, [x for pair in changes.items() for x in pair])


def save(cfg: Config, path: Path, seen: Sequence[str] = ()) -> Path:
    """What train.py (or train_base.py) writes, of a network with random weights."""
    torch.manual_seed(0)
    model = build_model(cfg)
    at = Progress(seen=tuple(seen))
    state = snapshot(at, model, build_optimizer(model, cfg), SCALER, make_plan(8, cfg), cfg)
    path.write_bytes(serialise(state))
    return path


def check(content: dict[str, Any], cfg: Config, use: Use, source: str, base: bool = False):
    return identity.check(origin_of(content, source), cfg, use, source, base)


def resume(cfg: Config, path: Path) -> Progress:
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    return restore(read_state(path), model, optimizer, SCALER, make_plan(8, cfg), cfg)


def test_a_resumed_run_has_the_optimiser_settings_that_it_was_asked_for(folder, tmp_path):
    """``base_lr`` may change on the way, and so may the others that no role keeps."""
    path = save(configure(folder), tmp_path / "w.pth")
    asked = configure(folder, weight_decay=0.25, base_lr=0.5)
    optimizer = build_optimizer(build_model(asked), asked)
    restore(read_state(path), build_model(asked), optimizer, SCALER, make_plan(8, asked), asked)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}


# -------------------------------------------------------------------- options of the network


def test_every_option_of_the_network_is_in_the_matrix():
    """A new key of section Method says what it is to weights, and is tried here."""
    for arch, options in CHANGED.items():
        given_ = {
            key.name
            for key in KEYS.values()
            if key.role in ("encoder", "network", "objective") and reads(arch, key.name)
        }
        assert given_ == {*options, "arch"}
    nothing = {"pretrained", "base_weight", "object_above", "compute", "amp", "tf32", "compile"}
    roles = {key.name for key in SECTIONS["Method"] if KEYS[key.name].role}
    assert roles | nothing == {key.name for key in SECTIONS["Method"]} and not roles & nothing


@pytest.mark.parametrize("arch, key", PAIRS, ids=lambda value: str(value))
def test_other_options_give_the_same_result_or_a_refusal(folder, tmp_path, arch, key):
    shot = 2 if key == "kshot_trans_dim" else 1
    plain = configure(folder, arch=arch, shot=shot)
    if key == "backbone_lr":  # the fast form, which rounds otherwise, is the frozen backbone's
        plain = plain.replace(compute="textbook")
    other = plain.replace(**{key: CHANGED[arch][key]})
    for trained, asked in ((plain, other), (other, plain)):
        path = save(trained, tmp_path / "w.pth")
        load_model(trained, path)
        for use in (Use.EVALUATION, Use.PREDICTION):
            data = episode((SIZE, SIZE), shot=shot)
            try:
                found = load_model(asked, path, use=use)
            except FewShotError as error:
                old, new = getattr(trained, key), getattr(asked, key)
                assert f"trained with {key} {old}, this run has {new}" in str(error)
                assert f"write --opts {key} " in str(error) and "w.pth" in str(error)
            else:
                assert use is Use.PREDICTION and KEYS[key].role == "objective"
                with torch.no_grad():
                    outputs = [forward(m, data).final for m in (found, load_model(trained, path))]
                assert torch.equal(*outputs)
        with pytest.raises(FewShotError, match=f"trained with {key} .*start without --resume"):
            resume(asked, path)


def test_all_differences_are_named_at_once(folder, tmp_path):
    path = save(configure(folder, block_relu=False, matching="attention"), tmp_path / "w.pth")
    words = (
        r"with matching attention, block_relu False, this run has correlation, True; "
        r"write --opts matching attention block_relu False, or take other weights"
    )
    with pytest.raises(FewShotError, match=words):
        load_model(configure(folder), path)
    with pytest.raises(FewShotError, match="with arch HDMNet, this run has HSNet"):
        load_model(configure(folder, arch="HSNet"), path)


def test_options_of_other_methods_do_not_matter(folder, tmp_path):
    path = save(configure(folder, arch="HSNet", stages=1, block_relu=False), tmp_path / "w.pth")
    load_model(configure(folder, arch="HSNet", matching="attention"), path)


def test_a_method_of_ones_own_may_read_every_option(folder, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "Mine", None)
    cfg = configure(folder, arch="Mine")
    for key in ("hyper_layers", "matching"):
        other = cfg.replace(**{key: {"hyper_layers": "deep", "matching": "attention"}[key]})
        with pytest.raises(FewShotError, match=f"trained with {key} "):
            check({"config": cfg.to_dict()}, other, Use.PREDICTION, "w.pth")


def test_more_supports_than_trained_with_are_welcome(folder, tmp_path):
    path, told = save(configure(folder), tmp_path / "w.pth"), []
    load_model(configure(folder, shot=3), path, told.append)
    assert told == [f"note: {path} was trained with 1 support(s) an episode; the 3 here count "
                    "alike in the ensemble"]  # fmt: skip


@pytest.mark.parametrize("ensemble", [True, False])
def test_the_number_trained_with_comes_with_the_weights(folder, tmp_path, ensemble):
    """Matching scales by it too, so a model without an ensemble needs it as much."""
    path = save(configure(folder, shot=2, ensemble=ensemble), tmp_path / "w.pth")
    assert load_model(configure(folder, shot=5, ensemble=ensemble), path).shot == 2


def test_weights_alone_bring_their_own_configuration(folder, tmp_path):
    path = save(configure(folder, hierarchy="stacked", split=1), tmp_path / "w.pth")
    cfg, weight = model_of(None, path)
    assert cfg.hierarchy == "stacked" and cfg.split == 1
    load_model(cfg, weight)
    with pytest.raises(FewShotError, match="hierarchy"):
        load_model(*model_of(None, path, ["hierarchy", "decoupled"]))


# ------------------------------------------------------------------------------ classes


NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


@st.composite
def splits(draw):
    """Names in some order, folds by name or by id, and one of them."""
    names = draw(st.permutations(NAMES))
    cuts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2, unique=True))
    places = [0, *sorted(cuts), 6]
    order = draw(st.permutations(range(6)))
    parts = [order[a:b] for a, b in itertools.pairwise(places)]
    by_id = draw(st.booleans())
    folds = [[i + 1 if by_id else names[i] for i in part] for part in parts]
    return {"class_names": list(names), "folds": folds,
            "split": draw(st.integers(0, len(folds) - 1))}  # fmt: skip


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(trained=splits(), asked=splits())
def test_no_evaluation_about_classes_that_were_trained_on(folder, trained, asked):
    """However names, folds and splits are written: refused where a class asked about was trained
    on; with a base learner also where its channels would stand for other classes."""
    old, new = (configure(folder, arch="HSNet", **changes) for changes in (trained, asked))
    content = {"config": old.to_dict()}
    base, novel = old.fold.base_names, [new.fold.names[c] for c in new.fold.novel]

    def refused(use: Use, base_learner: bool) -> bool:
        try:
            assert check(content, new, use, "w.pth", base_learner) is None
        except FewShotError as error:
            assert "w.pth was trained" in str(error) and "--opts" in str(error)
            return True
        return False

    shared = bool(set(base) & set(novel))
    assert refused(Use.EVALUATION, False) == refused(Use.STARTING, False) == shared
    assert refused(Use.EVALUATION, True) == (shared or base != new.fold.base_names)
    held = {old.fold.names[c] for c in old.fold.novel}
    assert refused(Use.RESUMING, True) == (base != new.fold.base_names or held != set(novel))
    assert not refused(Use.PREDICTION, True)


@pytest.mark.parametrize("arch", ["HDMNet", "HSNet"])
def test_another_split_is_named(folder, tmp_path, arch):
    path = save(configure(folder, arch=arch), tmp_path / "w.pth")
    words = (r"trained on square, which split 1 here holds out, with split 0, this run has 1; "
             r"write --opts split 0, or take other weights")  # fmt: skip
    with pytest.raises(FewShotError, match=words):
        load_model(configure(folder, arch=arch, split=1), path)
    with pytest.raises(FewShotError, match="split 0.*start without --resume"):
        resume(configure(folder, arch=arch, split=1), path)
    load_model(configure(folder, arch=arch, split=1), path, use=Use.PREDICTION)


def test_renamed_classes_are_still_those_of_their_mask_values(folder, tmp_path):
    path = save(configure(folder, arch="HSNet"), tmp_path / "w.pth")
    names = ["circle", "box", "line", "border"]
    with pytest.raises(FewShotError, match="trained on box, .*class_names"):
        load_model(configure(folder, arch="HSNet", split=1, class_names=names), path)
    load_model(configure(folder, arch="HSNet", class_names=names), path)


@pytest.mark.parametrize("change", [{"protocol": "bam"}, {"protocol": "hsnet"}])
def test_which_pictures_were_trained_on(folder, tmp_path, change):
    path = save(configure(folder), tmp_path / "w.pth")
    cfg = configure(folder, **change)
    for load in (lambda: load_model(cfg, path), lambda: resume(cfg, path)):
        with pytest.raises(FewShotError, match="trained with protocol pfenet, this run has"):
            load()
    load_model(cfg, path, use=Use.PREDICTION)


def test_class_folders_that_changed(tmp_path):
    """Nothing in the configuration differs: the folders do. What was trained on is kept by name."""
    make_data(tmp_path / "tiny", pictures=2)
    root = tmp_path / "fruit"
    for name in ("apple", "pear", "plum"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").touch()
        (root / name / "1.jpg").touch()

    def asked() -> Config:
        return configure(
            tmp_path / "tiny", arch="HSNet", data_set="fruit", data_root=str(root),
            folds=[[1], [2]], class_names=None, train_list=None, val_list=None,
        )  # fmt: skip

    path = save(asked(), tmp_path / "w.pth")  # holds out the apple
    load_model(asked(), path)
    (root / "pear").rename(root / "Pear")  # sorts first: it would be asked about as class 1
    with pytest.raises(FewShotError, match="trained on Pear, .*folders or lists have changed"):
        load_model(asked(), path)


def test_class_folders_that_are_gone(tmp_path):
    """A checkpoint that keeps no names, of folders that are not here: equal options, and a note."""
    make_data(tmp_path / "tiny", pictures=2)
    for name in ("apple", "pear"):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        (tmp_path / "fruit" / name / "1.png").touch()
        (tmp_path / "fruit" / name / "1.jpg").touch()
    cfg = configure(
        tmp_path / "tiny", arch="HSNet", data_set="fruit", data_root=str(tmp_path / "fruit"),
        folds=[[1], [2]], class_names=None, train_list=None, val_list=None,
    )  # fmt: skip
    content = {"config": cfg.replace(data_root=str(tmp_path / "gone")).to_dict()}
    note = check(content, cfg, Use.EVALUATION, "w.pth")
    assert note == "w.pth does not name the classes that it was trained on: they cannot be known"
    with pytest.raises(FewShotError, match="with split 0, this run has 1"):
        check(content, cfg.replace(split=1), Use.EVALUATION, "w.pth")
    assert check(content, cfg, Use.RESUMING, "w.pth") is None


def test_prediction_needs_no_data_set(tmp_path):
    """A base learner of class folders that are on another machine: the checkpoint names them."""
    make_data(tmp_path / "tiny", pictures=2)
    for name in ("apple", "pear", "plum"):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        (tmp_path / "fruit" / name / "1.png").touch()
        (tmp_path / "fruit" / name / "1.jpg").touch()
    cfg = configure(
        tmp_path / "tiny", data_set="fruit", data_root=str(tmp_path / "fruit"),
        folds=[["apple"]], class_names=None, train_list=None, val_list=None,
    )  # fmt: skip
    path = save(cfg, tmp_path / "w.pth")
    shutil.rmtree(tmp_path / "fruit")
    found, weight = model_of(None, path)
    assert load_model(found, weight, use=Use.PREDICTION).base_learner.conv.out_channels == 3
    assert export(path, tmp_path / "learned.pth") > 0
    with pytest.raises(FewShotError, match="there is no folder"):
        load_model(found, weight)


# ----------------------------------------------------------------------- other data sets


def shifted(**changes: Any) -> Config:
    return load_config(
        ROOT / "config/pascal/pascal_split0_resnet50_hsnet.yaml",
        [x for pair in {"protocol": "bam", **changes}.items() for x in pair],
    )


def test_domain_shift_is_asked_for_by_name():
    """COCO -> PASCAL is an experiment; PASCAL figures of a COCO model by mistake are none."""
    coco = load_config(ROOT / "config/coco/coco_split0_resnet50_hsnet.yaml", ["protocol", "bam"])
    content = {"config": coco.to_dict()}
    with pytest.raises(FewShotError, match=r"on the data set coco.*write --opts trained_on coco"):
        check(content, shifted(), Use.EVALUATION, "w.pth")
    assert check(content, shifted(trained_on="coco"), Use.EVALUATION, "w.pth") is None
    with pytest.raises(FewShotError, match="with split 0, this run has 1"):
        check(content, shifted(trained_on="coco", split=1), Use.EVALUATION, "w.pth")
    pascal = {"config": shifted().to_dict()}
    with pytest.raises(FewShotError, match="write --opts trained_on null"):
        check(pascal, shifted(trained_on="coco"), Use.EVALUATION, "w.pth")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_one_however_they_are_composed(folder, tmp_path, form):
    """Class folders that went from one system to another keep their classes."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = unicodedata.normalize(other, "Crème brûlée")
    path = save(configure(folder), tmp_path / "w.pth", seen=[name])
    seen = origin_of(read_checkpoint(path), "w.pth").seen
    assert canonical(unicodedata.normalize(form, "crème_brûlée")) in seen


def test_synonyms_are_one_class():
    """COCO's couch is PASCAL's sofa: an encoder that learned it knows it."""
    coco = load_config(
        ROOT / "config/coco/coco_split0_resnet50_base.yaml",
        ["folds", [[1], [c for c in range(1, 81) if c != COCO_CLASSES.index("couch") + 1]],
         "split", 1],
    )  # fmt: skip
    held = shifted(folds=[[VOC_CLASSES.index("sofa") + 1]], stem="deep")
    with pytest.raises(FewShotError, match="trained on sofa"):
        check({"config": coco.to_dict()}, held, Use.STARTING, "w.pth")
    other = shifted(folds=[[VOC_CLASSES.index("cow") + 1]], stem="deep")
    assert check({"config": coco.to_dict()}, other, Use.STARTING, "w.pth") is None


# --------------------------------------------------------------------------- stage 1 and 2


@pytest.mark.parametrize("arch, key", [("HDMNet", "base_weight"), ("HSNet", "pretrained")])
def test_stage_2_starts_over_its_own_fold(folder, tmp_path, arch, key):
    path = save(configure(folder, "stage1.yaml"), tmp_path / "base.pth")
    cfg = configure(folder, arch=arch, **{key: str(path)})
    start = load_pretrained(build_model(cfg), cfg)
    assert start.note is None and set(start.seen) == {"square", "stripe", "frame"}
    other = cfg.replace(split=1)
    with pytest.raises(FewShotError, match=r"base\.pth was trained on square, which split 1"):
        load_pretrained(build_model(other), other)
    if arch == "HDMNet":
        other = cfg.replace(class_names=["stripe", "square", "disc", "frame"], folds=[["disc"]])
        with pytest.raises(FewShotError, match="base learner numbers them"):
            load_pretrained(build_model(other), other)
        other = cfg.replace(block_relu=False)  # what the base learner looks at is rectified anyway
        load_pretrained(build_model(other), other)
    other = cfg.replace(width=4)
    with pytest.raises(FewShotError, match="with width 8, this run has 4"):
        load_pretrained(build_model(other), other)


def test_without_folds_both_stages_train_on_every_class(folder, tmp_path):
    base = save(configure(folder, "stage1.yaml", folds=None), tmp_path / "base.pth")
    cfg = configure(folder, folds=None, base_weight=base)
    assert cfg.fold.base == cfg.fold.novel
    load_pretrained(build_model(cfg), cfg)
    held_out = configure(folder, base_weight=base)
    with pytest.raises(FewShotError, match="which split 0 here holds out"):
        load_pretrained(build_model(held_out), held_out)


def test_pictures_of_stage_1(folder, tmp_path):
    """bam trains on fewer pictures than the others: a later stage may take more, never fewer."""
    for first, second, good in (("bam", "pfenet", True), ("pfenet", "bam", False)):
        path = save(configure(folder, "stage1.yaml", protocol=first), tmp_path / "base.pth")
        cfg = configure(folder, protocol=second, base_weight=str(path))
        if good:
            load_pretrained(build_model(cfg), cfg)
        else:
            with pytest.raises(FewShotError, match="protocol pfenet, this run has bam"):
                load_pretrained(build_model(cfg), cfg)


def test_what_earlier_stages_saw_is_remembered(folder, tmp_path):
    """An encoder that learned the disc elsewhere makes every later checkpoint one that saw it."""
    cfg = configure(folder, arch="HSNet", folds=[[2], [1]])
    path = save(cfg, tmp_path / "w.pth", seen=["kite"])
    assert origin_of(read_checkpoint(path), "w.pth").seen == {"disc", "stripe", "frame", "kite"}
    assert set(resume(cfg, path).seen) == {"disc", "stripe", "frame", "kite"}
    names = ["disc", "kite", "stripe", "frame"]
    with pytest.raises(FewShotError, match="trained on kite"):
        load_model(configure(folder, arch="HSNet", folds=[["kite"]], class_names=names), path)
    small = tmp_path / "small.pth"
    export(path, small)
    assert origin_of(read_checkpoint(small), "small.pth") == origin_of(
        read_checkpoint(path), "small.pth"
    )


def test_an_export_is_refused_like_its_checkpoint(folder, tmp_path):
    base = save(configure(folder, "stage1.yaml"), tmp_path / "base.pth")
    cfg = configure(folder, base_weight=str(base), block_relu=True)
    model = build_model(cfg)
    load_pretrained(model, cfg)
    state = snapshot(Progress(), model, build_optimizer(model, cfg), SCALER, make_plan(8, cfg), cfg)
    (tmp_path / "w.pth").write_bytes(serialise(state))
    export(tmp_path / "w.pth", tmp_path / "small.pth")
    load_model(cfg, tmp_path / "small.pth")
    for change, words in (({"matching": "attention"}, "matching"), ({"split": 1}, "square")):
        with pytest.raises(FewShotError, match=f"small.pth was trained .*{words}"):
            load_model(cfg.replace(**change), tmp_path / "small.pth")


# ----------------------------------------------------------------------- old and published


def test_checkpoints_without_the_new_entries_load(folder, tmp_path):
    """As saved before folds were kept by name, and before today's newest options existed."""
    cfg = configure(folder)
    path = save(cfg, tmp_path / "w.pth")
    state = torch.load(path, weights_only=True)
    del state["fold"], state["seen"], state["config"]["Method"]["fidelity"]
    torch.save(state, path)
    told = []
    load_model(cfg, path, told.append)
    assert not told
    resume(cfg, path)
    with pytest.raises(FewShotError, match="trained on square"):
        load_model(cfg.replace(split=1), path)
    with pytest.raises(FewShotError, match="fidelity released, this run has corrected"):
        load_model(cfg.replace(fidelity="corrected"), path)


@pytest.mark.parametrize("use", [Use.EVALUATION, Use.PREDICTION])
def test_of_published_weights_it_is_said_that_nothing_is_known(folder, tmp_path, use):
    cfg, told = configure(folder), []
    torch.save(build_model(cfg).state_dict(), tmp_path / "published.pth")
    load_model(cfg, tmp_path / "published.pth", told.append, use)
    (note,) = told
    assert "published.pth does not say how it was trained" in note


@pytest.mark.parametrize("damage", [
    {"names": {1: "a"}, "base": [1, 2], "novel": [], "validation": []}, [1], {"names": 3}, None,
    torch.ones(2, 3), {"names": {}, "base": [torch.ones(2)], "novel": [], "validation": []},
])  # fmt: skip
def test_damaged_classes_are_named(folder, tmp_path, damage):
    cfg = configure(folder)
    content = {"config": cfg.to_dict(), "fold": damage}
    with pytest.raises(FewShotError, match="w.pth is damaged"):
        check(content, cfg, Use.EVALUATION, "w.pth")


def test_canonical_names_are_kept(folder, tmp_path):
    cfg = configure(folder, arch="HSNet", class_names=["sofa", "Cat", "c", "d"], folds=[[3], [4]])
    path = save(cfg, tmp_path / "w.pth")
    assert origin_of(read_checkpoint(path), "w.pth").seen == {canonical("couch"), "cat", "d"}


# ---------------------------------------------------------------------------- the commands


def test_as_a_user_meets_it(folder, tmp_path):
    """test.py: the configuration in the checkpoint serves; another split is refused, status 2,
    and no result appears; what the weights were trained on stands in the result."""
    path, output = save(configure(folder, arch="HSNet"), tmp_path / "w.pth"), tmp_path / "r.json"

    def call(*arguments: Any) -> subprocess.CompletedProcess:
        words = [sys.executable, ROOT / "test.py", "--weight", path, "--output", output,
                 "--episodes", 2, "--runs", 1, *arguments]  # fmt: skip
        return subprocess.run([str(word) for word in words], cwd=folder, env=environment(),
                              capture_output=True, text=True, timeout=240)  # fmt: skip

    refused = call("--config", folder / "stage2.yaml", "--opts", "arch", "HSNet", "split", 1,
                   "val_size", SIZE, "train_h", SIZE, "train_w", SIZE)  # fmt: skip
    assert refused.returncode == 2 and not output.exists()
    assert "was trained on square, which split 1 here holds out" in refused.stderr
    done = call()
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["trained"] == {
        "data_set": "tiny", "split": 0, "protocol": "pfenet",
        "classes": ["frame", "square", "stripe"],
    }  # fmt: skip
