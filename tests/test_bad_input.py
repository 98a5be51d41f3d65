"""Bad input of every kind, over every command: one sentence, exit status 2, results untouched."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.training_case import ROOT, SIDE, environment, make_data
from util.runtime import errors

MODULES = {
    "train_base.py": "train_base",
    "train.py": "train",
    "test.py": "test",
    "predict.py": "predict",
    "util.lists": "util.lists",
    "util.prepare": "util.prepare.__main__",
    "util.export": "util.export",
}
MAINS = ("train.py", "train_base.py", "test.py", "predict.py")


class World:
    """A finished run of both stages, its evaluation and predictions, and a folder for a mistake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here = folder  # of the mistake at hand
        self.data_root = folder / "data"
        self.base = folder / "exp/tiny/PSPNet/split0/resnet18/best.pth"
        self.run = folder / "exp/tiny/HDMNet/split0/resnet18/1shot"
        self.best = self.run / "best.pth"
        self.stage1 = ("--config", folder / "stage1.yaml")
        self.stage2 = ("--config", folder / "stage2.yaml")
        self.running: list[subprocess.Popen] = []

    def results(self) -> dict[str, bytes]:
        """Everything that runs left behind, but for what they may add to: logs, locks, caches."""
        found = {}
        for top in ("exp", "out"):
            for path in (self.folder / top).rglob("*"):
                if path.is_file() and path.suffix in (".pth", ".png", ".jpg", ".json"):
                    if path.name != "run.json" and path.parent.name != ".cache":
                        found[str(path.relative_to(self.folder))] = path.read_bytes()
        return found

    # ------------------------------------------------------------- things that are wrong

    def file(self, name: str, content: bytes | str = "") -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def both_lists(self, content: bytes | str) -> tuple:
        path = self.file("bad.txt", content)
        return ("--opts", "train_list", path, "val_list", path)

    def data(self, damage: Callable[[Path], Any]) -> tuple:
        """A copy of the data set with something wrong in it."""
        copy = self.here / "data"
        shutil.copytree(self.data_root, copy)
        damage(copy)
        shutil.copyfile(self.folder / "list.txt", self.here / "list.txt")  # without its scan
        lists = ("train_list", self.here / "list.txt", "val_list", self.here / "list.txt")
        return ("--opts", "data_root", copy, *lists)

    def yaml(self, content: bytes | str) -> tuple:
        return ("--config", self.file("bad.yaml", content))

    def checkpoint(self, change: Callable[[dict], Any], source: Path | None = None) -> Path:
        """A checkpoint of the run (or ``source``) in which something was changed."""
        state = torch.load(source or self.best, weights_only=True)
        replaced = change(state)
        path = self.here / "changed.pth"
        torch.save(state if replaced is None else replaced, path)
        return path

    def hostile(self) -> Path:
        return self.file("hostile.pth", pickle.dumps({"model": Hostile()}, protocol=2))

    def hostile_zip(self) -> Path:
        """The same inside torch's own container."""
        path = self.here / "hostile.pth"
        with zipfile.ZipFile(self.best) as whole, zipfile.ZipFile(path, "w") as copy:
            for item in whole.infolist():
                inside = whole.read(item)
                if item.filename.endswith("data.pkl"):
                    inside = pickle.dumps({"model": Hostile()}, protocol=2)
                copy.writestr(item, inside)
        return path

    def locked(self) -> tuple:
        """Another run is going on in the folder of the results."""
        code = (
            "import fcntl, sys\nf = open(sys.argv[1], 'a+')\nfcntl.lockf(f, fcntl.LOCK_EX | 4)\n"
            "print('locked', flush=True)\nsys.stdin.read()"
        )
        # Closing the file gives up what a run that ended in this very process may still hold.
        (self.run / ".lock").open().close()
        self.running.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(self.run / ".lock")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert self.running[-1].stdout.readline() == "locked\n"
        return self.stage2

    def coco(self, annotation: dict) -> Path:
        """A COCO file with one annotation of class ``object``."""
        image, category = {"id": 1, "file_name": "0.jpg"}, {"id": 1, "name": "object"}
        content = {"images": [image], "categories": [category], "annotations": [annotation]}
        return self.file("a.json", json.dumps(content))

    def predict(self, *arguments: Any, weight: Any = None) -> tuple:
        """predict.py with one good support and one good query, and whatever follows."""
        root = self.data_root
        good = {
            "--support": ("--support", root / "0.jpg", f"{root / '0.png'}#{self.label()}"),
            "--query": ("--query", root / "1.jpg"),
            "--output": ("--output", self.here / "predicted"),
        }
        given = [pair for name, pair in good.items() if name not in arguments]
        words = [word for pair in given for word in pair]
        return (*self.stage2, "--weight", weight or self.best, *words, *arguments)

    def label(self) -> int:
        return int(cv2.imread(str(self.data_root / "0.png"), cv2.IMREAD_UNCHANGED).max())


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-code-ran",)


