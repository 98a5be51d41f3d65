"""Integer counts: against counting by hand, additivity, edges, and the spread over runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from util.evaluate.metrics import (
    HIT,
    BinaryCounts,
    ClassCounts,
    ThresholdCounts,
    fb_iou,
    object_iou,
    spread,
)


def episodes(seed: int, count: int, classes: tuple[int, ...]):
    """Random predictions of both heads and targets with ignored pixels."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 9, 2)
        found = torch.from_numpy(rng.random((2, height, width)) < 0.5)
        target = torch.from_numpy(rng.choice([0, 1, 255], (height, width)).astype(np.uint8))
        yield int(rng.integers(2)), int(rng.choice(classes)), found, target


def by_hand(items, run: int, head: int, classes: tuple[int, ...]):
    """mIoU and FB-IoU through Python sets of pixels."""
    hit, union = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0)
    back_hit = back_union = 0
    for r, class_id, found, target in items:
        if r != run:
            continue
        for f, t in zip(found[head].flatten().tolist(), target.flatten().tolist(), strict=True):
            if t == 255:
                continue
            hit[class_id] += f and t == 1
            union[class_id] += f or t == 1
            back_hit += (not f) and t == 0
            back_union += (not f) or t == 0
    ious = [hit[c] / union[c] for c in classes if union[c]]
    miou = sum(ious) / len(ious) if ious else math.nan
    both = [sum(hit.values()) / sum(union.values())] if sum(union.values()) else []
    both += [back_hit / back_union] if back_union else []
    return miou, sum(both) / len(both) if both else math.nan


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_binary_counts_equal_counting_by_hand(seed: int, count: int) -> None:
    classes = (3, 7, 11)
    items = list(episodes(seed, count, classes))
    counts = BinaryCounts(2, classes, ("final", "meta"))
    for run, class_id, found, target in items:
        counts.add([run], [class_id], found[None], target[None])
    for head, name in enumerate(counts.heads):
        for run in range(2):
            expected = by_hand(items, run, head, classes)
            got = counts.miou(name)[run], counts.fb_iou(name)[run]
            np.testing.assert_allclose(got, expected, rtol=1e-12, equal_nan=True)


def test_a_batch_counts_like_its_episodes_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(5, 2, 6, 7, generator=generator) < 0.4
    target = torch.randint(0, 3, (5, 6, 7), generator=generator, dtype=torch.uint8)
    target[target == 2] = 255
    runs, classes = [0, 1, 0, 0, 1], [4, 4, 9, 4, 9]
    whole, single = (BinaryCounts(2, (4, 9), ("final", "meta")) for _ in range(2))
    rows = whole.add(runs, classes, found, target)
    for i in range(5):
        single.add(runs[i : i + 1], classes[i : i + 1], found[i : i + 1], target[i : i + 1])
    assert torch.equal(whole.counts, single.counts)
    assert whole.counts.dtype == torch.int64
    assert torch.equal(rows[2, 1], whole.counts[0, 1, 1])


def test_perfect_empty_and_absent() -> None:
    counts = BinaryCounts(1, (1, 2))
    target = torch.tensor([[0, 1], [1, 255]], dtype=torch.uint8)
    counts.add([0], [1], (target == 1)[None, None], target[None])
    assert counts.class_iou()[0, 0] == 1
    assert counts.class_iou()[0, 1].isnan(), "a class without episodes has no IoU"
    assert counts.miou() == [1.0] and counts.fb_iou() == [1.0]
    counts.add([0], [2], torch.zeros(1, 1, 2, 2, dtype=torch.bool), target[None])
    assert counts.miou() == [0.5]


def test_ignored_pixels_count_nowhere() -> None:
    counts = BinaryCounts(1, (1,))
    target = torch.full((1, 3, 3), 255, dtype=torch.uint8)
    counts.add([0], [1], torch.ones(1, 1, 3, 3, dtype=torch.bool), target)
    assert not counts.counts.any()
    assert math.isnan(counts.miou()[0])


