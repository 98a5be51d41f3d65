"""COCO files as supports: the object read is the object drawn, or one sentence says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

import predict
from tests.own_pictures import disc, with_orientation, write
from tests.prepare_trees import runs
from util.data.coco import CocoFile
from util.data.shapes import box_mask, polygon_mask, run_length_mask
from util.predict.supports import supports_in
from util.prepare import coco as prepare
from util.runtime.errors import FewShotError

SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]
SIZE = (20, 30)


def annotations(
    shape: Any, size=SIZE, names=("s.png",), categories=((1, "cup"),), **changes
) -> dict[str, Any]:
    """A COCO file with one object on each of the pictures ``names``."""
    sides = {} if size is None else {"height": size[0], "width": size[1]}
    listed = [{"id": i, "file_name": name, **sides} for i, name in enumerate(names, 1)]
    return {
        "images": listed,
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": 40 + i, "image_id": i, "category_id": 1, "segmentation": shape, **changes}
            for i in range(1, len(names) + 1)
        ],
    }


def saved(folder: Path, content: Any, encoding: str = "utf-8") -> CocoFile:
    path = folder / "c.json"
    path.write_bytes(json.dumps(content).encode(encoding))
    return CocoFile(path)


def read(folder: Path, content: Any, size=SIZE, image="s.png") -> np.ndarray:
    return saved(folder, content).support_mask(folder / image, "cup", [size])[0]


def drawn(polygons, size) -> np.ndarray:
    """The mask that COCO's own tools make."""
    return rle.decode(rle.merge(rle.frPyObjects([list(map(float, p)) for p in polygons], *size)))


# ---------------------------------------------------------------------------- the whole kind

NAMES = {
    "s.png": "{}", "in a folder": "images/{}", "windows": "images\\{}", "drive": "C:\\data\\{}",
    "beside": "..\\label\\{}", "absolute": "/mnt/x/{}", "dots": "./a/../{}",
}  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_object_read_is_the_object_drawn(tmp_path, data):
    """Polygons, boxes and both run-length codes, in frames of the picture's size, of another and
    of another shape, under every way to write a name."""
    frame = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)), "frame")
    factor = data.draw(st.sampled_from([1, 1, 2, 3]), "factor")
    size = (frame[0] * factor, frame[1] * factor)
    name = data.draw(st.sampled_from(sorted(NAMES.values()))).format("s.png")
    x, y = st.floats(0, frame[1], width=32), st.floats(0, frame[0], width=32)
    kind = data.draw(st.sampled_from(["polygon", "box", "runs", "compressed"]), "kind")
    changes = {}
    if kind == "polygon":
        points = st.lists(st.tuples(x, y), min_size=3, max_size=6)
        shape = [[value for point in each for value in point]
                 for each in data.draw(st.lists(points, min_size=1, max_size=3))]  # fmt: skip
        outline = shape
    elif kind == "box":
        x0, x1 = sorted((data.draw(x), data.draw(x)))
        y0, y1 = sorted((data.draw(y), data.draw(y)))
        assume(x0 < x1 and y0 < y1)
        shape, changes = [], {"bbox": [x0, y0, x1 - x0, y1 - y0]}
        outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if kind in ("polygon", "box"):
        expected = drawn([[v * factor for v in each] for each in outline], size)
        fractions = max(map(max, outline)) < 1.5
    else:
        seed = data.draw(st.integers(0, 99))
        mask = (np.random.default_rng(seed).random(frame) < 0.4).astype(np.uint8)
        shape = {"size": list(frame), "counts": runs(mask)}
        if kind == "compressed":
            shape["counts"] = rle.encode(np.asfortranarray(mask))["counts"].decode()
        expected = np.kron(mask, np.ones((factor, factor), np.uint8))
        fractions = False
    content = annotations(shape, frame, [name], **changes)
    if fractions:
        with pytest.raises(FewShotError, match="annotation 41 on .*between 0 and 1"):
            read(tmp_path, content, size)
        return
    np.testing.assert_array_equal(read(tmp_path, content, size), expected)
    if (size[0] + 9) * 3 < size[1] * 2:  # a picture of clearly another shape
        with pytest.raises(FewShotError, match=r"c\.json says that .* has .* pixels, but it has"):
            read(tmp_path, content, size[::-1])


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    counts=st.lists(st.integers(-2, 60), max_size=6),
    text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
)
def test_run_length_codes_fill_their_picture_or_are_refused(size, counts, text):
    for code in (counts, text):
        try:
            mask = run_length_mask({"size": list(size), "counts": code}, size)
        except FewShotError as error:
            assert "RLE" in str(error)
            continue
        again = rle.encode(np.asfortranarray(mask))
        assert mask.shape == size and (rle.decode(again) == mask).all()
        if code is counts:
            assert sum(counts) == size[0] * size[1] and min(counts) >= 0
            assert mask.sum() == sum(counts[1::2])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_box_is_the_polygon_of_its_corners(x, y, width, height):
    if (x, y, width, height) == (0, 0, 1, 1):
        with pytest.raises(FewShotError, match=r"fractions .* its corners are 0,0,20,18"):
            box_mask((18, 20), (x, y, x + width, y + height))
        return
    x1, y1 = x + width, y + height
    corners = [x, y, x1, y, x1, y1, x, y1]
    box = box_mask((18, 20), (x, y, x1, y1))
    np.testing.assert_array_equal(polygon_mask((18, 20), [corners]), box)
    assert box.sum() == width * height