def truncate(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


def empty_masks(folder: Path) -> None:
    for path in folder.glob("*.png"):
        save_mask(path, np.zeros((SIDE, SIDE), np.uint8))


def claims_to_be_huge(path: Path) -> None:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + struct.pack(">II", 60000, 60000) + whole[24:])


class Mistake(NamedTuple):
    command: str
    make: Callable[[World], tuple]
    words: str  # pattern of the sentence; names the file or the key


def opts(command: str, *settings: Any, words: str) -> Mistake:
    stage = "stage1" if command == "train_base.py" else "stage2"
    return Mistake(command, lambda w: (*getattr(w, stage), "--opts", *settings), words)


def config(content: str, words: str, command: str = "train.py") -> Mistake:
    return Mistake(command, lambda w: w.yaml(content), words)


def lists(content: bytes | str, words: str, command: str = "train.py") -> Mistake:
    stage = "stage1" if command == "train_base.py" else "stage2"
    return Mistake(command, lambda w: (*getattr(w, stage), *w.both_lists(content)), words)


def data(
    command: str, damage: Callable[[Path], Any], words: str, more: tuple = (), stage: str = ""
) -> Mistake:
    stage = stage or ("stage1" if command == "train_base.py" else "stage2")
    return Mistake(command, lambda w: (*getattr(w, stage), *w.data(damage), *more), words)


def weight(make: Callable[[World], Path], words: str, *more: Any) -> Mistake:
    return Mistake("test.py", lambda w: (*w.stage2, "--weight", make(w), *more), words)


def resume(make: Callable[[World], Path], words: str, *more: Any) -> Mistake:
    return Mistake("train.py", lambda w: (*w.stage2, "--resume", make(w), *more), words)


def predict(make: Callable[[World], tuple], words: str) -> Mistake:
    return Mistake("predict.py", lambda w: w.predict(*make(w)), words)


def export(make: Callable[[World], tuple], words: str) -> Mistake:
    return Mistake("util.export", make, words)


def prepare(make: Callable[[World], tuple], words: str) -> Mistake:
    return Mistake("util.prepare", make, words)


def trained_with(key: str, value: Any) -> Callable[[World], Path]:
    def change(state: dict) -> None:
        section = next(s for s in state["config"].values() if key in s)
        section[key] = value

    return lambda w: w.checkpoint(change)


def without(key: str) -> Callable[[World], Path]:
    return lambda w: w.checkpoint(lambda state: state.pop(key) and None)


def replaced(key: str, value: Any) -> Callable[[World], Path]:
    return lambda w: w.checkpoint(lambda state: state.update({key: value}))


NAN = torch.full((), float("nan"))

