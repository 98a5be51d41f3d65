"""labelme files, and COCO files without a class named: the object read is the object drawn."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.data.test_coco import SIZE, SQUARE, drawn
from tests.data.test_coco import annotations as coco
from tests.own_pictures import disc, with_orientation, write
from util.data.annotations import annotation_file, object_on
from util.data.labelme import LabelmeFile
from util.predict.supports import supports_in, supports_named
from util.runtime.errors import FewShotError

PAIRS = [[2, 3], [8, 3], [8, 9], [2, 9]]


def shape(points: Any = PAIRS, kind: Any = "polygon", label: Any = "cup") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, "group_id": None}


def content(*shapes: Any, size=SIZE, image: Any = "s.png", **changes) -> dict[str, Any]:
    """What labelme saves."""
    sides = {"imageHeight": size and size[0], "imageWidth": size and size[1]}
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image,
            "imageData": None, **sides, **changes}  # fmt: skip


def png(mask: np.ndarray) -> str:
    """A mask as labelme writes it into its JSON."""
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]).decode()


def saved(path: Path, what: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))
    return path


def read(folder: Path, what: Any, size=SIZE, label: str = "cup") -> np.ndarray:
    found = LabelmeFile(saved(folder / "s.json", what))
    return found.support_mask(folder / "s.png", label, [size])[0]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_object_read_is_the_object_drawn(tmp_path, data):
    """Polygons, rectangles by any two corners and circles, one or two of a label, in frames of the
    picture's size and of another."""
    frame = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)), "frame")
    factor = data.draw(st.sampled_from([1, 1, 2, 3]), "factor")
    size = (frame[0] * factor, frame[1] * factor)
    point = st.tuples(st.floats(0, frame[1], width=32), st.floats(0, frame[0], width=32))
    shapes, expected = [], np.zeros(size, np.uint8)
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(
            st.sampled_from(["polygon", "rotation", "rectangle", "circle", None]), "kind"
        )
        least, most = (2, 2) if kind in ("rectangle", "circle") else (3, 6)
        points = data.draw(st.lists(point, min_size=least, max_size=most), "points")
        shapes.append(shape(points, kind))
        if kind == "circle":
            (x, y), (rim_x, rim_y) = points
            for row, column in np.ndindex(*size):
                off = ((column + 0.5) / factor - x) ** 2 + ((row + 0.5) / factor - y) ** 2
                expected[row, column] |= off <= (rim_x - x) ** 2 + (rim_y - y) ** 2
            continue
        assume(max(map(max, points)) >= 1.5)
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        expected |= drawn([[v * factor for pair in points for v in pair]], size)
    what = content(shape(PAIRS, label="other"), *shapes, size=frame)
    if not expected.any():
        with pytest.raises(FewShotError, match=r"s\.json: the shapes of 'cup' enclose no pixel"):
            read(tmp_path, what, size)
        return
    np.testing.assert_array_equal(read(tmp_path, what, size), expected)