# ------------------------------------------------------------------------------------ frames


@pytest.mark.parametrize("factor", [1.25, 1.5, 4, 0.5])
def test_annotations_of_a_picture_that_was_resized(tmp_path, factor):
    frame = tuple(round(side * factor) for side in SIZE)
    content = annotations([[value * factor for value in SQUARE]], frame)
    np.testing.assert_array_equal(read(tmp_path, content), drawn([SQUARE], SIZE))


def test_sides_may_be_rounded_and_may_be_unknown(tmp_path):
    expected = drawn([SQUARE], SIZE)
    half = [value / 2 for value in SQUARE]
    assert np.abs(read(tmp_path, annotations([half], (10, 16))) - expected).mean() < 0.05
    np.testing.assert_array_equal(read(tmp_path, annotations([SQUARE], None)), expected)
    np.testing.assert_array_equal(read(tmp_path, annotations([SQUARE], ("20", 30.0))), expected)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_frame_of_the_stored_pixels(tmp_path, orientation):
    """Shown upright, stored on its side: the mask is of the size that the file names."""
    write(tmp_path / "s.jpg", disc(SIZE, 0)[0])
    with_orientation(tmp_path / "s.jpg", orientation)
    for frame, polygon in ((SIZE, SQUARE), (SIZE[::-1], [3, 2, 9, 2, 9, 8, 3, 8])):
        coco = saved(tmp_path, annotations([polygon], frame, ["s.jpg"]))
        support = predict.Support(tmp_path / "s.jpg", str(coco.path), "cup")
        np.testing.assert_array_equal(support.annotation()["mask"], drawn([polygon], frame))


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((0, 30), "30 and the height 0"),
        ((20, None), "None and the height 20"),
        ((20, "wide"), "'wide'"),
        ((20.5, 30), "20.5"),
        ((-20, 30), "-20"),
        ((float("nan"), 30), "nan"),
        ((10**9, 10**9), "1000000000"),
    ],
)
def test_a_frame_that_is_none(tmp_path, sides, words):
    with pytest.raises(FewShotError, match=rf"c\.json: s\.png has the width .*{words}"):
        read(tmp_path, annotations([SQUARE], sides))


# ------------------------------------------------------------------------------------- names


def chosen(folder: Path, names: list[str], image: str) -> str:
    """Which of the listed pictures is taken for ``image``."""
    coco = saved(folder, annotations([SQUARE], SIZE, names))
    return coco._find(folder / image).name


