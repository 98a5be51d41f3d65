"""Class folders: the same pairs for data sets and for predict.py, or one sentence for both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from util.config import load_config
from util.config.folders import Pair, class_folders, folder_pairs, searched
from util.data.sources import find_pairs
from util.predict.supports import supports_in
from util.runtime.errors import FewShotError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs_of_data_set(root: Path) -> dict[str, list[Pair]]:
    """The pairs of a data set of class folders, by class."""
    config = root.with_name(f"{root.name}.yaml")
    config.write_text("DATA: {data_set: mine, min_pixels: 1}\n")
    cfg = load_config(config, ["data_root", str(root), "exp_root", str(root.with_name("exp"))])
    source = find_pairs(cfg, cfg.fold, "train")
    found: dict[str, list[Pair]] = {}
    for class_id, pair in zip(source.classes, source.pairs, strict=True):
        found.setdefault(cfg.fold.names[class_id], []).append(pair)
    return found


def pairs_of_predict(root: Path) -> dict[str, list[Pair]]:
    """The pairs that ``predict.py --supports`` takes, by class."""
    found: dict[str, list[Pair]] = {}
    for support in supports_in(root)[0]:
        found.setdefault(support.class_name, []).append(Pair(support.image, Path(support.mask)))
    return found


def read(root: Path, reader) -> dict[str, list[Pair]] | str:
    try:
        return reader(root)
    except FewShotError as error:
        return str(error)


BYTES = os.fsdecode(b"p\xeache")  # a name from a ZIP of another encoding
CLASSES = st.sampled_from(["apple", "Pear", "1", "2", "10", "010", "no", "a b", BYTES])
HIDDEN = st.sampled_from([".git", ".ipynb_checkpoints", "__MACOSX", "Thumbs", "@eaDir"])
SUFFIXES = st.sampled_from([".jpg", ".JPG", ".jpeg", ".webp", ".png", ".PNG", ".bmp", ".TIF"])
PLACES = st.sampled_from(["", "", "images/", "masks/", "Images/", "MASKS/", "day1/", ".thumbs/"])
FILES = st.lists(st.tuples(PLACES, st.sampled_from(["1", "2", "10", BYTES]), SUFFIXES), max_size=5)
SIMPLE = st.sampled_from(
    [
        [("", "1", ".jpg"), ("", "1", ".png")],
        [("", "1", ".JPEG"), ("", "1", ".TIF"), (".thumbs/", "1", ".jpg")],
        [("Images/", "2", ".png"), ("MASKS/", "2", ".PNG")],
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    classes=st.dictionaries(CLASSES, FILES | SIMPLE, max_size=3),
    hidden=st.dictionaries(HIDDEN, FILES, max_size=2),
    loose=st.lists(st.tuples(st.just(""), st.just("7"), SUFFIXES), max_size=1),
)
def test_data_sets_and_supports_read_the_same_pairs_or_refuse_alike(
    tmp_path, classes, hidden, loose
):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    everything = {**classes, **hidden, "": loose}
    for name, files in everything.items():
        (root / name).mkdir(exist_ok=True)
        touch(root / name, *("".join(file) for file in files))
    found, supports = read(root, pairs_of_data_set), read(root, pairs_of_predict)
    if isinstance(found, str):
        assert found.endswith(supports)  # behind the key that a data set has besides
        return
    assert found == supports
    assert list(found) == sorted(classes)  # no class left out, none that is hidden
    # Every picture that is not hidden is in one pair: with its stem, and the mask keeps values.
    used = [file for pairs in found.values() for pair in pairs for file in pair]
    expected = {
        root / name / "".join(file)
        for name, files in classes.items()
        for file in files
        if file[0] != ".thumbs/"
    }
    assert set(used) == expected and len(used) == len(expected) and not loose
    for image, mask in (pair for pairs in found.values() for pair in pairs):
        assert image.stem == mask.stem and mask.suffix.lower() in (".png", ".bmp", ".tif")
        side_by_side = image.parent == mask.parent
        assert not side_by_side or image.suffix.lower() in (".jpg", ".jpeg", ".webp")


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (["1.JPG", "1.PNG"], ["1.JPG 1.PNG"]),
        (["1.jpeg", "1.bmp", "2.webp", "2.tiff"], ["1.jpeg 1.bmp", "2.webp 2.tiff"]),
        (["1.jfif", "1.png"], ["1.jfif 1.png"]),
        (["10.jpg", "10.png", "9.jpg", "9.png"], ["9.jpg 9.png", "10.jpg 10.png"]),
        (["Images/1.jpg", "Masks/1.bmp"], ["Images/1.jpg Masks/1.bmp"]),
        (["images/1.bmp", "masks/1.png", "notes.txt"], ["images/1.bmp masks/1.png"]),
        (
            ["1.jpg", "1.png", "._1.jpg", ".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg"],
            ["1.jpg 1.png"],
        ),
        (["cafe\u0301.jpg", "caf\u00e9.png"], ["cafe\u0301.jpg caf\u00e9.png"]),
    ],
)
def test_pairs_of_a_class_folder(tmp_path, files, pairs):
    touch(tmp_path, *files)
    found = [" ".join(str(f.relative_to(tmp_path)) for f in p) for p in folder_pairs(tmp_path)]
    assert found == pairs


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no pictures"),
        (["images/", "masks/"], "holds no pictures"),
        (["1.jpg", "1.jpeg", "1.png"], "1.jpeg, 1.jpg and 1.png have the same stem"),
        (["1.JPG", "1.jpg", "1.png"], "1.JPG, 1.jpg and 1.png have the same stem"),
        (["1.jpg", "1.png", "1.bmp"], "1.bmp, 1.jpg and 1.png have the same stem"),
        (["1.bmp", "1.png"], "1.bmp and 1.png have the same stem"),
        (["1.jpg", "1.jpeg"], "1.jpeg and 1.jpg have the same stem"),
        (["images/1.jpg", "images/1.png", "masks/1.png"], "1.jpg and 1.png have the same stem"),
        (["images/1.jpg", "masks/1.png", "masks/1.bmp"], "masks: 1.bmp and 1.png have the same"),
        (["images/1.jpg", "masks/1.jpg"], "masks/1.jpg: a mask is a PNG, BMP, TIF and TIFF file"),
        (["images/1.jpg", "Images/2.jpg", "masks/1.png"], "has Images and images: keep one"),
        (["day1/1.jpg", "day1/1.png"], "2 pictures (day1/1.jpg, day1/1.png) lie in no pair"),
        (["1.jpg", "1.png", "old/2.jpg"], "1 picture (old/2.jpg) lies in no pair"),
        (["images/1.jpg", "masks/1.png", "2.jpg"], "1 picture (2.jpg) lies in no pair"),
        (["images/1.jpg", "labels/1.png"], "2 pictures (images/1.jpg, labels/1.png) lie in no"),
        (["1.jpg", "2.jpg", "2.png"], "1.jpg has no mask of the same name (1 such"),
        (["1.jpg", "1.png", "2.png"], "2.png has no picture of the same name"),
        (["1.jpg", "1.png", "2.heic"], "1 file (2.heic) lies there of a kind that is not read"),
        (["images/1.jpg", "masks/1.png", "masks/2.GIF"], "1 file (masks/2.GIF) lies there"),
    ],
)
def test_what_is_not_clear_is_refused_by_name(tmp_path, files, words):
    folder = tmp_path / "mug"
    folder.mkdir()
    for name in files:
        (folder / name).mkdir() if name.endswith("/") else touch(folder, name)
    with pytest.raises(FewShotError) as caught:
        folder_pairs(folder)
    assert words in str(caught.value) and "mug" in str(caught.value)


def test_folders_that_are_no_classes_are_named(tmp_path):
    pair = ("1.jpg", "1.png")
    touch(tmp_path, *(f"{name}/{p}" for name in ("mug", ".git", "__MACOSX", "cup") for p in pair))
    touch(tmp_path, "notes.txt", ".hidden.jpg")
    assert list(class_folders(tmp_path).pairs) == ["cup", "mug"]
    assert class_folders(tmp_path, ["mug"]).passed_over == [".git", "__MACOSX", "cup"]
    found, left_out = supports_in(tmp_path)
    assert len(found) == 2 and left_out == [f"{tmp_path}: no classes: .git, __MACOSX"]
    with pytest.raises(FewShotError, match="there is no folder .*plate"):
        class_folders(tmp_path, ["plate"])
    touch(tmp_path, "mug.jpg")
    with pytest.raises(FewShotError, match="1 picture .mug.jpg. lies beside the class folders"):
        class_folders(tmp_path)


def test_one_name_in_two_forms_is_one_class(tmp_path):
    touch(tmp_path, "cafe\u0301/1.jpg", "cafe\u0301/1.png")
    assert list(class_folders(tmp_path).pairs) == ["caf\u00e9"]
    assert list(class_folders(tmp_path, ["caf\u00e9"]).pairs) == ["caf\u00e9"]
    touch(tmp_path, "caf\u00e9/1.jpg", "caf\u00e9/1.png")
    with pytest.raises(FewShotError, match="are one class in two folders"):
        class_folders(tmp_path)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    touch(tmp_path, "real/deep/1.jpg", "all/2.jpg")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "all")
    found = [str(path.relative_to(tmp_path)) for path in searched(tmp_path / "all")]
    assert found == ["all/2.jpg", "all/link/deep/1.jpg"]
