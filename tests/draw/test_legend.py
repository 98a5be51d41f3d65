"""A legend names the colours, where it hides least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_text import TEXT
from util.draw.legend import LEAST_SIDE, with_legend
from util.draw.overlays import BLUE, ORANGE, PAPER

CLASSES = {"mug": BLUE, "plate": ORANGE}


@pytest.mark.parametrize("corner", [0, 1, 2, 3])
def test_a_legend_stands_where_it_hides_least(corner):
    picture = np.zeros((300, 400, 3), np.uint8)
    bottom, right = divmod(corner, 2)
    free = np.s_[150 * bottom : 150 + 150 * bottom, 200 * right : 200 + 200 * right]
    labels = np.ones((300, 400), np.uint8)
    labels[free] = 0
    shown = with_legend(picture, CLASSES, labels)
    where = np.zeros((300, 400), bool)
    where[free] = True
    assert not picture.any() and not shown[~where].any()
    for colour in (*CLASSES.values(), PAPER):
        assert (shown[free] == colour).all(-1).sum() > 30


def test_no_legend_on_a_picture_that_it_would_hide():
    small = np.zeros((40, LEAST_SIDE - 1, 3), np.uint8)
    assert not with_legend(small, CLASSES, small[..., 0]).any()
    large = np.zeros((40, LEAST_SIDE, 3), np.uint8)
    assert with_legend(large, CLASSES, large[..., 0]).any()
    assert not with_legend(large, {}, large[..., 0]).any()


@given(TEXT, st.tuples(st.integers(1, 400), st.integers(1, 400)))
@settings(max_examples=60, deadline=None)
def test_legends_take_every_name_and_size(name, size):
    picture = np.zeros((*size, 3), np.uint8)
    shown = with_legend(picture, {name: BLUE}, picture[..., 0])
    assert shown.shape == picture.shape and shown.dtype == np.uint8
    assert (shown == 0).all(-1).sum() >= picture[..., 0].size // 3