def test_everything_found_is_the_all_foreground_prediction() -> None:
    items = list(episodes(3, 8, (1, 2)))
    counts, everything = BinaryCounts(2, (1, 2)), BinaryCounts(2, (1, 2))
    for run, class_id, found, target in items:
        counts.add([run], [class_id], found[None, :1], target[None])
        everything.add([run], [class_id], torch.ones_like(found[None, :1]), target[None])
    assert torch.equal(counts.everything_found(), everything.counts[:, :, 0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_class_counts_equal_a_confusion_matrix(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, num_classes, (5, 6))
    target = rng.choice([*range(num_classes), 255], (5, 6))
    counts = ClassCounts(2, num_classes)
    counts.add(1, torch.from_numpy(predicted), torch.from_numpy(target.astype(np.uint8)))
    counts.add(1, torch.from_numpy(target % 255), torch.from_numpy(target.astype(np.uint8)))
    valid = target != 255
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (target[valid], predicted[valid]), 1)
    np.add.at(confusion, (target[valid], target[valid]), 1)
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(counts.class_iou()[1], hit / union, equal_nan=True)
    assert not counts.counts[0].any()


def test_base_miou_leaves_the_background_out() -> None:
    counts = ClassCounts(1, 3)
    target = torch.tensor([0, 0, 1, 1, 2], dtype=torch.uint8)
    counts.add(0, torch.tensor([1, 0, 1, 1, 0]), target)
    assert counts.miou() == pytest.approx([(2 / 3 + 0) / 2])
    assert counts.miou(background=True) == pytest.approx([(1 / 3 + 2 / 3 + 0) / 3])


def test_thresholds_equal_thresholding_every_map() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = ThresholdCounts(2, (5, 6), maps=2)
    direct = {}
    for run, class_id in ((0, 5), (0, 6), (1, 6), (1, 6)):
        target = torch.randint(0, 3, (7, 5), generator=generator, dtype=torch.uint8)
        target[target == 2] = 255
        # Values in the middle of the bins: rounding cannot move them over an edge.
        scores = (torch.randint(0, 400, (2, 7, 5), generator=generator) + 0.5) / 200 - 1
        counts.add(run, class_id, scores, target)
        for step in (0, 100, 200, 333, 400):
            found = (scores >= -1 + step / 200)[None]
            binary = direct.setdefault(step, BinaryCounts(2, (5, 6), ("a", "b")))
            binary.add([run], [class_id], found, target[None])
    table = counts.at_every_threshold()
    for step, binary in direct.items():
        for which in range(2):
            assert torch.equal(table[which, step], binary.counts[:, :, which])


def test_best_threshold_is_found() -> None:
    target = torch.zeros(10, 10, dtype=torch.uint8)
    target[2:6, 2:6] = 1
    noise = torch.rand(10, 10, generator=torch.Generator().manual_seed(2))
    useful = torch.where(target == 1, 0.8, 0.3)
    counts = ThresholdCounts(1, (1,), maps=2)
    counts.add(0, 1, torch.stack([noise, useful]), target)
    which, threshold, best = counts.best()
    assert which == 1 and 0.3 < threshold <= 0.8
    assert object_iou(best).item() == 1 and fb_iou(best) == [1.0]
    assert best[0, 0, HIT] == 16


def test_scores_outside_the_range_are_clamped() -> None:
    counts = ThresholdCounts(1, (1,), maps=1)
    scores = torch.tensor([[[-3.0, -1.0, 1.0, 1.0000001]]])
    counts.add(0, 1, scores, torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8))
    assert counts.counts.sum() == 4
    assert counts.counts[0, 0, 0, 0, 0] == 2 and counts.counts[0, 0, 0, -1, 1] == 2


def test_spread_over_runs() -> None:
    mean, deviation, half = spread([0.6, 0.7, 0.8])
    assert mean == pytest.approx(0.7) and deviation == pytest.approx(0.1)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)  # Student's t, 2 degrees
    assert spread([0.5]) == (0.5, None, None)
