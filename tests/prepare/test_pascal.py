"""PASCAL and FSS-1000 preparation from trees and archives."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import prepare_trees as trees
from tests.training_case import ROOT
from util.config import load_config
from util.data.index import build_index
from util.prepare import pascal
from util.prepare.__main__ import main
from util.runtime.errors import FewShotError, Interrupted


@pytest.fixture
def voc_sbd(tmp_path):
    return trees.pascal_trees(tmp_path / "tree")


def prepare(dataset, root, lists, *more):
    main([dataset, "--root", str(root), "--lists", str(lists), *map(str, more)])


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def check_pascal(data_root, lists):
    train = (lists / "train.txt").read_text().splitlines()
    names = ["2007_000032", "2008_000002", "2008_000008"]
    assert train == [f"JPEGImages/{n}.jpg SegmentationClassAug/{n}.png" for n in names]
    assert (lists / "val.txt").read_text() == (
        "JPEGImages/2007_000033.jpg SegmentationClassAug/2007_000033.png\n"
    )
    masks = [read(data_root / "SegmentationClassAug" / f"{n}.png") for n in names]
    # Palette indices and the border of VOC's own masks, also where SBD has another mask.
    np.testing.assert_array_equal(masks[0], trees.blob(1))
    np.testing.assert_array_equal(masks[1], trees.blob(15))
    np.testing.assert_array_equal(masks[2], trees.blob(13) % 255)
    assert all((data_root / line.split()[0]).is_file() for line in train)


def test_pascal_from_archives(voc_sbd, tmp_path, capsys):
    root, lists = trees.pascal_archives(voc_sbd, tmp_path / "archives"), tmp_path / "lists"
    prepare("pascal", root, lists, "--out", tmp_path / "out")
    check_pascal(tmp_path / "out", lists)
    report = capsys.readouterr().out
    assert all(count in report for count in ("1,464", "5,623", "5,953", "1,449"))
    assert sorted(path.name for path in root.iterdir()) == [
        "VOCtrainval_11-May-2012.tar",
        "benchmark.tgz",
    ]


def test_pascal_from_trees_in_place_and_again_after_damage(voc_sbd, tmp_path):
    root, lists = tmp_path / "tree", tmp_path / "lists"
    prepare("pascal", root, lists)
    check_pascal(root, lists)
    assert not (root / "JPEGImages").readlink().is_absolute()
    stamps = {p: p.stat().st_mtime_ns for p in (root / "SegmentationClassAug").glob("*.png")}
    victim = root / "SegmentationClassAug" / "2008_000008.png"
    victim.write_bytes(victim.read_bytes()[:40])
    prepare("pascal", root, lists)
    check_pascal(root, lists)
    changed = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changed == [victim]


def test_an_interrupted_run_goes_on(voc_sbd, tmp_path, monkeypatch):
    root = trees.pascal_archives(voc_sbd, tmp_path / "archives")
    original, count = pascal.write_mask, []

    def interrupt_third(path, mask):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        original(path, mask)

    monkeypatch.setattr(pascal, "write_mask", interrupt_third)
    with pytest.raises(Interrupted, match="run the same command again"):
        prepare("pascal", root, tmp_path / "lists", "--workers", 1)
    assert not (tmp_path / "lists" / "train.txt").exists()
    prepare("pascal", root, tmp_path / "lists", "--workers", 1)
    assert len(count) == 3 + 4 - 2  # four pictures, two masks of which were there
    check_pascal(root, tmp_path / "lists")


def test_a_wrong_archive_is_refused_by_name(voc_sbd, tmp_path):
    root = trees.pascal_archives(voc_sbd, tmp_path / "archives")
    trees.tar_folder(voc_sbd[0], root / "VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2007")
    with pytest.raises(FewShotError, match=r"VOCtrainval_11-May-2012.tar is not PASCAL VOC 2012"):
        prepare("pascal", root, tmp_path / "lists")


def test_pascal_archives_under_other_names_are_known_by_their_content(voc_sbd, tmp_path):
    root = trees.pascal_archives(voc_sbd, tmp_path / "archives")
    (root / "benchmark.tgz").rename(root / "a.tgz")
    (root / "VOCtrainval_11-May-2012.tar").rename(root / "b.tar")
    prepare("pascal", root, tmp_path / "lists")
    check_pascal(root, tmp_path / "lists")


def test_pascal_validation_pictures_are_never_trained_on(voc_sbd, tmp_path):
    voc, sbd = voc_sbd
    with (voc / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("2007_000033\n")
    trees.write_sbd(sbd / "cls" / "2007_000033.mat", trees.blob(2) % 255)
    prepare("pascal", tmp_path / "tree", tmp_path / "lists")
    check_pascal(tmp_path / "tree", tmp_path / "lists")


def test_pascal_masks_follow_a_picture_that_lies_on_its_side(voc_sbd, tmp_path):
    picture = voc_sbd[0] / "JPEGImages" / "2008_000008.jpg"
    trees.write_jpeg(picture, orientation=8)
    prepare("pascal", tmp_path / "tree", tmp_path / "lists")
    mask = read(tmp_path / "tree" / "SegmentationClassAug" / "2008_000008.png")
    assert mask.shape == cv2.imread(str(picture)).shape[:2]
    np.testing.assert_array_equal(np.rot90(mask, -1), trees.blob(13) % 255)


def test_pascal_names_every_wrong_mask(voc_sbd, tmp_path):
    voc, sbd = voc_sbd
    trees.write_palette(voc / "SegmentationClass" / "2007_000032.png", trees.blob(21))
    Image.new("RGB", (60, 40)).save(voc / "SegmentationClass" / "2008_000002.png")
    (voc / "SegmentationClass" / "2007_000033.png").write_bytes(b"text")
    (sbd / "cls" / "2008_000008.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(FewShotError) as caught:
        prepare("pascal", tmp_path / "tree", tmp_path / "lists")
    message = str(caught.value)
    assert "2007_000032.png holds the value 21" in message
    assert "2008_000002.png: a mask needs one 8-bit channel" in message
    assert "2007_000033.png: the mask cannot be read" in message
    assert "2008_000008.mat" in message


@pytest.mark.parametrize("content", [b"", b"x" * 300, None])
def test_a_broken_sbd_file_is_named(tmp_path, content):
    path = tmp_path / "x.mat"
    if content is None:  # cut in the middle
        trees.write_sbd(path, np.random.default_rng(0).integers(0, 20, (200, 200), np.uint8))
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(FewShotError, match="x.mat"):
        pascal.read_sbd_mask(path)


def test_sbd_instance_files_are_not_class_files(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "x.mat", {"GTinst": {"Segmentation": np.zeros((3, 3))}})
    with pytest.raises(FewShotError, match="x.mat is not an SBD file with GTcls"):
        pascal.read_sbd_mask(tmp_path / "x.mat")


def test_pascal_without_sbd_says_where_to_get_it(voc_sbd, tmp_path):
    (tmp_path / "tree" / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FewShotError, match="Semantic Boundaries.*benchmark.tgz from http.*--download"
    ):
        prepare("pascal", tmp_path / "tree", tmp_path / "lists")


def test_image_sets_cannot_lead_out_of_the_folder(voc_sbd, tmp_path):
    (voc_sbd[0] / "ImageSets" / "Segmentation" / "val.txt").write_text("../../secret\n")
    with pytest.raises(FewShotError, match="leaves the picture folder"):
        prepare("pascal", tmp_path / "tree", tmp_path / "lists")


def test_fss_from_an_archive_and_from_a_nested_tree(tmp_path, capsys):
    tree = trees.fss_tree(tmp_path / "tree" / "fewshot_data" / "fewshot_data")
    archives = tmp_path / "archives"
    archives.mkdir()
    trees.zip_folder(tmp_path / "tree", archives / "fewshot_data.zip", "fewshot_data")
    prepare("fss", archives, tmp_path / "lists")
    folders = [path.name for path in archives.iterdir() if path.is_dir() and path.name[0] != "."]
    assert sorted(folders) == [f"class_{i}" for i in range(4)]
    assert len(list(archives.glob("class_*/*"))) == 16
    prepare("fss", tmp_path / "tree", tmp_path / "lists")
    assert f"--opts data_root {tree}\n" in capsys.readouterr().out
    prepare("fss", tmp_path / "tree", tmp_path / "lists", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "class_3" / "2.png").is_file()


def test_a_nested_fss_is_found_by_the_configuration_without_further_options(tmp_path):
    for place in ("", "fewshot_data", "fewshot_data/fewshot_data"):
        root = tmp_path / (place.replace("/", "_") or "flat")
        tree = trees.fss_tree(root / place)
        (root / "__MACOSX" / "fewshot_data" / "class_0").mkdir(parents=True)
        (root / "__MACOSX" / "fewshot_data" / "class_0" / "._1.jpg").touch()
        if place:
            prepare("fss", root, tmp_path / "lists")
        cfg = load_config(ROOT / "config" / "fss" / "fss.yaml", ["data_root", root])
        index = build_index(cfg, "test")
        assert [pair.image.parent.parent for pair in index.pairs] == [tree] * len(index.pairs)
        assert len(cfg.fold.names) == 4 and len(index.entries) == 2 * len(cfg.fold.novel)


def test_two_folders_of_class_folders_are_named(tmp_path):
    for name in ("new", "old"):
        trees.fss_tree(tmp_path / "fss" / name)
    cfg = load_config(ROOT / "config" / "fss" / "fss.yaml", ["data_root", tmp_path / "fss"])
    with pytest.raises(FewShotError, match=r"fss/new and \S*fss/old both"):
        build_index(cfg, "test")


def test_fss_masks_are_checked(tmp_path):
    tree = trees.fss_tree(tmp_path / "tree")
    (tree / "class_1" / "2.png").unlink()
    Image.new("L", (10, 10)).save(tree / "class_2" / "1.png")
    with pytest.raises(FewShotError) as caught:
        prepare("fss", tree, tmp_path / "lists")
    assert "class_1/2.png: there is no such mask" in str(caught.value)
    assert "class_2/1.jpg is 60x40 pixels, but its mask" in str(caught.value)
    assert "class_2/1.png is 10x10 pixels" in str(caught.value)


def test_fss_cannot_be_downloaded_and_says_where_it_is(tmp_path):
    with pytest.raises(FewShotError, match="FSS-1000 has no public address.*github.com/HKUSTCV"):
        prepare("fss", tmp_path, tmp_path / "lists", "--download")


def test_demo_goes_through_the_same_command(tmp_path, capsys):
    main(
        ["demo", "--root", str(tmp_path / "demo"), "--lists", str(tmp_path / "lists")]
        + "--train 6 --val 3 --size 48 --workers 1".split()
    )
    assert len((tmp_path / "lists" / "train.txt").read_text().splitlines()) == 6
    assert "split 3 test pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "--root nowhere is no folder"),
        (["--root", ".", "--workers", "0"], "--workers 0: expected 1 or more"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, message):
    with pytest.raises(FewShotError, match=message):
        main(["pascal", *arguments])


def test_a_place_that_cannot_be_written_is_one_sentence(voc_sbd, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should go")
    with pytest.raises(FewShotError, match="out.*--out names a folder to write to"):
        prepare("pascal", tmp_path / "tree", tmp_path / "lists", "--out", tmp_path / "out")