def test_folders_tell_pictures_of_one_name_apart(tmp_path):
    write(tmp_path / "a" / "1.png", disc(SIZE, 0)[0])
    write(tmp_path / "b" / "1.png", disc(SIZE, 1)[0])
    for names in (
        ["a/1.png", "b/1.png"],
        ["set\\a\\1.png", "set\\b\\1.png"],
        [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"],
        ["1.png", "b/1.png"],
    ):
        assert chosen(tmp_path, names, "b/1.png") == names[1]
        assert chosen(tmp_path, names, "a/1.png") == names[0]
    for names, image in (
        (["a/1.png", "b/1.png"], "c/1.png"),
        (["b/1.png", "b/1.png"], "b/1.png"),
        (["b/1.png", "b\\1.png"], "b/1.png"),
        (["x/b/1.png", "y/b/1.png"], "b/1.png"),
    ):
        with pytest.raises(FewShotError, match="several pictures could be .*id 1.*id 2"):
            chosen(tmp_path, names, image)
    # The one that is listed lies where the file says: the other of its name is not annotated.
    with pytest.raises(FewShotError, match=r"lists a/1\.png, but not .*b/1\.png"):
        chosen(tmp_path, ["a/1.png"], "b/1.png")
    with pytest.raises(FewShotError, match=r"lists no picture called 2\.png"):
        chosen(tmp_path, ["a/1.png"], "a/2.png")
    assert chosen(tmp_path, ["cafe\u0301.png"], "caf\u00e9.png")  # as macOS writes names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(tmp_path, encoding):
    coco = saved(tmp_path, annotations([SQUARE]), encoding)
    mask, crowds = coco.support_mask(tmp_path / "s.png", "cup", [SIZE])
    assert mask.sum() == 36 and crowds == 0


def test_ids_are_compared_as_numbers(tmp_path):
    content = annotations([SQUARE])
    content["images"][0]["id"] = "1"
    content["categories"][0]["id"] = 1.0
    content["annotations"][0] |= {"image_id": 1.0, "category_id": "1"}
    content["images"] += content["images"]  # said twice, in the same words
    assert read(tmp_path, content).sum() == 36


# ----------------------------------------------------------------------------------- objects


def test_crowds_count_where_there_is_nothing_else(tmp_path):
    crowd = drawn([[1, 1, 12, 1, 12, 12, 1, 12]], SIZE)
    code = {"size": list(SIZE), "counts": runs(crowd)}
    content = annotations(code, iscrowd=1)
    np.testing.assert_array_equal(read(tmp_path, content), crowd)
    single = {"image_id": 1, "category_id": 1, "iscrowd": "false", "segmentation": [SQUARE]}
    content["annotations"].append(single)
    mask, left_out = saved(tmp_path, content).support_mask(tmp_path / "s.png", "cup", [SIZE])
    assert left_out == 1 and (mask == drawn([SQUARE], SIZE)).all()


def test_crowds_left_out_are_named(tmp_path, capsys):
    write(tmp_path / "s.png", disc(SIZE, 0)[0])
    content = annotations([SQUARE])
    content["annotations"].append({**content["annotations"][0], "iscrowd": 1})
    coco = saved(tmp_path, content)
    predict.Support(tmp_path / "s.png", str(coco.path), "cup").annotation()
    assert "left out: 1 crowd(s) of 'cup'" in capsys.readouterr().err


NAN, INF, FULL = float("nan"), float("inf"), SIZE[0] * SIZE[1]
BAD_SHAPES = [
    ("a value that is no number", [[2, 3, NAN, 3, 8, 9]]),
    ("a value that is no number", [[2, 3, INF, 3, 8, 9]]),
    ("reaches 1e+300,3, outside the picture of 30×20", [[2, 3, 1e300, 3, 8, 9]]),
    ("reaches 45,3, outside", [[2, 3, 45, 3, 8, 9]]),
    ("reaches -9,3, outside", [[2, 3, -9, 3, 8, 9]]),
    ("flat list", [[[2, 3], [8, 3], [8, 9]]]),
    ("flat list", [[[2, 3], [8, 3], [8, 9], [2, 9]]]),
    ("flat list", [[[2, 3], [8, 3]]]),
    ("flat list", [2, 3, 8, 3, 8, 9]),
    ("flat list", [[2, 3, 8, 3, 8, 9, 4]]),
    ("flat list", [["2", "3", "8", "3", "8", "9"]]),
    ("flat list", "abc"),
    ("flat list", [{"size": [20, 30], "counts": "abc"}]),
    ("(RLE) has the size (height, width) [30, 20]", {"size": [30, 20], "counts": [100, 50, 450]}),
    ("(RLE) has the size (height, width) [10, 15]", {"size": [10, 15], "counts": [100, 50]}),
    ("has no size", {"counts": [100, 50, 450]}),
    ("add up to 150, but", {"size": [20, 30], "counts": [100, 50]}),
    (f"add up to {150 + 3 * FULL}", {"size": [20, 30], "counts": [100, 50, 3 * FULL]}),
    ("code (RLE) is damaged", {"size": [20, 30], "counts": "zzzz~~~"}),
    ("code (RLE) is damaged", {"size": [20, 30], "counts": "o"}),
    ("code (RLE) is damaged", {"size": [20, 30], "counts": [700, -100]}),
    ("code (RLE) is damaged", {"size": [20, 30], "counts": [1.5, 598.5]}),
    ("code (RLE) is damaged", {"size": [20, 30]}),
]


@pytest.mark.parametrize(("words", "shape"), BAD_SHAPES)
def test_what_cannot_be_drawn_is_named(tmp_path, words, shape):
    with pytest.raises(FewShotError) as caught:
        read(tmp_path, annotations(shape))
    text = str(caught.value)
    assert f"{tmp_path}/c.json: annotation 41 on s.png: " in text and words in text
    assert len(text) < 400
    listed = prepare.Picture("s.png", *SIZE, [prepare.Annotation(1, shape, False, 41)])
    for rule in prepare.MASK_RULES:
        with pytest.raises(FewShotError) as caught:
            prepare.draw(listed, rule)
        text = str(caught.value)
        assert text.startswith("s.png: its annotation cannot be drawn (id 41: ") and words in text


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ([[0.1, 0.2, 0.6, 0.2, 0.6, 0.7]], {}, "between 0 and 1"),
        ([], {"bbox": [0.1, 0.2, 0.5, 0.5]}, "between 0 and 1"),
        ([], {}, "no box x, y, width, height"),
        (None, {}, "no box x, y, width, height"),
        ([[1, 2, 3, 4]], {"bbox": [1, 2, 0, 2]}, "no box x, y, width, height"),
        ([], {"bbox": [1, 2, NAN, 2]}, "no box x, y, width, height"),
        ([], {"bbox": [25, 2, 20, 2]}, "outside the picture"),
    ],
)
def test_supports_that_show_no_object(tmp_path, shape, changes, words):
    with pytest.raises(FewShotError, match=f"annotation 41 on s.png: .*{words}"):
        read(tmp_path, annotations(shape, **changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["images"].append({"id": 1, "file_name": "t.png"}), "two pictures .* id 1"),
        (lambda c: c["categories"].append({"id": 1, "name": "mug"}), "two categories .* id 1"),
        (lambda c: c["categories"].append({"id": 2, "name": "cup"}), "several categories 'cup'"),
        (lambda c: c["categories"].clear(), "no category 'cup'; it has: none"),
        (lambda c: c.pop("categories"), "no list of categories"),
        (lambda c: c.update(images={}), "no list of images"),
        (lambda c: c["images"].append("s.png"), "item 1 of its images has no id"),
        (lambda c: c["images"].append({"id": 7}), "item 1 of its images has no file_name"),
        (lambda c: c["annotations"].append(None), "item 1 of its annotations has no image_id"),
        (lambda c: c["annotations"][0].pop("category_id"), "has no category_id"),
        (lambda c: c["annotations"][0].update(image_id=[1]), r"id \[1\]"),
        (lambda c: c["annotations"][0].update(image_id=2), "has no 'cup' on s.png"),
    ],
)
def test_files_that_say_too_little_or_too_much(tmp_path, change, words):
    content = annotations([SQUARE])
    change(content)
    with pytest.raises(FewShotError, match=rf"c\.json.* {words}"):
        read(tmp_path, content)


