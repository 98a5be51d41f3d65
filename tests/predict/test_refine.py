"""Edges of masks moved to those of the picture."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.own_pictures import disc
from util.predict.refine import refined


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def blocky(mask: np.ndarray, cell: int) -> np.ndarray:
    """What is left of a mask on a grid of cells."""
    height, width = (length // cell for length in mask.shape)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)


def test_a_blocky_mask_gets_the_edge_of_the_picture():
    image, mask = disc((320, 400), 0)
    rough = blocky(mask, 16)
    found = refined(image, rough)
    assert overlap(rough > 0, mask > 0) < 0.93 and overlap(found > 0, mask > 0) > 0.99
    large = cv2.resize(image, (1600, 1280)), cv2.resize(rough, (1600, 1280), interpolation=0)
    whole = cv2.resize(mask, (1600, 1280), interpolation=0)
    assert overlap(refined(*large) > 0, whole > 0) > 0.98


def test_the_same_twice():
    image, mask = disc((120, 160), 3)
    rough = blocky(mask, 8)
    assert np.array_equal(refined(image, rough), refined(image, rough))


def test_what_is_too_thin_or_fills_all_stays():
    image, _ = disc((160, 200), 1)
    thin = np.zeros((160, 200), np.uint8)
    thin[80:83] = 1
    for labels in (thin, np.zeros_like(thin), np.full_like(thin, 2), thin[:2, :2]):
        assert np.array_equal(refined(image[: labels.shape[0], : labels.shape[1]], labels), labels)


def test_what_is_gone_at_the_size_that_is_worked_on_stays():
    """Of two objects on a large picture the smaller one is lost where GrabCut works."""
    image, mask = disc((320, 400), 0)
    image, labels = (cv2.resize(a, (2000, 1600), interpolation=0) for a in (image, mask))
    labels[101:103, 100:102] = 2
    found = refined(image, labels)
    assert np.array_equal(found == 2, labels == 2) and (found == 1).any()


@given(st.integers(0, 10**6), st.integers(20, 90), st.integers(20, 90), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_no_pixel_changes_from_one_class_to_another(seed, height, width, classes):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    for label in range(1, classes + 1):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(labels, centre, int(rng.integers(5, 40)), label, -1)
    found = refined(image, labels)
    assert found.shape == labels.shape and found.dtype == np.uint8
    changed = found != labels
    assert ((found == 0) | (labels == 0))[changed].all()
    assert set(np.unique(found)) <= set(np.unique(labels)) | {0}
