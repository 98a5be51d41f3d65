"""Edges finer than the network's grid: GrabCut (OpenCV) decides in a band along each edge.

Colours inside and outside decide where it lies; what is farther from it than the band stays as the
model has it.
"""

from __future__ import annotations

import cv2
import numpy as np

WORK = 640  # the longer side of the picture that GrabCut sees
BAND = 1 / 32  # of the longer side, to both sides of the edge: half a cell of the grid and more
ROUNDS = 2


def refined(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels uint8 [H, W] with their edges moved to those of the picture, uint8 RGB [H, W, 3].

    An object thinner than the band stays as it is. No pixel goes from one class to another.
    """
    height, width = labels.shape
    scale = min(1.0, WORK / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    result = labels.copy()
    for label in np.unique(labels[labels > 0]):
        found = _cut(small, coarse == label, (coarse > 0) & (coarse != label))
        if found is None:
            continue
        share = cv2.resize(found.astype(np.float32), (width, height))
        own = labels == label
        result[own & (share < 0.5)] = 0
        result[(labels == 0) & (share >= 0.5)] = label
    return result


def _cut(image: np.ndarray, mask: np.ndarray, taken: np.ndarray) -> np.ndarray | None:
    """The mask [h, w] with its edge moved, outside of ``taken``; None where it is too thin."""
    reach = max(2, round(BAND * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    here = mask.astype(np.uint8)
    # Beyond the picture the object goes on: its frame is no edge.
    inner = cv2.erode(here, disc) == 1
    if not inner.any():
        return None
    outer = cv2.dilate(here, disc) == 1
    rows, columns = (np.flatnonzero(outer.any(axis)) for axis in (1, 0))
    window = tuple(
        slice(max(0, found[0] - 2 * reach), found[-1] + 2 * reach + 1) for found in (rows, columns)
    )
    if (outer | taken)[window].all():
        return None
    places = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    places[outer] = cv2.GC_PR_BGD
    places[mask] = cv2.GC_PR_FGD
    places[inner] = cv2.GC_FGD
    places[taken] = cv2.GC_BGD
    result = mask.copy()
    result[window] = grab_cut(image[window], places[window])
    return result


def grab_cut(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The object, boolean [h, w], as OpenCV's GrabCut sees it, the same each time.

    Args:
        image: uint8 [h, w, 3].
        places: uint8 [h, w], what each pixel is or may be (``cv2.GC_FGD``, ...).
    """
    pixels, places = np.ascontiguousarray(image), places.copy()
    models = np.zeros((1, 65)), np.zeros((1, 65))
    no_box = 0, 0, 0, 0
    cv2.setRNGSeed(0)
    cv2.grabCut(pixels, places, no_box, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return places % 2 == 1