def test_files_that_are_no_json(tmp_path):
    path = tmp_path / "c.json"
    for content in (b"", b"{", b"\xff\xfe{", '{"ä": 1}'.encode("latin-1"), b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(FewShotError, match=r"c\.json cannot be read as JSON"):
            CocoFile(path)
    with pytest.raises(FewShotError, match=r"none\.json cannot be read as JSON \(No such file"):
        CocoFile(tmp_path / "none.json")


def test_what_no_picture_shows_is_named(tmp_path):
    write(tmp_path / "s.png", disc(SIZE, 0)[0])
    content = annotations([SQUARE], names=["s.png", "gone.png", "bare.png"])
    content["annotations"][2]["image_id"] = 9
    saved(tmp_path, content)
    found, left_out = supports_in(tmp_path)
    assert [support.class_name for support in found] == ["cup"] and left_out == [
        f"{tmp_path}/c.json: left out: 1 picture (gone.png) not found",
        f"{tmp_path}/c.json: left out: 1 annotation (43) of none it lists",
    ]
    assert supports_in(tmp_path / "c.json")[1] == left_out
    with pytest.raises(FewShotError, match=r"c\.json: 1 annotation \(43\) of no picture it lists"):
        prepare.read_instances(tmp_path / "c.json")
    saved(tmp_path, annotations([SQUARE], categories=[(1, "cup"), (2, "cup")]))
    with pytest.raises(FewShotError, match=r"c\.json lists several categories 'cup'"):
        prepare.read_instances(tmp_path / "c.json")


@pytest.mark.parametrize("asked", ["caf\u00e9", "cafe\u0301", " caf\u00e9 "])
@pytest.mark.parametrize("written", ["caf\u00e9", "cafe\u0301 "])
def test_accents_and_blanks_make_no_other_class(tmp_path, written, asked):
    content = annotations([SQUARE], categories=[(1, written)])
    mask, _ = saved(tmp_path, content).support_mask(tmp_path / "s.png", asked, [SIZE])
    assert (mask == drawn([SQUARE], SIZE)).all()