@pytest.mark.parametrize("factor", [1, 3])
def test_masks_as_labelme_keeps_them(tmp_path, factor):
    """A picture of the box around the object, as its AI tools leave it."""
    inside = np.random.default_rng(0).random((7, 5)) < 0.5
    expected = np.zeros(SIZE, np.uint8)
    expected[4:11, 20:25] = inside
    what = {**shape([[20, 4], [24, 10]], "mask"), "mask": png(inside)}
    size = (SIZE[0] * factor, SIZE[1] * factor)
    expected = np.kron(expected, np.ones((factor, factor), np.uint8))
    np.testing.assert_array_equal(read(tmp_path, content(what), size), expected)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_frames_of_the_picture_as_shown_and_as_stored(tmp_path, orientation):
    picture = write(tmp_path / "s.jpg", disc(SIZE, 0)[0])
    with_orientation(picture, orientation)
    shown = SIZE if orientation == 1 else SIZE[::-1]
    frames = {(2 * shown[0], 2 * shown[1]): shown, shown: shown, SIZE: SIZE}
    for frame, size in frames.items():
        scale = frame[0] / size[0]
        points = [[x * scale, y * scale] for x, y in PAIRS]
        file = saved(tmp_path / "s.json", content(shape(points), size=frame, image="s.jpg"))
        mask, _ = object_on(picture, annotation_file(file), "cup")
        np.testing.assert_array_equal(mask, drawn([SQUARE], size))
    file = saved(tmp_path / "s.json", content(shape(), size=(20, 90)))
    with pytest.raises(FewShotError, match=r"s\.json says that .*90×20 .* another shape"):
        object_on(picture, annotation_file(file), "cup")
    file = saved(tmp_path / "s.json", content(shape(), size=None))
    assert object_on(picture, annotation_file(file), "cup")[0].shape == shown


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (shape(kind="linestrip"), "a linestrip encloses nothing here: draw a polygon"),
        (shape(kind="point"), "a point encloses nothing"),
        (shape(kind="mask"), "its mask is missing or damaged"),
        (
            {**shape(kind="mask"), "mask": "AAAA"},
            "its mask: the picture cannot be read (not a picture",
        ),
        ({**shape(kind="mask"), "mask": "not base64!"}, "its mask is missing or damaged"),
        (
            {**shape([[28, 2], [29, 9]], "mask"), "mask": png(np.eye(4))},
            "of 4×4 leaves the picture",
        ),
        ({**shape([[-1, 2], [9, 9]], "mask"), "mask": png(np.eye(4))}, "of 4×4 leaves the picture"),
        (shape(PAIRS[:2]), "a polygon of 2 points encloses nothing"),
        (shape(PAIRS[:1], "rectangle"), "a rectangle of 1 points encloses nothing"),
        (shape(PAIRS, "circle"), "a circle is two points"),
        (shape([[1, 2], [3, float("inf")]], "circle"), "a circle is two points"),
        (shape([[90, 2], [80, 2]], "circle"), "reaches 90,2, outside the picture of 30×20"),
        (shape([[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]), "between 0 and 1"),
        (shape([[1, 2], [50, 2], [3, 9]]), "reaches 50,2, outside"),
        (shape([[1, 2], [float("nan"), 2], [3, 9]]), "no number"),
        (shape([1, 2, 3, 4, 5, 6]), "no list of pairs"),
        (shape([["1", "2"]] * 3), "no list of pairs"),
        (shape(None), "no list of pairs"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_named(tmp_path, what, words):
    with pytest.raises(FewShotError) as caught:
        read(tmp_path, content(shape(label="other"), what))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/s.json: shape 1 ('cup'): ") and words in text
    # What another label is drawn with does not matter.
    assert read(tmp_path, content(shape(label="other"), what), label="other").sum() == 36


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (content(shape(), imageHeight=0), "its picture has the width 30 and the height 0"),
        (content(shape(), imageWidth="wide"), "its picture has the width 'wide'"),
        (content(shape(), imagePath=None), "no imagePath"),
        (content(shape(), imagePath=" / "), "no imagePath"),
        (content(shape(label=" ")), "shape 0 has no label"),
        (content(shape(), "shape"), "shape 1 has no label"),
        ({"shapes": {}}, "no list of shapes"),
        (content(shape(label="mug")), "has no shape 'cup'; it has: mug"),
        (content(), "has no shape 'cup'; it has: none"),
        ([1], "neither labelme's .shapes. nor COCO's"),
        ({"version": 1}, "neither labelme's .shapes. nor COCO's"),
        ({"images": [], "annotations": []}, "no list of categories"),
    ],
)
def test_files_that_say_too_little(tmp_path, what, words):
    with pytest.raises(FewShotError, match=rf"s\.json.* {words}"):
        path = saved(tmp_path / "s.json", what)
        annotation_file(path).support_mask(tmp_path / "s.png", "cup", [SIZE])


def test_files_that_are_no_json(tmp_path):
    (tmp_path / "s.json").write_text('{"shapes": [')
    for call in (annotation_file, supports_in):
        with pytest.raises(FewShotError, match=r"s\.json cannot be read as JSON \(Expecting"):
            call(tmp_path / "s.json")
    with pytest.raises(FewShotError, match=r"s\.json cannot be read as JSON"):
        supports_in(tmp_path)
    with pytest.raises(FewShotError, match=r"none\.json: there is no such file"):
        supports_in(tmp_path / "none.json")


# ----------------------------------------------------------------------- folders and files of them


def listed(folder: Path, path: Path | None = None) -> tuple[list[tuple[str, str]], str]:
    """(picture, class) of every support below ``folder``, and what was left out."""
    found, left_out = supports_in(path or folder)
    names = [(s.image.resolve().relative_to(folder).as_posix(), s.class_name) for s in found]
    assert all(s.annotation()["mask"].any() for s in found)
    return names, "; ".join(left_out)


