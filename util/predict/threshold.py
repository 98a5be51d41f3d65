"""Masks at another threshold than the model's own, from probabilities that are there already."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def class_scores(probabilities: np.ndarray) -> np.ndarray:
    """How each class alone stands against the background, float32 [C, H, W] in [0, 1].

    Of probabilities softmax(0, z_1, ..., z_C) in any unit, [1 + C, H, W], this is the sigmoid of
    z_c: with one class its probability, with several what it would be without the others.
    """
    background, *classes = probabilities
    scores = np.zeros((len(classes), *background.shape), np.float32)
    for score, probability in zip(scores, classes, strict=True):
        both = probability + background
        np.divide(probability, both, out=score, where=both > 0)
    return scores


def labels_at(scores: np.ndarray, threshold: float, without: Collection[int] = ()) -> np.ndarray:
    """The surest class where its score is above the threshold, else 0: uint8 [H, W].

    At 0.5 this is the model's own decision, up to rounding where a score is 0.5.

    Args:
        scores: of :func:`class_scores`.
        without: labels that no pixel gets (``Prediction.not_found``).
    """
    best = np.full(scores.shape[1:], threshold, scores.dtype)
    labels = np.zeros(scores.shape[1:], np.uint8)
    for number, score in enumerate(scores, start=1):
        if number in without:
            continue
        above = score > best
        labels[above] = number
        best[above] = score[above]
    return labels