MISTAKES = {
    # ------------------------------------------------------------- list files
    "list missing": opts("train.py", "train_list", "gone.txt", words=r"gone\.txt: there is no"),
    "list missing, stage 1": opts("train_base.py", "train_list", "gone.txt", words=r"gone\.txt"),
    "list missing, evaluation": opts("test.py", "val_list", "gone.txt", words=r"gone\.txt"),
    "list empty": lists("", r"bad\.txt: the list is empty"),
    "list of blank lines": lists("\n \n\t\n", r"bad\.txt: the list is empty", "test.py"),
    "list is binary": lists(b"\xff\xfe\x00\x01", r"bad\.txt: not a text file"),
    "list is a folder": opts("train.py", "train_list", ".", words=r"\.: the list cannot be read"),
    "list with one column": lists("0.jpg\n", r"bad\.txt, line 1: expected a picture and a mask"),
    "list names a missing file": lists("0.jpg 0.png\n1.jpg 77.png\n", r"77\.png does not exist"),
    "list leaves data_root": lists("0.jpg ../data/0.png\n0.jpg ../../x.png\n",
                                   r"bad\.txt, line 2: .*leaves DATA\.data_root"),
    "list leaves data_root by an absolute path": lists(
        "/etc/hosts /etc/passwd\n", r"/etc/hosts.*leaves DATA\.data_root", "train_base.py"),
    "list with control characters": lists("0\x00.jpg 0.png\n", r"line 1: control characters"),
    "published list is code": Mistake(
        "train.py",
        lambda w: (*w.stage2, "--opts", "train_list",
                   w.file("data_list_0.txt", "[__import__('os').mkdir('hostile-code-ran')]")),
        r"data_list_0\.txt: not a plain list"),
    "published table of another split": Mistake(
        "train.py",
        lambda w: (*w.stage2, "--opts", "train_list",
                   w.file("data_list_0.txt", "[('0.jpg', '0.png')]"), "name",
                   w.file("sub_class_file_list_0.txt", "{1: [('0.jpg', '0.png')]}").parent.name),
        r"sub_class_file_list_0\.txt: made for another split"),
    "checking lists that are wrong": Mistake(
        "util.lists", lambda w: (*w.stage2, *w.both_lists("0.jpg\nx.jpg x.png\n"), "--check"),
        r"bad file\(s\) or line\(s\) in the lists of 'tiny'"),
    # ------------------------------------------------------------- pictures and masks
    "data_root missing": opts("train.py", "data_root", "gone", words=r"gone/0\.jpg does not exist"),
    "picture missing": data("train.py", lambda d: (d / "3.jpg").unlink(), r"3\.jpg does not exist"),
    "mask missing": data("train_base.py", lambda d: (d / "3.png").unlink(), r"3\.png does not"),
    "picture truncated, stage 1": data(
        "train_base.py", lambda d: [truncate(p, 400) for p in d.glob("*.jpg")],
        r"/\d+\.jpg: the picture cannot be read"),
    "picture truncated, stage 2": data(
        "train.py", lambda d: [truncate(p, 400) for p in d.glob("*.jpg")],
        r"/\d+\.jpg: the picture cannot be read"),
    "picture truncated, worker processes": data(
        "train.py", lambda d: [truncate(p, 400) for p in d.glob("*.jpg")],
        r"/\d+\.jpg: the picture cannot be read", ("workers", 1)),
    "picture truncated, evaluation": data(
        "test.py", lambda d: [truncate(p, 400) for p in d.glob("*.jpg")],
        r"/\d+\.jpg: the picture cannot be read"),
    "picture is text": data(
        "test.py", lambda d: [p.write_text("no picture") for p in d.glob("*.jpg")],
        r"/\d+\.jpg: the picture cannot be read"),
    "picture is empty": data(
        "test.py", lambda d: [p.write_bytes(b"") for p in d.glob("*.jpg")],
        r"/\d+\.jpg.*(empty|cannot be read)"),
    "checking truncated pictures": data(
        "util.lists", lambda d: truncate(d / "3.jpg", 400), r"1 bad file.*'tiny'", ("--check",)),
    "picture and mask of different sizes": data(
        "train.py",
        lambda d: [save_mask(p, np.eye(30, dtype=np.uint8) + 1) for p in d.glob("*.png")],
        r"\d+\.png.*30x30.*41x41|\d+\.jpg.*41x41.*30x30",
        ("min_pixels", 1, "folds", "[[2], [1]]", "arch", "HSNet")),
    "mask is RGB": data(
        "train.py", lambda d: save_mask(d / "3.png", np.zeros((SIDE, SIDE, 3), np.uint8)),
        r"3\.png: a mask needs one 8-bit channel.*RGB"),
    "mask has 16 bits": data(
        "train_base.py", lambda d: save_mask(d / "3.png", np.zeros((SIDE, SIDE), np.uint16)),
        r"3\.png: a mask needs one 8-bit channel.*16-bit"),
    "mask with a value that is no class": data(
        "train.py", lambda d: save_mask(d / "3.png", np.full((SIDE, SIDE), 9, np.uint8)),
        r"3\.png: mask value 9 is no class id"),
    "mask truncated": data("test.py", lambda d: truncate(d / "3.png", 40),
                           r"3\.png: the mask cannot be read"),
    "mask is text": data("test.py", lambda d: (d / "3.png").write_text("no mask"),
                         r"3\.png: the mask cannot be read"),
    "mask claims to be huge": data("test.py", lambda d: claims_to_be_huge(d / "3.png"),
                                   r"3\.png: the mask cannot be read"),
    "masks without an object": data("train.py", empty_masks, r"list\.txt: no picture is left"),
    "masks without an object, evaluation": data("test.py", empty_masks, r"list\.txt: no picture"),
    "a file where a mask folder was": data(
        "train.py", lambda d: (shutil.rmtree(d), d.write_text("")), r"0\.jpg does not exist"),
    # ------------------------------------------------------------- folds and shots
    "more supports than pictures": opts("train.py", "shot", 50, words=r"50 support"),
    "more supports than pictures, evaluation": Mistake(
        "test.py", lambda w: (*w.stage2, "--weight", w.best, "--opts", "shot", 50), r"50 support"),
    "no object large enough": opts("train.py", "min_pixels", 99999, words=r"list\.txt.*99999"),
    "a fold without pictures": opts(
        "test.py", "class_names", "[disc, square, stripe, frame, ghost]", "folds", "[[1, 5], [2]]",
        "min_pixels", 999, words=r"list\.txt: no picture is left for split 0"),
    "a class that no picture shows": opts(
        "train.py", "class_names", "[disc, square, stripe, frame, ghost]", "folds", "[[5, 1], [2]]",
        "protocol", "bam", "min_pixels", 999, "arch", "HSNet",
        words=r"list\.txt: no picture is left for split 0"),
    "fold holds out everything": opts("train.py", "folds", "[[1, 2, 3, 4]]", words=r"DATA\.folds"),
    "fold of unknown classes": opts("train.py", "folds", "[[9]]", words=r"folds"),
    "split 7": opts("train.py", "split", 7, words=r"split 7 is not a fold of tiny"),
    "split 7, evaluation": opts("test.py", "split", 7, words=r"split 7 is not a fold of tiny"),
    "shot 0": opts("train.py", "shot", 0, words=r"shot.*0"),
    "shot 0, lists": Mistake("util.lists", lambda w: (*w.stage2, "--shot", 0), r"shot.*0"),
    "no class names": opts("train.py", "class_names", "null", words=r"DATA\.class_names"),
    "a class name twice": opts("train.py", "class_names", "[a, b, b, c]", words=r"_names.*'b'"),
    # ------------------------------------------------------------- configuration
    "config missing": Mistake("train.py", lambda w: ("--config", "gone.yaml"), r"gone\.yaml"),
    "config missing, evaluation": Mistake("test.py", lambda w: ("--config", "x.yaml"), r"x\.yaml"),
    "config missing, lists": Mistake("util.lists", lambda w: ("--config", "x.yaml"), r"x\.yaml"),
    "config is a folder": Mistake("train.py", lambda w: ("--config", w.folder), r"cannot be read"),
    "config is not YAML": config("TRAIN: [1, 2", r"bad\.yaml: not valid YAML \(line"),
    "config is a list": config("- TRAIN\n- DATA\n", r"bad\.yaml: a configuration is made of"),
    "config with code": config("TRAIN: !!python/object/apply:os.mkdir [hostile-code-ran]\n",
                               r"bad\.yaml: not valid YAML"),
    "inherit loop": config("inherit: bad.yaml\n", r"bad\.yaml: inherit goes round in a circle"),
    "inherit a missing file": config("inherit: gone.yaml\n", r"gone\.yaml: there is no such"),
    "unknown section": config("TRIAN:\n  shot: 1\n", r"unknown section 'TRIAN'; nearest: TRAIN"),
    "unknown key": config("TRAIN:\n  shots: 1\n", r"shots is unknown; nearest: shot"),
    "unknown key, evaluation": opts("test.py", "vals_size", 41, words=r"vals_size.*val_size"),
    "unknown key, stage 1": opts("train_base.py", "epoch", 1, words=r"epoch.*epochs"),
    "wrong type": opts("train.py", "batch_size", "many", words=r"batch_size.*'many'"),
    "wrong type in the file": config("TRAIN:\n  epochs: [1]\n", r"bad\.yaml: TRAIN\.epochs"),
    "a number that is none": opts("train.py", "base_lr", ".nan", words=r"base_lr"),
    "override without a value": opts("train.py", "shot", words=r"shot.*no value"),
    "stages 5": opts("train.py", "stages", 5, words=r"stages"),
    "unknown backbone": opts("train.py", "backbone", "resnet51", words=r"backbone.*resnet5"),
    "unknown architecture": opts("train.py", "arch", "HDMNot", words=r"arch 'HDMNot'.*HDMNet"),
    "impossible model": opts("train.py", "backbone", "vgg16", "block_relu", False,
                             "train_h", 49, "train_w", 49, "val_size", 49, words=r"block_relu"),
    "impossible model, evaluation": Mistake(
        "test.py",
        lambda w: (*w.stage2, "--weight", w.best, "--opts", "backbone", "vgg16", "block_relu",
                   False, "train_h", 49, "train_w", 49, "val_size", 49), r"block_relu"),
    "too small a picture": opts("train.py", "train_h", 20, words=r"train_h 20 does not suit"),
    "too small a picture, evaluation": opts("test.py", "val_size", 20, words=r"val_size 20"),
    "wrong script for stage 1": Mistake("train.py", lambda w: w.stage1, r"train_base\.py"),
    "wrong script for stage 2": Mistake("train_base.py", lambda w: w.stage2, r"train\.py"),
    "evaluating a base learner": Mistake("test.py", lambda w: (*w.stage1, "--weight", w.base),
                                         r"PSPNet is a base learner"),
    "exporting a base learner": export(lambda w: (w.base, w.here / "x.pth"), r"is a base learner"),
    "more runs than seeds": Mistake("test.py", lambda w: (*w.stage2, "--runs", 99), r"runs 99"),
    "negative runs": Mistake("test.py", lambda w: (*w.stage2, "--runs", -1), r"runs.*-1"),
    "no episodes": Mistake("test.py", lambda w: (*w.stage2, "--episodes", 0), r"episodes.*0"),
    "negative figures": Mistake("test.py", lambda w: (*w.stage2, "--figures", -1), r"--figures"),
    # ------------------------------------------------------------- weights
    "stage 1 not trained": opts("train.py", "base_weight", "gone.pth",
                                words=r"gone\.pth.*train_base"),
    "stage 1 of another fold": opts("train.py", "folds", "[[1], [2], [3, 4]]", "split", 2,
                                    "base_weight", "BASE",
                                    words=r"trained on stripe, frame, which split 2 here.*split 0"),
    "stage 1 of another fold, unnamed": Mistake(
        "train.py",
        lambda w: (*w.stage2, "--opts", "folds", "[[1], [2], [3, 4]]", "split", 2, "base_weight",
                   w.checkpoint(lambda s: s["model"], w.base)),
        r"base_learner.*shape.*split"),
    "stage 1 damaged": Mistake(
        "train.py", lambda w: (*w.stage2, "--opts", "base_weight", w.file("cut.pth", b"PK\3\4 x")),
        r"cut\.pth is truncated or damaged"),
    "encoder weights missing": opts("train_base.py", "pretrained", "gone.pth", words=r"gone\.pth"),
    "encoder weights of another network": Mistake(
        "train_base.py",
        lambda w: (*w.stage1, "--opts", "pretrained", w.checkpoint(lambda s: {"a": NAN})),
        r"changed\.pth has none of the known layouts"),
    "weights missing": weight(lambda w: Path("gone.pth"), r"no weight file gone\.pth"),
    "weights are a folder": weight(lambda w: w.run, r"no weight file .*1shot"),
    "weights are empty": weight(lambda w: w.file("e.pth"), r"e\.pth is truncated or damaged"),
    "weights truncated": weight(lambda w: w.file("cut.pth", w.best.read_bytes()[:9000]),
                                r"cut\.pth is truncated or damaged"),
    "weights are text": weight(lambda w: w.file("t.pth", "weights"), r"t\.pth"),
    "weights are hostile": weight(World.hostile, r"hostile\.pth holds more than tensors"),
    "weights are hostile inside": weight(World.hostile_zip, r"hostile\.pth holds more than"),
    "weights are a list": weight(lambda w: w.checkpoint(lambda s: [1, 2]), r"holds a list"),
    "weights without tensors": weight(lambda w: w.checkpoint(lambda s: {}), r"holds no tensors"),
    "weights of something else": weight(lambda w: w.checkpoint(lambda s: {"a.b": NAN}),
                                        r"changed\.pth has none of the known layouts"),
    "weights whose names command the terminal": weight(
        lambda w: w.checkpoint(lambda s: {"\033[2J\nerror: all is well\n": NAN}),
        r"changed\.pth has none of the known layouts.*all is well"),
    "weights of stage 1 alone": weight(
        lambda w: w.base, r"best\.pth was trained with arch PSPNet, this run has HDMNet"),
    "unnamed weights of stage 1 alone": weight(
        lambda w: w.checkpoint(lambda s: s["model"], w.base), r"changed\.pth has no values for"),
    "weights of another class count": weight(
        lambda w: w.best, r"best\.pth was trained on \w+, which.*folds", "--opts", "folds",
        "[[1, 2], [3]]"),
    "unnamed weights of another class count": weight(
        lambda w: w.checkpoint(lambda s: s["model"]), r"changed\.pth.*base_learner.*shape",
        "--opts", "folds", "[[1, 2], [3]]"),
    "weights of another width": weight(
        lambda w: w.best, r"best\.pth was trained with width 8, this run has 16", "--opts",
        "width", 16),
    "unnamed weights of another width": weight(
        lambda w: w.checkpoint(lambda s: s["model"]), r"changed\.pth.*shape", "--opts", "width",
        16),
    "weights that are not finite": weight(
        lambda w: w.checkpoint(lambda s: [t.fill_(NAN) for n, t in s["model"].items()
                                          if n.startswith("decoder") and t.is_floating_point()]
                               and None),
        r"changed\.pth: tensor decoder\S+ holds numbers that are not finite",
        "--runs", 1, "--episodes", 1),
    "resume from a missing file": resume(lambda w: Path("gone.pth"), r"gone\.pth does not exist"),
    "resume from a damaged file": resume(lambda w: w.file("cut.pth", w.best.read_bytes()[:9000]),
                                         r"cut\.pth is truncated or damaged"),
    "resume from a hostile file": resume(World.hostile, r"hostile\.pth holds more than tensors"),
    "resume from weights alone": resume(without("optimizer"), r"holds weights but no training"),
    "resume another shot": resume(trained_with("shot", 3), r"trained with shot 3"),
    "resume another seed": resume(trained_with("manual_seed", 3), r"trained with manual_seed 3"),
    "resume another batch": resume(lambda w: w.best, r"batch_size", "--opts", "batch_size", 3),
    "resume without a position": resume(without("iteration"), r"changed\.pth.*iteration"),
    "resume without a configuration": resume(without("config"), r"changed\.pth.*config"),
    "resume with a wrong optimizer": resume(replaced("optimizer", {"state": 1}), r"changed\.pth"),
    "resume with a wrong epoch": resume(replaced("epoch", "three"), r"changed\.pth.*epoch"),
    "resume with wrong weights": resume(replaced("model", {"a": NAN}), r"changed\.pth"),
    "exporting a missing file": export(lambda w: ("gone.pth", w.here / "x.pth"), r"gone\.pth does"),
    "exporting foreign weights": export(
        lambda w: (w.checkpoint(lambda s: {"a": NAN}), w.here / "x.pth"), r"how it was trained"),
    "exporting a damaged header": export(
        lambda w: (replaced("config", {"Method": {"arch": "None"}})(w), w.here / "x.pth"),
        r"changed\.pth"),
    "exporting an odd header": export(
        lambda w: (replaced("config", [1])(w), w.here / "x.pth"), r"changed\.pth"),
    "exporting without versions": export(
        lambda w: (without("versions")(w), w.here / "x.pth"), r"changed\.pth.*how it was trained"),
    # ------------------------------------------------------------- places to write to
    "results below a file": Mistake(
        "train.py",
        lambda w: (*w.stage2, "--opts", "base_weight", w.base, "exp_root", w.file("f")),
        r"cannot make the folder .*/f/tiny"),
    "results below a file, stage 1": Mistake(
        "train_base.py", lambda w: (*w.stage1, "--opts", "exp_root", w.file("f")),
        r"cannot make the folder .*/f/tiny"),
    "results where nobody can write": opts("train.py", "exp_root", "/proc", "base_weight", "BASE",
                                            words=r"cannot make the folder /proc"),
    "a folder where the checkpoint goes": Mistake(
        "train.py",
        lambda w: (*w.stage2, "--opts", "max_iterations", 1, "evaluate", False, "base_weight",
                   w.base, "exp_root",
                   w.file("e/tiny/HDMNet/split0/resnet18/1shot/last.pth/x").parents[6]),
        r"last\.pth"),
    "another run in the folder": Mistake("train.py", World.locked, r"1shot is in use by a run"),
    "result below a file": Mistake(
        "test.py", lambda w: (*w.stage2, "--output", w.file("f") / "r.json"), r"cannot write .*/r"),
    "result is a folder": Mistake("test.py", lambda w: (*w.stage2, "--output", w.here),
                                  r"cannot write .*folder"),
    "result in a folder that cannot be made": Mistake(
        "test.py", lambda w: (*w.stage2, "--output", "/proc/none/r.json"), r"cannot write /proc"),
    "export below a file": export(lambda w: (w.best, w.file("f") / "x.pth"),
                                  r"cannot write .*f/x\.pth"),
    "export over a folder": export(lambda w: (w.best, w.run), r"cannot write .*1shot"),
    "list report below a file": Mistake(
        "util.lists", lambda w: (*w.stage2, "--json", w.file("f") / "r.json"), r"f/r\.json"),
    "predictions below a file": predict(lambda w: ("--output", w.file("f") / "out"), r"/f"),
    # ------------------------------------------------------------- predicting
    "presence above 1": predict(lambda w: ("--presence", "2"), r"--presence 2"),
    "prediction without weights": Mistake("predict.py", lambda w: w.predict(weight="gone.pth"),
                                          r"gone\.pth"),
    "prediction with hostile weights": Mistake(
        "predict.py", lambda w: w.predict(weight=w.hostile()), r"hostile\.pth"),
    "configuration in the weights damaged": Mistake(
        "predict.py", lambda w: w.predict(weight=replaced("config", {"TRAIN": 3})(w))[2:],
        r"changed\.pth: section TRAIN"),
    "override that is not YAML": Mistake(
        "predict.py", lambda w: (*w.predict()[2:], "--opts", "val_size", "[4"), r"val_size.*'\[4'"),
    "unknown override": Mistake(
        "predict.py", lambda w: (*w.predict()[2:], "--opts", "vals_size", "41"), r"vals_size"),
    "no such device": predict(lambda w: ("--device", "abacus"), r"--device abacus|abacus"),
    "support picture missing": predict(
        lambda w: ("--support", "gone.jpg", w.data_root / "0.png"), r"gone\.jpg"),
    "support mask missing": predict(
        lambda w: ("--support", w.data_root / "0.jpg", "gone.png"), r"gone\.png"),
    "support without a mask": predict(lambda w: ("--support", w.data_root / "0.jpg"), r"--support"),
    "support mask with two labels": predict(
        lambda w: ("--support", w.data_root / "0.jpg", w.data_root / "0.png"), r"0\.png.*labels"),
    "support mask without the object": predict(
        lambda w: ("--support", w.data_root / "0.jpg", f"{w.data_root / '0.png'}#9"),
        r"0\.png'.*no object"),
    "support mask of another size": predict(
        lambda w: ("--support", w.data_root / "0.jpg",
                   w.file("m.png", cv2.imencode(".png", np.ones((9, 9), np.uint8))[1].tobytes())),
        r"m\.png' is 9x9"),
    "support box is no box": predict(
        lambda w: ("--support", w.data_root / "0.jpg", "box:1,2,3"), r"'box:1,2,3' is no box"),
    "support box of words": predict(
        lambda w: ("--support", w.data_root / "0.jpg", "box:nan,0,inf,9"), r"box"),
    "support box outside": predict(
        lambda w: ("--support", w.data_root / "0.jpg", "box:10,10,90,90"), r"box 10,10,90,90"),
    "support annotation is not COCO": predict(
        lambda w: ("--support", w.data_root / "0.jpg", w.file("a.json", "[1]")), r"a\.json is not"),
    "support annotation with odd polygons": predict(
        lambda w: ("--support", w.data_root / "0.jpg",
                   w.coco({"image_id": 1, "category_id": 1, "segmentation": ["abc"]})), r"polygon"),
    "support annotation with endless polygons": predict(
        lambda w: ("--support", w.data_root / "0.jpg",
                   w.coco({"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 1e300] * 2]})),
        r"polygon"),
    "support annotation without polygons": predict(
        lambda w: ("--support", w.data_root / "0.jpg", w.coco({"image_id": 1})), r"a\.json is not"),
    "no supports in the folder": Mistake(
        "predict.py",
        lambda w: (*w.stage2, "--weight", w.best, "--supports", w.file("s/x").parent, "--query",
                   w.data_root, "--output", w.here / "out"), r"/s holds no class folders"),
    "query missing": predict(lambda w: ("--query", "gone/*.jpg"), r"query 'gone/\*\.jpg'"),
    "query is text": predict(lambda w: ("--query", w.file("q.jpg", "words")), r"q\.jpg"),
    # ------------------------------------------------------------- preparing
    "preparing from a missing folder": prepare(lambda w: ("pascal", "--root", "gone"), r"gone"),
    "preparing from an empty folder": prepare(
        lambda w: ("pascal", "--root", w.here, "--lists", w.here / "l"), r"VOC|voc"),
    "preparing with no workers": prepare(
        lambda w: ("demo", "--root", w.here / "d", "--workers", 0), r"--workers 0"),
    "preparing from a damaged archive": prepare(
        lambda w: ("pascal", "--root", w.file("VOCtrainval_11-May-2012.tar", "no archive").parent,
                   "--lists", w.here / "l"), r"VOCtrainval_11-May-2012\.tar"),
    "preparing from damaged annotations": prepare(
        lambda w: ("coco", "--root", w.file("annotations_trainval2014.zip", "no archive").parent,
                   "--lists", w.here / "l"), r"annotations_trainval2014\.zip"),
    "preparing over somebody's masks": prepare(
        lambda w: ("demo", "--root", w.file("SegmentationClass/mine.png", "x").parents[1],
                   "--lists", w.here / "l", "--train", 1, "--val", 1), r"SegmentationClass"),
    "preparing with impossible options": prepare(
        lambda w: ("demo", "--root", w.here / "d", "--lists", w.here / "l", "--size", 3), r"size"),
    "preparing into a file": prepare(
        lambda w: ("demo", "--root", w.file("f") / "d", "--lists", w.here / "l", "--train", 1,
                   "--val", 1), r"/f"),
}  # fmt: skip


# ------------------------------------------------------------------------ running a command


def arguments_of(mistake: Mistake, world: World) -> list[str]:
    words = [str(word) for word in mistake.make(world)]
    return [str(world.base) if word == "BASE" else word for word in words]


def call(command: str, *arguments: Any) -> None:
    """Run a command in this process, as ``python command arguments`` would."""
    main = importlib.import_module(MODULES[command]).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        errors.run(main)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("bad") / "tiny"
    make_data(folder)
    world = World(folder)
    small = ("--opts", "max_iterations", 1, "exp_root", folder / "exp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.chdir(folder)
        call("train_base.py", *world.stage1, *small)
        call("train.py", *world.stage2, *small)
        call("test.py", *world.stage2, "--runs", 1, "--episodes", 1)
        call("predict.py", *world.predict("--output", folder / "out"))
        yield world


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_results_alone(
    world, name, tmp_path, monkeypatch, capsys
):
    mistake = MISTAKES[name]
    world.here = tmp_path
    monkeypatch.chdir(tmp_path)
    before = world.results()
    assert {"best.pth", "last.pth", "result.json", "summary.json"} <= {Path(p).name for p in before}
    arguments = arguments_of(mistake, world)
    made = names_in(tmp_path)
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as caught:
            call(mistake.command, *arguments)
    finally:
        for process in world.running:
            process.communicate("")
        world.running.clear()
    told = capsys.readouterr().err
    assert caught.value.code == 2, told
    found = [line for line in told.splitlines() if line.startswith("error: ")]
    fits = len(found) == 1 and re.search(mistake.words, found[0]) and len(found[0]) < 600
    assert fits and "Traceback" not in told, told
    assert world.results() == before
    assert not any(path.endswith((".tmp", ".part")) for path in names_in(tmp_path) - made)
    assert "hostile-code-ran" not in names_in(tmp_path)


def test_there_are_enough_kinds_over_every_command():
    assert len(MISTAKES) >= 40
    assert {mistake.command for mistake in MISTAKES.values()} == set(MODULES)


@pytest.mark.parametrize(
    "name",
    ["picture truncated, worker processes", "weights are hostile", "checking lists that are wrong",
     "export below a file"],
)  # fmt: skip
def test_the_same_from_the_shell(world, name, tmp_path):
    mistake = MISTAKES[name]
    world.here = tmp_path
    before = world.results()
    arguments = arguments_of(mistake, world)
    script = ["-m", mistake.command]
    if mistake.command in MAINS:
        script = [str(ROOT / mistake.command)]
    done = subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1 and re.search(mistake.words, found[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert world.results() == before
