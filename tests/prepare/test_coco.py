"""COCO preparation: the two mask rules, archives to lists, resuming, refusals."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from tests import prepare_trees as trees
from tests.prepare_trees import HEIGHT, WIDTH, box
from util.data.sources import read_list
from util.data.transform import read_image, read_mask
from util.prepare import coco, steps
from util.prepare.__main__ import main
from util.runtime.errors import FewShotError, Interrupted

REPOSITORY = Path(__file__).parents[2]
COCO128 = REPOSITORY.parent / "shared" / "data" / "coco128"


@pytest.fixture
def tree(tmp_path):
    return trees.coco_tree(tmp_path / "tree")


def picture(*objects):
    return coco.Picture("x.jpg", HEIGHT, WIDTH, [coco.Annotation(*each) for each in objects])


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def prepare(*arguments):
    main(["coco", *map(str, arguments)])


def test_benchmark_draws_the_first_polygon_only_and_later_objects_on_top():
    mask = coco.draw(
        picture(
            (1, [box(2, 3, 20, 10), box(40, 20, 9, 9)], False),
            (3, [box(10.9, 5.9, 8, 20)], False),
            (2, [box(0, 0, 59, 39)], True),
        ),
        "benchmark",
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:14, 2:23] = 1
    expected[5:26, 10:19] = 3  # coordinates cut, not rounded; fillPoly draws the border too
    np.testing.assert_array_equal(mask, expected)


def test_full_draws_every_polygon_and_keeps_crowds_below():
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[0:20, 0:20] = True
    code = {"counts": trees.runs(crowd), "size": [HEIGHT, WIDTH]}
    mask = coco.draw(
        picture((1, [box(2, 3, 20, 10), box(40, 20, 9, 9)], False), (2, code, True)), "full"
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:20, 0:20] = 2
    expected[3:13, 2:22] = 1
    expected[20:29, 40:49] = 1
    np.testing.assert_array_equal(mask, expected)


def test_full_reads_compressed_runs_and_skips_what_encloses_nothing():
    whole = rle.encode(np.asfortranarray(trees.blob(1) == 1, np.uint8))
    text = {"size": whole["size"], "counts": whole["counts"].decode()}
    mask = coco.draw(picture((7, text, False), (9, [[1, 1, 5, 5]], False), (9, [], False)), "full")
    np.testing.assert_array_equal(mask, 7 * (trees.blob(1) == 1))
    assert coco.draw(picture((9, [], False)), "benchmark").max() == 0


@given(
    st.lists(
        st.tuples(
            st.integers(1, 80),
            st.floats(0, WIDTH - 21),
            st.floats(0, HEIGHT - 21),
            st.integers(0, 20),
            st.integers(0, 20),
        ),
        max_size=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_benchmark_boxes_are_cut_to_integers_and_painted_in_order(boxes):
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects = []
    for label, x, y, width, height in boxes:
        polygon = box(x, y, width, height)
        x0, y0, x1, y1 = (int(polygon[i]) for i in (0, 1, 4, 5))
        expected[y0 : y1 + 1, x0 : x1 + 1] = label
        objects.append((label, [polygon], False))
    np.testing.assert_array_equal(coco.draw(picture(*objects), "benchmark"), expected)


@pytest.mark.parametrize("rule", coco.MASK_RULES)
def test_from_archives_to_masks_and_lists(tree, tmp_path, rule, capsys):
    archives = trees.coco_archives(tree, tmp_path / "archives")
    out, lists = tmp_path / "out", tmp_path / "lists"
    prepare("--root", archives, "--out", out, "--lists", lists, "--masks", rule, "--workers", 2)

    # Sorted by name, without the picture that shows nothing but a crowd.
    stems = [f"COCO_train2014_00000000000{i}" for i in (1, 3, 4)]
    wanted = [f"train2014/{stem}.jpg annotations/train2014/{stem}.png" for stem in stems]
    assert (lists / "train.txt").read_text().splitlines() == wanted
    assert len((lists / "val.txt").read_text().splitlines()) == 2
    first, third, lying = (read(out / "annotations/train2014" / f"{stem}.png") for stem in stems)
    assert first.dtype == np.uint8 and first.shape == (HEIGHT, WIDTH)
    # Categories 1, 2, 90 are classes 1, 2, 3; the second polygon is the full masks' alone.
    assert set(np.unique(third)) == ({0, 2, 3} if rule == "benchmark" else {0, 1, 2, 3})
    assert (third[25, 45] == 2) == (rule == "full")
    # The stored pixels of picture 4 are 40x60, shown turned clockwise.
    upright = cv2.imread(str(out / "train2014" / f"{stems[2]}.jpg"))
    assert lying.shape == upright.shape[:2] == (WIDTH, HEIGHT)
    assert lying[15, HEIGHT - 1 - 10] == 1 and lying[50, 20] == 0
    for pair in read_list(lists / "train.txt", out) + read_list(lists / "val.txt", out):
        assert read_image(pair.image).shape[:2] == read_mask(pair.mask).shape
    report = capsys.readouterr().out
    assert "82,081" in report and "40,137" in report


def test_a_second_run_writes_nothing_and_damage_is_mended(tree, tmp_path, monkeypatch):
    lists = tmp_path / "lists"
    prepare("--root", tree, "--lists", lists)
    masks = sorted((tree / "annotations").rglob("*.png"))
    before = {path: path.read_bytes() for path in masks}
    written = []
    original = coco.write_mask
    monkeypatch.setattr(coco, "write_mask", lambda *a: (written.append(a[0]), original(*a)))
    stamp = (lists / "train.txt").stat().st_mtime_ns
    prepare("--root", tree, "--lists", lists, "--workers", 1)
    assert written == [] and (lists / "train.txt").stat().st_mtime_ns == stamp

    masks[0].write_bytes(before[masks[0]][:-5])
    masks[1].unlink()
    prepare("--root", tree, "--lists", lists, "--workers", 1)
    assert written == masks[:2]
    assert {path: path.read_bytes() for path in masks} == before


def test_an_interrupted_run_goes_on(tree, tmp_path, monkeypatch):
    arguments = ["--root", tree, "--lists", tmp_path / "lists", "--workers", 1]
    original, count = coco.write_mask, []

    def interrupt_third(path, mask):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        original(path, mask)

    monkeypatch.setattr(coco, "write_mask", interrupt_third)
    with pytest.raises(Interrupted):
        prepare(*arguments)
    assert not (tmp_path / "lists" / "train.txt").exists()
    prepare(*arguments)
    assert len(count) == 3 + 5 - 2  # five pictures, two masks of which were there
    assert len(list((tree / "annotations").rglob("*.png"))) == 5


def test_an_interrupted_unpacking_goes_on(tree, tmp_path):
    archives = trees.coco_archives(tree, tmp_path / "archives")
    arguments = ["--root", archives, "--lists", tmp_path / "lists"]
    prepare(*arguments)
    victim = archives / "train2014" / "COCO_train2014_000000000003.jpg"
    content, kept = victim.read_bytes(), archives / "train2014" / "COCO_train2014_000000000001.jpg"
    stamp = kept.stat().st_mtime_ns
    victim.write_bytes(content[:100])
    prepare(*arguments)
    assert victim.read_bytes() == content and kept.stat().st_mtime_ns == stamp


def test_masks_of_the_other_rule_are_replaced(tree, tmp_path):
    arguments = ["--root", tree, "--lists", tmp_path / "lists"]
    path = tree / "annotations/train2014/COCO_train2014_000000000003.png"
    prepare(*arguments)
    benchmark = path.read_bytes()
    prepare(*arguments, "--masks", "full")
    assert path.read_bytes() != benchmark
    prepare(*arguments)
    assert path.read_bytes() == benchmark


def test_masks_of_others_are_left_alone(tree, tmp_path):
    theirs = tree / "annotations" / "val2014" / "theirs.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(FewShotError, match="val2014 holds masks that this command did not make"):
        prepare("--root", tree, "--lists", tmp_path / "lists")
    assert theirs.read_bytes() == b"theirs"


def test_a_missing_and_a_broken_picture_are_both_named(tree, tmp_path):
    pictures = sorted((tree / "train2014").iterdir())
    pictures[0].unlink()
    pictures[3].write_text("no picture")
    with pytest.raises(FewShotError) as caught:
        prepare("--root", tree, "--lists", tmp_path / "lists")
    assert "000001.jpg is missing" in str(caught.value)
    assert "000004.jpg cannot be read" in str(caught.value)


def test_a_picture_of_another_size_is_named(tree, tmp_path):
    trees.write_jpeg(tree / "val2014/COCO_val2014_000000000005.jpg", size=(30, 30))
    with pytest.raises(FewShotError, match="000005.jpg is 30x30 pixels.* is 60x40"):
        prepare("--root", tree, "--lists", tmp_path / "lists")


@pytest.mark.parametrize("rule", coco.MASK_RULES)
def test_a_sound_run_length_code_is_drawn_and_one_of_another_size_refused(tree, tmp_path, rule):
    path = tree / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    code = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
    content["annotations"][0]["segmentation"] = code
    path.write_text(json.dumps(content))
    prepare("--root", tree, "--lists", tmp_path / "lists", "--masks", rule)
    assert (read(tree / "annotations/val2014/COCO_val2014_000000000007.png") > 0).sum() == 50
    code["size"].reverse()  # the usual slip
    path.write_text(json.dumps(content))
    with pytest.raises(FewShotError, match=r"000007\.jpg: .*\(id 1000: .*\[60, 40\]"):
        prepare("--root", tree, "--lists", tmp_path / "lists", "--masks", rule)


def test_objects_without_an_outline_are_counted(tree, tmp_path, capsys):
    path = tree / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "segmentation": []})
    path.write_text(json.dumps(content))
    prepare("--root", tree, "--lists", tmp_path / "lists")
    report = " ".join(capsys.readouterr().out.split())
    assert "val objects without an outline, left out 1 " in report and "train obj" not in report


def instances_with(change, **annotation):
    """An instances JSON of two pictures, changed."""
    shown = {"category_id": 1, "segmentation": [box(2, 3, 20, 10)], **annotation}
    content = trees.instances("train", {"1": [shown], "2": [shown]})
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (instances_with(lambda c: c["images"][1].update(file_name="COCO_train2014_1.png")),
         r"COCO_train2014_1\.jpg and COCO_train2014_1\.png: they share a mask"),
        (instances_with(lambda c: c["images"][1].update(id=100)), "two pictures with the id 100"),
        (instances_with(lambda c: c["categories"][1].update(id=2)), "two categories with the id 2"),
        (instances_with(lambda c: c["images"][1].pop("width")), "the width None"),
        (instances_with(lambda c: [c["images"][1].pop(side) for side in ("width", "height")]),
         "no width and height"),
        (instances_with(lambda c: c["annotations"][1].update(category_id=7)),
         "annotation 1001 .*no category that the file lists"),
        (instances_with(lambda c: None, segmentation=[], bbox=[2, 3, 20, 10]), "boxes alone"),
        (instances_with(lambda c: None, segmentation=[box(0.1, 0.2, 0.5, 0.5)]), "fractions"),
        ("{", "cannot be read as JSON"),
        ("[]", "not a COCO instances file"),
        (json.dumps(trees.instances("train", {"1": [{"category_id": 1}]})), "segmentation"),
        (json.dumps(trees.instances("train", {"1": []})), "annotates no picture"),
        (
            json.dumps(
                trees.instances("train", {"/../1": [{"category_id": 1, "segmentation": []}]})
            ),
            "leaves the picture folder",
        ),
    ],
)  # fmt: skip
def test_a_wrong_json_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "instances_train2014.json"
    path.write_text(content)
    with pytest.raises(FewShotError, match=message) as caught:
        coco.read_instances(path)
    assert str(path) in str(caught.value)


def test_polygons_that_cannot_be_drawn_name_the_picture(tree, tmp_path):
    path = tree / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    with pytest.raises(FewShotError, match="000007.jpg: its annotation cannot be drawn"):
        prepare("--root", tree, "--lists", tmp_path / "lists")


def test_the_command_refuses_a_wrong_archive_with_one_sentence(tree, tmp_path):
    archives = trees.coco_archives(tree, tmp_path / "archives")
    (archives / "val2014.zip").replace(archives / "train2014.zip")
    command = [sys.executable, "-m", "util.prepare", "coco", "--root", str(archives)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert "train2014.zip is not COCO train2014 pictures: it holds val2014/" in done.stderr
    assert "Traceback" not in done.stderr


def test_many_files_over_several_processes(tmp_path):
    wanted = {tmp_path / f"{i}.png": i for i in range(130)}
    steps.run_all(_write_number, list(wanted.items()), 2, "numbers")
    assert {path: int(read(path)[0, 0]) for path in wanted} == wanted
    with pytest.raises(FewShotError, match=r"numbers: 200 is too much; .*; and 3 more"):
        steps.run_all(
            _write_number, [(tmp_path / "x.png", 200)] * 8 + list(wanted.items()), 2, "numbers"
        )


def _write_number(task):
    path, number = task
    if number == 200:
        raise FewShotError("200 is too much")
    steps.write_mask(path, np.full((3, 3), number, np.uint8))


@pytest.mark.skipif(not COCO128.is_dir(), reason="the coco128 pictures are not beside the project")
def test_coco128_gives_the_masks_and_lists_of_the_benchmark(tmp_path, capsys):
    out, lists = tmp_path / "out", tmp_path / "lists"
    prepare("--root", COCO128, "--out", out, "--lists", lists)
    golden = json.loads((REPOSITORY / "tests/golden/coco128_masks.json").read_text())
    for name, wanted in golden.items():
        mask = read(out / "annotations" / "train2014" / name)
        assert list(mask.shape) == wanted["shape"]
        assert hashlib.sha1(mask.tobytes()).hexdigest() == wanted["sha1"]
    order = {
        split: [Path(line.split()[0]).name for line in (lists / f"{split}.txt").open()]
        for split in ("train", "val")
    }
    assert (len(order["train"]), len(order["val"])) == (75, 51)
    folds = json.loads((REPOSITORY / "tests/golden/coco128_fold0_lists.json").read_text())
    for split, names in order.items():
        kept = folds[f"fold0_{split}"]["images"]
        assert [name for name in names if name in set(kept)] == kept
    report = " ".join(capsys.readouterr().out.split())
    for split, mode in (("train", "train"), ("val", "test")):
        kept = folds[f"fold0_{split}"]["images"]
        assert f"split 0 {mode} pictures {len(kept)} " in report