def test_pictures_as_labelme_names_them(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg", "deep/c.jpg", "apart/d.jpg", "e.jpg"):
        write(folder / name, disc(SIZE, 0)[0])
    both = content(shape(label="cup"), shape(label="plate"), shape(label=7), image="a.jpg")
    saved(folder / "a.json", both)
    saved(folder / "b.json", content(shape(), image="C:\\mine\\b.jpg"))  # moved since
    saved(folder / "deep" / "c.json", content(shape(), image="c.jpg"))
    saved(folder / "labels" / "d.json", content(shape(), image="..\\apart\\d.jpg"))
    saved(folder / "settings.json", {"theme": "dark"})
    found, left_out = listed(folder)
    assert found == [("a.jpg", "cup"), ("a.jpg", "plate"), ("a.jpg", "7"), ("b.jpg", "cup"),
                     ("deep/c.jpg", "cup"), ("apart/d.jpg", "cup")]  # fmt: skip
    assert "no annotations: 1 file (settings.json)" in left_out
    assert "left out: 1 picture (e.jpg) in no annotation file" in left_out
    assert listed(folder, folder / "b.json") == ([("b.jpg", "cup")], "")
    (folder / "b.jpg").unlink()
    with pytest.raises(FewShotError, match=r"b\.json is about .*/b\.jpg, and there is no such"):
        supports_in(folder)


@pytest.mark.parametrize(
    "layout",
    ["{}", "images/{}", "annotations/../train/{}", "train/{}"],
)
def test_pictures_as_coco_lists_them(tmp_path, layout):
    names = ["1.png", "2.png", "3.png"]
    what = coco([SQUARE], SIZE, names, ((1, "cup"), (2, "plate")))
    what["annotations"][1]["category_id"] = 2
    what["annotations"].append({**what["annotations"][0], "id": 99, "category_id": 2})
    del what["annotations"][2]
    for name in (*names[:2], "9.png"):
        write((tmp_path / layout.format(name)).resolve(), disc(SIZE, 0)[0])
    part = "annotations" if layout.startswith("annotations") else "."
    path = saved(tmp_path / part / "c.json", what)
    found, left_out = listed(tmp_path)
    assert [(Path(image).name, name) for image, name in found] == [
        ("1.png", "cup"), ("1.png", "plate"), ("2.png", "plate")]  # fmt: skip
    assert "1 picture (" in left_out and "9.png) in no annotation file" in left_out
    if layout in ("{}", "images/{}"):
        assert listed(tmp_path, path)[0] == found
    else:
        with pytest.raises(FewShotError, match="the folder that holds both"):
            supports_in(path)


def test_two_pictures_that_could_be_the_listed_one(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "s.png", disc(SIZE, 0)[0])
    saved(tmp_path / "c.json", coco([SQUARE]))
    with pytest.raises(FewShotError, match=r"a/s\.png and .*b/s\.png could both be s\.png"):
        supports_in(tmp_path)


def test_without_a_class_every_class_of_the_picture(tmp_path):
    picture = write(tmp_path / "s.png", disc(SIZE, 0)[0])
    labelme = saved(tmp_path / "s.json", content(shape(), shape(label="plate")))
    several = saved(tmp_path / "c.json", coco([SQUARE]))
    for file, names in ((labelme, ["cup", "plate"]), (several, ["cup"])):
        found = supports_named([str(picture), str(file)])
        assert [support.class_name for support in found] == names
        assert supports_named([str(picture), str(file), "x"])[0].class_name == "x"
    assert supports_named([str(picture), "mask.png"])[0].class_name == "object"
    with pytest.raises(FewShotError, match=r"s\.json has no object on .*s\.png"):
        supports_named([str(picture), str(saved(tmp_path / "s.json", content()))])
    with pytest.raises(FewShotError, match=r"c\.json lists no picture called t\.png"):
        supports_named([str(tmp_path / "t.png"), str(several)])


def test_accents_make_no_other_class_and_labelmes_own_labels_none(tmp_path):
    write(tmp_path / "s.png", disc(SIZE, 0)[0])
    shapes = [shape(label=name) for name in ("caf\u00e9", "cafe\u0301", "__ignore__")]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content(*shapes)))
    file = LabelmeFile(path)
    assert file.classes_on(tmp_path / "s.png") == ["caf\u00e9"]
    assert file.support_mask(tmp_path / "s.png", "cafe\u0301", [SIZE])[0].any()
