"""Lists, scans and fold indexes: the rules, the caches, bad input, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from util.config import load_config
from util.config.folders import folder_pairs
from util.config.folds import Fold
from util.data import index as lists_module
from util.data.dataset import PictureDataset
from util.data.index import build_index, count_pixels, parallel, read_list, scan, select
from util.data.sources import Pair, Source, find_pairs
from util.lists import check, main
from util.prepare.coco import prepare
from util.runtime.errors import FewShotError

ROOT = Path(__file__).resolve().parents[2]
COCO128 = ROOT.parent / "shared" / "data" / "coco128"
GOLDEN = ROOT / "tests" / "golden" / "coco128_fold0_lists.json"
SIZE = (60, 50)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_pair(root, name, areas, ignored=0):
    """A picture with ``areas`` {class id: pixels} in its mask; returns the list line."""
    flat = np.zeros(SIZE[0] * SIZE[1], np.uint8)
    flat[len(flat) - ignored :] = 255
    start = 0
    for class_id, pixels in areas.items():
        flat[start : start + pixels] = class_id
        start += pixels
    save(root / "images" / f"{name}.jpg", np.full((*SIZE, 3), 90, np.uint8))
    save(root / "masks" / f"{name}.png", flat.reshape(SIZE))
    return f"images/{name}.jpg masks/{name}.png"


# Split 0 of three classes holds out class 1; 500 pixels make an object large.
PICTURES = {
    "a": {2: 600},
    "b": {2: 600, 3: 500},
    "c": {2: 499},
    "d": {1: 700, 2: 700},
    "e": {1: 500, 3: 20},
    "f": {3: 500, 2: 10},
    "g": {},
}


@pytest.fixture
def data(tmp_path):
    """A small data set with the class names and folds of a YAML section."""
    lines = [save_pair(tmp_path / "root", name, areas) for name, areas in PICTURES.items()]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    config = tmp_path / "own.yaml"
    config.write_text(
        f"DATA:\n  data_set: mine\n  data_root: {tmp_path}/root\n"
        f"  train_list: {tmp_path}/train.txt\n  val_list: {tmp_path}/val.txt\n"
        "  class_names: [cat, dog, cow]\n  folds: [[1], [2, 3]]\n  min_pixels: 500\n"
        f"TRAIN:\n  exp_root: {tmp_path}/exp\n"
    )
    return tmp_path


def config_of(data, *overrides):
    return load_config(data / "own.yaml", list(overrides))


def names_of(index, positions=None):
    positions = index.entries if positions is None else positions
    return "".join(index.pairs[p].image.stem for p in positions)


def per_class(index):
    return {c: names_of(index, places) for c, places in index.per_class.items()}


# ---------------------------------------------------------------------------- rules


def test_protocol_bam_skips_pictures_with_held_out_classes(data):
    index = build_index(config_of(data), "train")
    assert names_of(index) == "abf"
    assert per_class(index) == {2: "ab", 3: "bf"}
    assert [index.present[p] for p in index.entries] == [(2,), (2, 3), (2, 3)]
    assert index.names == {1: "cat", 2: "dog", 3: "cow"} and not index.binary


def test_protocol_pfenet_keeps_them(data):
    index = build_index(config_of(data, "protocol", "pfenet"), "train")
    assert names_of(index) == "abdf"
    assert per_class(index) == {2: "abd", 3: "bf"}
    assert index.present[3] == (2,)


def test_validation_keeps_large_objects_of_held_out_classes(data):
    for mode in ("val", "test"):
        index = build_index(config_of(data), mode)
        assert names_of(index) == "de" and per_class(index) == {1: "de"}
    index = build_index(config_of(data, "split", 1), "val")
    assert names_of(index) == "abdf" and per_class(index) == {2: "abd", 3: "bf"}
    assert index.present[5] == (2, 3)  # whatever the size


def test_base_mode_lists_the_base_classes_of_the_validation_list(data):
    assert names_of(build_index(config_of(data), "base")) == "abdf"


def test_protocol_hsnet_has_an_entry_for_each_picture_and_class(data):
    index = build_index(config_of(data, "protocol", "hsnet"), "train")
    assert names_of(index) == "abbdf" and index.entry_classes == [2, 2, 3, 2, 3]
    assert not index.class_first


def test_min_pixels_counts_from_exactly_that_many(data):
    assert "c" not in names_of(build_index(config_of(data), "train"))
    assert "c" in names_of(build_index(config_of(data, "min_pixels", 499), "train"))


def test_an_empty_fold_is_an_error(data):
    with pytest.raises(FewShotError, match="val.txt: no picture is left for split 0 .*2999 pixels"):
        build_index(config_of(data, "min_pixels", 2999), "val")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(1, 6), st.integers(1, 3000)), max_size=8),
    st.sampled_from(["bam", "pfenet"]),
    st.sampled_from(["train", "val"]),
)
def test_select_is_the_rule_of_the_page(pictures, protocol, mode):
    fold = Fold((2, 4, 6), (1, 3, 5), dict.fromkeys(range(1, 7), "x"))
    cfg = SimpleNamespace(protocol=protocol, min_pixels=2048, data_set="mine")
    counts = [{0: 9, 255: 7000, **picture} for picture in pictures]
    pairs = [Pair(Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(len(pictures))]
    source = Source(pairs, "list", Path("cache"))
    index = select(cfg, fold, mode, source, counts)
    wanted = set(fold.base if mode == "train" else fold.novel)
    for position, picture in enumerate(pictures):
        large = {c for c in picture if c in wanted and picture[c] >= 2048}
        clean = mode == "val" or protocol == "pfenet" or set(picture) <= wanted
        kept = bool(large) and clean
        assert (position in index.entries) == kept
        assert {c for c in wanted if position in index.per_class[c]} == (large if kept else set())
        assert index.present.get(position, ()) == tuple(sorted(wanted & set(picture)) * kept)


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"the pictures of {COCO128} are not here")
def test_coco128_gives_the_reference_lists(tmp_path):
    prepare(COCO128, tmp_path, out=tmp_path / "coco")
    golden = json.loads(GOLDEN.read_text())
    paths = ["data_root", str(tmp_path / "coco"), "train_list", str(tmp_path / "train.txt")]
    paths += ["val_list", str(tmp_path / "val.txt"), "exp_root", str(tmp_path / "exp")]
    cfg = load_config(ROOT / "config" / "coco" / "coco_split0_resnet50.yaml", paths)
    for mode in ("train", "val"):
        index = build_index(cfg, mode)
        expected = golden[f"fold0_{mode}"]
        assert [index.pairs[p].image.name for p in index.entries] == expected["images"]
        found = {
            str(c): [index.pairs[p].image.name for p in places]
            for c, places in index.per_class.items()
            if places
        }
        assert found == {c: names for c, names in expected["per_class"].items() if names}


# ---------------------------------------------------------------------------- list files


def listing(tmp_path, text, **more):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    return read_list(path, tmp_path / "root", **more)


def test_columns_may_hold_spaces(tmp_path):
    root = tmp_path / "root"
    save(root / "my pictures" / "a b.jpg", np.zeros((2, 2, 3), np.uint8))
    expected = [(root / "my pictures" / "a b.jpg", root / "m" / "a b.png")]
    assert listing(tmp_path, "my pictures/a b.jpg\tm/a b.png\n") == expected
    assert listing(tmp_path, "\ufeffmy pictures/a b.jpg m/a b.png\r\n\r\n") == expected
    # Where no picture exists to tell, the last gap counts.
    assert listing(tmp_path, "no such.jpg m.png")[0].mask == root / "m.png"
    assert listing(tmp_path, "a.jpg   b.png")[0] == (root / "a.jpg", root / "b.png")


@pytest.mark.parametrize("written", ["caf\u00e9", "cafe\u0301"])
@pytest.mark.parametrize("stored", ["caf\u00e9", "cafe\u0301"])
def test_accents_may_be_composed_in_another_way_than_on_the_disk(tmp_path, stored, written):
    for suffix in ("jpg", "png"):
        save(tmp_path / "root" / f"{stored}.{suffix}", np.zeros((2, 2, 3), np.uint8))
    (pair,) = listing(tmp_path, f"{written}.jpg {written}.png")
    assert [path.name for path in pair] == [f"{stored}.jpg", f"{stored}.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg b.png\nalone.jpg\n", "line 2: expected a picture and a mask, found 'alone.jpg'"),
        ("a\tb\tc\n", "line 1: expected a picture and a mask"),
        ("../a.jpg b.png\n", "line 1: '../a.jpg' leaves DATA.data_root"),
        ("x/../../a.jpg b.png", "leaves DATA.data_root"),
        ("a.jpg /etc/passwd\n", "'/etc/passwd' leaves DATA.data_root"),
        ("a.jpg ../root2/b.png\n", "leaves DATA.data_root"),
        ("a.jpg .\n", "leaves DATA.data_root"),
        ("a\x00.jpg b.png\n", "control characters"),
        ("\n \n", "the list is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    with pytest.raises(FewShotError, match=message):
        listing(tmp_path, text)


def test_paths_may_leave_the_root_when_the_user_says_so(tmp_path):
    pairs = listing(tmp_path, "../a.jpg /b.png", allow_outside=True)
    assert pairs == [(tmp_path / "a.jpg", Path("/b.png"))]
    assert listing(tmp_path, "x/../a.jpg ./b.png")[0].image == tmp_path / "root" / "a.jpg"
    path = tmp_path / "here.txt"
    path.write_text("a.jpg b.png")
    assert read_list(path, ".") == [(Path("a.jpg"), Path("b.png"))]
    path.write_text("../a.jpg b.png")
    with pytest.raises(FewShotError, match="leaves"):
        read_list(path, ".")


def test_lists_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FewShotError, match="none.txt: there is no such list"):
        read_list(tmp_path / "none.txt", tmp_path)
    (tmp_path / "bytes.txt").write_bytes(b"a.jpg \xff\xfe.png")
    with pytest.raises(FewShotError, match="bytes.txt: not a text file"):
        read_list(tmp_path / "bytes.txt", tmp_path)
    with pytest.raises(FewShotError, match="cannot be read"):
        read_list(tmp_path, tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120) | st.text(max_size=120).map(lambda t: t.encode("utf-8", "replace")))
def test_any_list_is_read_below_the_root_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(content)
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        pairs = read_list(path, root)
    except FewShotError as error:
        assert str(path) in str(error)
    else:
        for name in (name for pair in pairs for name in pair):
            assert os.path.normpath(name).startswith(f"{root}{os.sep}")


# ---------------------------------------------------------------------------- class folders


def make_folders(root, binary_value=255):
    for number, name in enumerate(("apple", "bear")):
        for i in (1, 2, 10):
            mask = np.zeros((50, 60), np.uint8)
            mask[: 10 + number, :] = binary_value
            save(root / name / f"{i}.jpg", np.full((50, 60, 3), i, np.uint8))
            save(root / name / f"{i}.png", np.dstack([mask] * 3))
    save(root / "cat" / "images" / "x.png", np.zeros((50, 60, 3), np.uint8))
    save(root / "cat" / "masks" / "x.png", np.ones((50, 60), np.uint8))
    return root


def write_config(place, root):
    (place / "own.yaml").write_text(
        f"DATA: {{data_set: mine, data_root: {root}}}\nTRAIN: {{exp_root: {place}/exp}}\n"
    )


def test_class_folders_need_no_list_and_no_class_names(tmp_path):
    root = make_folders(tmp_path / "root")
    write_config(tmp_path, root)
    cfg = config_of(tmp_path, "min_pixels", 1)
    index = build_index(cfg, "val")
    assert index.binary and [index.label(c) for c in (1, 2, 3)] == [1, 1, 1]
    assert index.names == {1: "apple", 2: "bear", 3: "cat"}
    assert {c: [index.pairs[p].image.name for p in ps] for c, ps in index.per_class.items()} == {
        1: ["1.jpg", "2.jpg", "10.jpg"],
        2: ["1.jpg", "2.jpg", "10.jpg"],
        3: ["x.png"],
    }
    assert all(len(classes) == 1 for classes in index.present.values())
    large = build_index(cfg.replace(min_pixels=660), "train")
    assert {c: len(ps) for c, ps in large.per_class.items()} == {1: 0, 2: 3, 3: 1}


def test_pictures_and_masks_of_a_class_folder_must_match(tmp_path):
    folder = make_folders(tmp_path / "root") / "apple"
    (folder / "2.jpg").unlink()
    with pytest.raises(FewShotError, match="2.png has no picture"):
        folder_pairs(folder)
    (folder / "2.png").unlink()
    (folder / "10.png").unlink()
    with pytest.raises(FewShotError, match="10.jpg has no mask"):
        folder_pairs(folder)


def test_black_and_white_masks_in_a_list_are_named_with_what_255_means(data, caplog, capsys):
    """Of one picture: it is left out and named. Of all: nothing is left, and that is why."""
    bad = data / "root" / "masks" / "a.png"
    save(bad, np.array(Image.open(bad).convert("L"), np.uint8).astype(bool) * np.uint8(255))
    index = build_index(config_of(data), "train")
    assert "a" not in names_of(index)
    assert f"{bad}: the mask holds no value but 255" in caplog.text and "ignored" in caplog.text
    report = check(config_of(data))
    assert {entry["file"] for part in report for entry in part["bad"]} == {str(bad)}
    assert "255 means ignored in a list" in report[0]["bad"][0]["problem"]
    for path in (data / "root" / "masks").glob("*.png"):
        save(path, (np.array(Image.open(path).convert("L")) > 0) * np.uint8(255))
    with pytest.raises(FewShotError, match="png: .*255 means ignored.*more such masks"):
        build_index(config_of(data), "val")
    for part in check(config_of(data)):
        assert len(part["bad"]) == part["pairs"] - 1  # one has always been empty


def test_a_border_in_class_folders_is_neither_object_nor_background(tmp_path):
    root = make_folders(tmp_path / "root")
    mask = np.zeros((50, 60), np.uint8)
    mask[10:30], mask[30:33] = 1, 255
    for path in root.glob("*/*.png"):
        save(path, mask)
    write_config(tmp_path, root)
    cfg = config_of(tmp_path, "min_pixels", 1200)
    index = build_index(cfg, "val")
    assert {c: len(places) for c, places in index.per_class.items()} == {1: 3, 2: 3, 3: 1}
    target = PictureDataset(cfg, index)[index.per_class[1][0]].target
    assert (target.numpy() == mask).all()
    assert not any(part["bad"] for part in check(cfg))


def test_class_folder_masks_without_object_are_no_entries(tmp_path, caplog):
    root = make_folders(tmp_path / "root")
    save(root / "apple" / "2.png", np.zeros((50, 60), np.uint8))
    write_config(tmp_path, root)
    index = build_index(config_of(tmp_path, "min_pixels", 1), "val")
    assert [index.pairs[p].image.name for p in index.per_class[1]] == ["1.jpg", "10.jpg"]
    assert f"left out: {root}/apple/2.png: no object in the mask" in caplog.text


# ---------------------------------------------------------------------------- published lists


def publish(data, split=0, prefix="../data/VOC/", literal=False, sub=None):
    found = [(f"{prefix}images/{n}.jpg", f"{prefix}masks/{n}.png") for n in "abf"]
    path = data / f"data_list_{split}.txt"
    path.write_text(str(found) if literal else "\n".join(" ".join(pair) for pair in found))
    sub = {2: found[:2], 3: found[1:]} if sub is None else sub
    (data / f"sub_class_file_list_{split}.txt").write_text(str(sub))
    return path


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("prefix", ["../data/VOC/", "", "/home/author/x/"])
def test_published_lists_are_taken_as_they_are(data, literal, prefix):
    path = publish(data, prefix=prefix, literal=literal)
    index = build_index(config_of(data, "train_list", str(path), "min_pixels", 999), "train")
    assert names_of(index) == "abf" and per_class(index) == {2: "ab", 3: "bf"}
    assert index.pairs[0].image == data / "root" / "images" / "a.jpg"
    assert index.present[2] == (2, 3)


@pytest.mark.parametrize(
    ("sub", "message"),
    [
        ("__import__('os').system('touch owned')", "not a plain list or table"),
        ("{2: [", "not a plain list or table"),
        ("(" * 5000, "not a plain list or table"),
        ("{2: 'abc'}", "not a table of class id"),
        ("[1, 2]", "not a table of class id"),
        ("{'2': []}", "not a table of class id"),
        ("{1: []}", "made for another split: class 1"),
        ("{2: [('../data/VOC/images/z.jpg', '../data/VOC/masks/z.png')]}", "lists a picture that"),
        ("{2: [('../data/VOC/../../z.jpg', '../data/VOC/masks/z.png')]}", "leaves DATA.data_root"),
    ],
)
def test_bad_published_lists_are_refused_and_never_run(data, sub, message, monkeypatch):
    monkeypatch.chdir(data)
    cfg = config_of(data, "train_list", str(publish(data, sub=sub)))
    with pytest.raises(FewShotError, match=message):
        build_index(cfg, "train")
    assert not (data / "owned").exists()


def test_published_lists_of_another_data_folder_are_refused(data):
    path = publish(data)
    path.write_text("../elsewhere/other/q.jpg ../elsewhere/other/q.png")
    with pytest.raises(FewShotError, match="is not below DATA.data_root"):
        build_index(config_of(data, "train_list", str(path)), "train")
    path.write_text("only.jpg")
    with pytest.raises(FewShotError, match="not a list of pictures and masks"):
        build_index(config_of(data, "train_list", str(path)), "train")


# ---------------------------------------------------------------------------- scanning


@given(st.lists(st.integers(0, 255), min_size=1, max_size=64))
def test_count_pixels_counts(values):
    found = count_pixels(np.array([values], np.uint8))
    assert found == {v: values.count(v) for v in values}


def test_scan_is_cached_and_made_anew_when_a_mask_or_the_list_changes(data, monkeypatch):
    calls = []
    real = lists_module.scan_one
    monkeypatch.setattr(
        lists_module, "scan_one", lambda m, binary: calls.append(m) or real(m, binary)
    )
    cfg = config_of(data)
    first = build_index(cfg, "train")
    assert len(calls) == len(PICTURES)
    for split, protocol in ((0, "bam"), (1, "pfenet"), (0, "pfenet")):  # one scan serves all
        build_index(cfg.replace(split=split, protocol=protocol, min_pixels=9), "train")
    assert build_index(cfg, "train") == first and len(calls) == len(PICTURES)

    save_pair(data / "root", "c", {2: 2000})
    assert names_of(build_index(cfg, "train")) == "abcf" and len(calls) == 2 * len(PICTURES)
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join(lines[1:]))
    assert names_of(build_index(cfg, "train")) == "bcf"
    assert not [p for p in data.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "[" * 100000,
        lambda text: text.replace('"counts":[[', '"counts":[["x",'),
        lambda text: text.replace('"counts":[[[', '"counts":[], "more":[[['),
    ],
)
def test_damaged_caches_are_made_anew(data, damage):
    cfg = config_of(data)
    first = build_index(cfg, "train")
    (cache,) = (data / "exp" / ".cache").glob("train-*.scan.json")
    whole = cache.read_text()
    cache.write_text(damage(whole))
    assert cache.read_text() != whole
    assert build_index(cfg, "train") == first
    assert cache.read_text() == whole


def test_a_cache_that_cannot_be_written_is_only_a_warning(data, caplog, monkeypatch):
    def refuse(path, content):
        raise FewShotError(f"cannot write {path}: read-only")

    monkeypatch.setattr(lists_module, "write_atomically", refuse)
    assert names_of(build_index(config_of(data), "train")) == "abf"
    assert "scanned anew" in caplog.text and not list(data.rglob("*.scan.json"))


def test_many_masks_are_scanned_by_processes_with_the_same_result(tmp_path, monkeypatch):
    lines = [save_pair(tmp_path, f"{i:03}", {1 + i % 3: i + 1}) for i in range(140)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source = Source(read_list(tmp_path / "list.txt", tmp_path), "x", tmp_path / "cache.json")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    counts = scan(source)
    assert counts == [{0: 3000 - i - 1, 1 + i % 3: i + 1} for i in range(140)]


def _die(item):
    if item == 70:
        os._exit(9)
    return item


def test_a_killed_worker_is_a_sentence_not_a_hang():
    with pytest.raises(FewShotError, match="work: a worker process was killed"):
        parallel(_die, list(range(200)), "work", workers=2)
    assert parallel(abs, list(range(-200, 0)), "work", workers=2) == list(range(200, 0, -1))


# ---------------------------------------------------------------------------- bad data


def spoil(data, kind):
    """Make pair ``c`` bad; returns what the message must hold."""
    image, mask = data / "root/images/c.jpg", data / "root/masks/c.png"
    if kind == "missing mask":
        mask.unlink()
        return "c.png"
    if kind == "missing picture":
        image.unlink()
        return "c.jpg"
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:300])
        return "cannot be read"
    if kind == "size":
        save(mask, np.zeros((20, 30), np.uint8))
        return "30x20"
    if kind == "rgb":
        save(mask, np.zeros((*SIZE, 3), np.uint8))
        return "RGB"
    if kind == "16 bit":
        save(mask, np.zeros(SIZE, np.uint16))
        return "16-bit"
    if kind == "text":
        mask.write_text("hello")
        return "not a picture file"
    save(mask, np.full(SIZE, 77, np.uint8))
    return "mask value 77 is no class id"


MASK_FAULTS = ["missing mask", "missing picture", "rgb", "16 bit", "text", "values"]


@pytest.mark.parametrize("kind", MASK_FAULTS)
def test_bad_masks_stop_the_index_by_name(data, kind):
    message = spoil(data, kind)
    with pytest.raises(FewShotError, match=f"(?s)c\\.(png|jpg).*{message}|{message}.*not exist"):
        build_index(config_of(data), "train")


@pytest.mark.parametrize("kind", [*MASK_FAULTS, "truncated", "size"])
def test_check_reports_every_kind_of_bad_file(data, kind, capsys):
    message = spoil(data, kind)
    spoil_line = (data / "val.txt").read_text() + "../secret.jpg masks/a.png\nalone\n"
    (data / "val.txt").write_text(spoil_line)
    arguments = ["--config", str(data / "own.yaml"), "--check", "--json", str(data / "out.json")]
    with pytest.raises(FewShotError, match=r"4 bad file\(s\) or line\(s\)"):
        main(arguments)
    report = json.loads((data / "out.json").read_text())["lists"]
    assert [entry["list"] for entry in report] == [str(data / "train.txt"), str(data / "val.txt")]
    assert [len(entry["bad"]) for entry in report] == [1, 3]
    (bad,) = report[0]["bad"]
    assert "root/" in bad["file"] and "/c." in bad["file"]
    assert message in bad["file"] + " " + bad["problem"]
    text = " ".join(b["file"] + " " + b["problem"] for b in report[1]["bad"])
    assert "line 8" in text and "leaves DATA.data_root" in text and "line 9" in text
    assert "7 pairs read, 1 bad" in capsys.readouterr().out


def test_check_of_good_data_names_classes_without_episodes(data, capsys):
    out = data / "out.json"
    with pytest.raises(FewShotError, match="val: .*no class"):
        main(["--config", str(data / "own.yaml"), "--check", "--shot", "2", "--json", str(out)])
    report = json.loads(out.read_text())
    assert report["shot"] == 2 and all(not entry["bad"] for entry in report["lists"])
    train, val = (entry["modes"] for entry in report["lists"])
    assert train["train"]["pictures"] == {"dog": 2, "cow": 2}
    assert train["train"]["left_out"] == ["cow"]  # picture f shows a small dog as well
    assert "error" not in train["train"]
    error = val["val"].pop("error")  # no class is left: training would end with it
    assert val["val"] == {"entries": 2, "pictures": {"cat": 2}, "left_out": ["cat"]}
    assert "cat" in error or "class" in error
    assert "left out, fewer than 2 support picture(s) besides the query: cow" in (
        capsys.readouterr().out
    )


def test_check_finds_pairs_listed_twice(data):
    line = (data / "train.txt").read_text().splitlines()[0]
    with open(data / "train.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(FewShotError, match="1 bad"):
        main(["--config", str(data / "own.yaml"), "--check"])


def test_check_of_class_folders_finds_masks_without_object(tmp_path, capsys):
    root = make_folders(tmp_path / "root")
    save(root / "bear" / "2.png", np.zeros((50, 60), np.uint8))
    write_config(tmp_path, root)
    with pytest.raises(FewShotError, match="1 bad"):
        main(["--config", str(tmp_path / "own.yaml"), "--check"])
    assert "2.png: no object in the mask" in capsys.readouterr().out


def test_command_line_gives_status_2_and_no_traceback(data):
    spoil(data, "rgb")
    command = [sys.executable, "-m", "util.lists", "--config", str(data / "own.yaml"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: 2 bad file(s)")
    assert "Traceback" not in done.stderr and "c.png" in done.stdout


def test_overview_and_stats_count_pictures(data, capsys):
    main(["--config", str(data / "own.yaml")])
    out = capsys.readouterr().out
    assert "train: 3 of 7 pictures" in out and "val: 2 of 7 pictures" in out
    png, report = data / "stats.png", data / "stats.json"
    main(["--config", str(data / "own.yaml"), "--stats", "--png", str(png), "--json", str(report)])
    rows = {(r["split"], r["mode"]): r for r in json.loads(report.read_text())["stats"]}
    none = {"3": 0, "4": 0, "5+": 0}
    assert rows[0, "train"]["by"] == {"1": 1, "2": 2, **none} and rows[0, "train"]["pictures"] == 3
    assert rows[0, "val"]["by"] == {"1": 0, "2": 2, **none}
    assert rows[1, "val"]["by"] == {"1": 1, "2": 3, **none}
    assert np.array(Image.open(png)).std() > 5


def test_stats_of_class_folders_beside_folders_that_are_none(tmp_path, capsys):
    write_config(tmp_path, make_folders(tmp_path / "root"))
    (tmp_path / "root" / ".git").mkdir()
    main(["--config", str(tmp_path / "own.yaml"), "--stats"])
    assert "1 folder(s) are no classes: .git" in capsys.readouterr().out


def test_domain_shift_cannot_be_trained_on(data):
    cfg = config_of(data, "trained_on", "coco", "folds", None)
    assert names_of(build_index(cfg.replace(class_names=["cat", "blob", "zonk"]), "val")) == "abdf"
    with pytest.raises(FewShotError, match="DATA.trained_on"):
        build_index(cfg, "train")


def test_a_data_set_with_half_its_lists_says_which(data):
    cfg = config_of(data)
    with pytest.raises(FewShotError, match="DATA.val_list: data set 'mine' needs a list"):
        find_pairs(cfg.replace(val_list=None), cfg.fold, "val")
