"""Drawing: what is tinted, what is left alone, and that a panel shows what it says."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from util.draw import panels
from util.draw.charts import class_iou_chart, leakage_chart, leakage_counts, run_spread_chart
from util.draw.files import write_png
from util.draw.overlays import (
    BLUE,
    IGNORE_GREY,
    class_colour,
    draw_outline,
    heatmap,
    label_overlay,
    label_palette,
    overlay,
)
from util.draw.panels import _strip, iou, panel
from util.predict.figures import choose_episodes
from util.runtime.errors import FewShotError


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_overlay_tints_object_and_ignored_only(image):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:20] = 1
    mask[30:35, 30:35] = 255
    before = image.copy()
    drawn = overlay(image, torch.from_numpy(mask), (200, 0, 0), alpha=1.0, outline=False)
    assert (drawn[mask == 1] == (200, 0, 0)).all()
    assert (drawn[mask == 255] == IGNORE_GREY).all()
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert (image == before).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_tint_is_the_rounded_blend(image, alpha):
    mask = np.random.default_rng(1).choice([0, 1, 255], (40, 60)).astype(np.uint8)
    drawn = overlay(image, mask, (13, 200, 90), alpha, outline=False)
    expected = image.astype(np.float64)
    for value, colour in ((1, (13, 200, 90)), (255, IGNORE_GREY)):
        there = expected[mask == value]
        expected[mask == value] = np.rint(there * (1 - alpha) + np.array(colour) * alpha)
    np.testing.assert_array_equal(drawn, expected)


def test_outline_keeps_to_the_border(image):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 10:50] = 1
    changed = (draw_outline(image, mask, BLUE) != image).any(axis=2)
    assert changed[5, 10:50].all() and not changed[15:25, 20:40].any() and not changed[:2].any()


def test_wrong_sizes_are_refused(image):
    with pytest.raises(ValueError, match="differ in size"):
        overlay(image, np.zeros((40, 61)))
    with pytest.raises(ValueError, match="differ in size"):
        label_overlay(image, np.ones((40, 61), np.uint8))
    with pytest.raises(ValueError, match="RGB"):
        overlay(image[..., 0], np.zeros((40, 60)))
    with pytest.raises(ValueError, match="uint8"):
        overlay(image.astype(np.float32), np.zeros((40, 60)))


def test_heatmap_orders_values_and_survives_odd_maps():
    values = torch.arange(6.0).reshape(2, 3)
    heat = heatmap(values, (20, 30))
    assert heat.shape == (20, 30, 3) and heat.dtype == np.uint8
    dark, bright = heat[0, 0].astype(int), heat[-1, -1].astype(int)
    assert bright[1] > dark[1] + 100 and dark[2] > bright[2]  # viridis: from blue to yellow
    assert (heatmap(10 * values - 3, (20, 30)) == heat).all()  # own range
    assert len(np.unique(heatmap(np.ones((2, 2)), (4, 4)).reshape(-1, 3), axis=0)) == 1
    gaps = heatmap(np.array([[np.nan, 1.0], [0.0, np.inf]]), (2, 2))
    assert (gaps[0, 0] == gaps[1, 0]).all() and (gaps[1, 1] == gaps[1, 0]).all()


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
@settings(max_examples=60, deadline=None)
def test_iou_against_sets(found, true, ignored):
    def bits(number):
        return np.array([number >> i & 1 for i in range(16)], np.uint8).reshape(4, 4)

    mask = np.where(bits(ignored) == 1, 255, bits(true)).astype(np.uint8)
    counted = 0xFFFF & ~ignored
    union = (found | true) & counted
    value = iou(bits(found), mask)
    if union:
        assert value == (found & true & counted).bit_count() / union.bit_count()
    else:
        assert math.isnan(value)


def episode(image, shots=1):
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[10:30, 10:30] = 1
    maps = [np.linspace(0, 1, n * n).reshape(n, n) for n in (12, 6, 3)]
    return dict(
        support_images=[image] * shots,
        support_masks=[mask] * shots,
        query_image=image,
        query_mask=mask,
        prediction=np.roll(mask, 10, axis=1),
        prior=np.zeros((2, 12, 12)),
        correlations=maps,
    )


def titles(monkeypatch) -> list[str]:
    seen: list[str] = []
    strip = panels._strip
    monkeypatch.setattr(panels, "_strip", lambda *a: seen.append(a[0]) or strip(*a))
    return seen


def test_panel_names_class_and_iou(image, monkeypatch):
    seen = titles(monkeypatch)
    drawn = panel(**episode(image), class_name="Çılbır", title="run 3")
    assert drawn.dtype == np.uint8 and drawn.ndim == 3
    assert drawn.shape[1] == 4 * 246 + 6
    assert seen[0] == "Çılbır  ·  IoU 0.333  ·  run 3"
    assert "prediction  IoU 0.333" in seen and "prior" in seen
    assert [s for s in seen if s.startswith("correlation")] == [
        "correlation, stage 1 (12×12)",
        "correlation, stage 2 (6×6)",
        "correlation, stage 3 (3×3)",
    ]


def test_panel_with_many_supports_and_nothing_known(image, monkeypatch):
    seen = titles(monkeypatch)
    parts = episode(image, shots=8) | {"query_mask": None, "prior": None, "correlations": None}
    drawn = panel(**parts)
    assert [s for s in seen if s.startswith("support")] == [
        f"support {i} of 8" for i in range(1, 6)
    ]
    assert seen[-2:] == ["query", "prediction"] and not any("IoU" in s for s in seen)
    assert drawn.shape[1] == 7 * 246 + 6


def test_panel_shows_the_prediction(image):
    parts = episode(image)
    other = panel(**(parts | {"prediction": np.zeros_like(parts["prediction"])}))
    drawn = panel(**parts)
    differs = (drawn != other).any(axis=(0, 2))
    assert differs[2 * 246 + 6 : 3 * 246].any()  # the third tile
    left = drawn[60:][:, : 2 * 246] != other[60:][:, : 2 * 246]
    assert not left.any()


def test_long_titles_are_shortened(image):
    assert _strip("x" * 500, 200, 22, 12).shape == (22, 200, 3)


def test_label_overlay_and_palette(image):
    labels = np.zeros((40, 60), np.uint8)
    labels[:10], labels[30:] = 1, 2
    drawn = label_overlay(image, labels, alpha=1.0)
    assert (drawn[3, 20] == class_colour(1)).all()
    assert (drawn[36, 20] == class_colour(2)).all()
    assert (drawn[20] == image[20]).all()
    palette = label_palette()
    assert len(palette) == 768 and tuple(palette[3:6]) == class_colour(1)


def test_write_png_names_what_it_cannot_write(tmp_path, image):
    path = write_png(tmp_path / "new" / "a.png", image)
    assert (cv2.imread(str(path))[..., ::-1] == image).all()
    with pytest.raises(FewShotError, match="a.png"):
        write_png(path / "b.png", image)


def test_charts_are_written(tmp_path):
    scores = {"final": {"cat": 0.7, "dog": 0.5}, "meta": {"cat": 0.6, "dog": 0.4}}
    paths = [
        class_iou_chart(tmp_path / "class.png", scores),
        run_spread_chart(tmp_path / "runs.png", {"1,000": [0.5, 0.6], "10,000": [0.55]}),
        leakage_chart(tmp_path / "leak.png", {"cat": {"cat": 9, "dog": 1}, "cow": {}}),
    ]
    for path in paths:
        assert cv2.imread(str(path)).std() > 5
    with pytest.raises(ValueError):
        class_iou_chart(tmp_path / "none.png", {})
    with pytest.raises(ValueError):
        run_spread_chart(tmp_path / "none.png", {"1,000": []})
    with pytest.raises(ValueError):
        leakage_chart(tmp_path / "none.png", {})


def test_leakage_counts_true_classes_of_predicted_pixels():
    labels = np.array([[0, 3], [3, 255]], np.uint8)
    counts = leakage_counts(np.array([[1, 1], [0, 1]]), labels)
    assert counts.shape == (256,) and counts[[0, 3, 255]].tolist() == [1, 1, 1]
    assert counts.sum() == 3


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_chosen_episodes(scores, count):
    chosen = choose_episodes(scores, count)
    every = chosen["best"] + chosen["median"] + chosen["worst"]
    defined = [s for s in scores if s == s]
    assert len(every) == len(set(every)) == min(3 * count, len(defined))
    assert [scores[i] for i in chosen["best"]] == sorted(defined, reverse=True)[:count]
    worst = [scores[i] for i in chosen["worst"]]
    assert worst == sorted(defined)[: len(worst)]
    if len(defined) > 3 * count > 0:
        median = sorted(scores[i] for i in chosen["median"])
        assert median[0] <= sorted(defined)[len(defined) // 2] <= sorted(defined)[-count]
