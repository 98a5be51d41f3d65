"""Objects marked by clicks, and masks at another threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.own_pictures import disc
from util.data.shapes import box_mask, polygon_mask
from util.draw.overlays import BLUE
from util.draw.panels import iou
from util.predict.sketch import Sketch, object_at
from util.predict.threshold import class_scores, labels_at

SIZE = (60, 80)
POINT = st.tuples(st.integers(0, 79), st.integers(0, 59))


def sketch(tool: str, *clicks) -> Sketch:
    found = Sketch(disc(SIZE, 0)[0], tool)
    for x, y in clicks:
        found.click(x, y)
    return found


@given(POINT, POINT, POINT)
@settings(max_examples=30, deadline=None)
def test_two_clicks_span_a_box(first, second, third):
    (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(first, second, strict=True))
    found = sketch("box", first, second, third)  # the third begins another one
    if (x1, y1) != (0, 0):
        np.testing.assert_array_equal(found.mask, box_mask(SIZE, (x0, y0, x1 + 1, y1 + 1)))
    assert found.open == [third] and len(found.parts) == 1


def test_a_polygon_ends_on_its_first_corner_and_another_one_is_added():
    corners, more = [(10, 10), (60, 12), (40, 50)], [(2, 40), (12, 40), (12, 55)]
    expected = polygon_mask(SIZE, [np.ravel(corners)])
    found = sketch("polygon", *corners)
    np.testing.assert_array_equal(found.mask, expected)  # shown before it is closed
    found.click(12, 9)
    assert found.parts == [corners] and found.open == []
    for point in more:
        found.click(*point)
    found.close()
    assert found.parts == [corners, more]
    np.testing.assert_array_equal(found.mask, expected | polygon_mask(SIZE, [np.ravel(more)]))
    found.undo()  # of the closing
    assert found.open == more
    assert sketch("polygon", *corners[:2]).mask.sum() == 0


@given(st.sampled_from(["box", "polygon"]), st.lists(POINT, min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_undo_takes_the_last_click_back(tool, clicks):
    before, after = sketch(tool, *clicks[:-1]), sketch(tool, *clicks)
    after.undo()
    np.testing.assert_array_equal(after.mask, before.mask)
    assert (after.open, after.parts) == (before.open, before.parts)
    for _ in range(2 * len(clicks)):
        after.undo()
    assert not after.mask.any() and not after.open and not after.parts


def test_clicks_outside_the_picture_are_on_its_border():
    assert sketch("box", (-5, -9), (500, 500)).mask.all()


@pytest.mark.parametrize("seed", range(3))
def test_a_point_finds_the_object_around_it(seed):
    image, mask = disc((90, 120), seed)
    rows, columns = np.nonzero(mask)
    centre = (int(columns.mean()), int(rows.mean()))
    found = object_at(image, [centre])
    assert iou(found, mask) > 0.9
    np.testing.assert_array_equal(object_at(image, [centre]), found)


def test_points_add_what_is_missing_and_remove_what_is_too_much():
    image = np.full((80, 160, 3), 60, np.uint8)
    image[20:60, 10:50] = (200, 40, 40)
    image[20:60, 60:100] = (40, 200, 40)
    found = Sketch(image, "point")
    found.click(30, 40)
    first = found.mask.copy()
    assert first[40, 30] and not first[40, 80]
    found.click(80, 40)
    assert found.mask[40, 30] and found.mask[40, 80] and found.open == [(30, 40), (80, 40)]
    found.click(90, 30)
    assert found.outside == [(90, 30)] and not found.mask[30, 90]
    found.undo()
    found.undo()
    np.testing.assert_array_equal(found.mask, first)
    found.undo()
    found.undo()
    assert not found.mask.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 300), (300, 40), (7, 7)])
def test_points_on_pictures_of_every_shape(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    corner = (size[1] - 1, size[0] - 1)
    for points in ([(0, 0)], [(0, 0), corner, (size[1] // 2, size[0] // 2)]):
        found = object_at(image, points, [corner] if len(points) == 1 else [])
        assert found.shape == size and set(np.unique(found)) <= {0, 1}


@pytest.mark.parametrize("tool", ["box", "polygon", "point"])
def test_what_was_clicked_is_shown(tool):
    found = sketch(tool, (20, 20))
    shown = found.drawn(BLUE)
    assert shown.shape == (*SIZE, 3) and (shown[20, 20] == BLUE).all()
    assert (found.image == disc(SIZE, 0)[0]).all()


# -------------------------------------------------------------------------------------- threshold


def softmax(odds: np.ndarray) -> np.ndarray:
    powers = np.exp(np.concatenate([np.zeros_like(odds[:1]), odds]).astype(np.float64))
    return (powers / powers.sum(0)).astype(np.float32)


ODDS = arrays.arrays(np.float32, (3, 2, 4), elements=st.floats(-6, 6, width=16))


@given(ODDS, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_thresholds(odds, low, high):
    """The half is the model's decision; a class alone counts where it is above the threshold, and
    a higher one takes pixels away without giving any to another class."""
    scores = class_scores(softmax(odds))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-odds)), atol=1e-4)
    decided = np.concatenate([np.zeros_like(odds[:1]), odds]).argmax(0)
    gaps = np.diff(np.sort(np.concatenate([np.zeros_like(odds[:1]), odds]), axis=0)[-2:], axis=0)
    clear = gaps[0] > 1e-3
    assert (labels_at(scores, 0.5) == decided)[clear].all()
    np.testing.assert_array_equal(labels_at(scores[:1], low), scores[0] > np.float32(low))
    less, more = (labels_at(scores, value) for value in sorted((low, high))[::-1])
    assert ((less == more) | (less == 0)).all()


def test_scores_of_probabilities_that_were_rounded_to_nothing():
    assert class_scores(np.zeros((2, 1, 1), np.float32)) == 0
