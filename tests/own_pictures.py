"""Small pictures with masks, and an untrained model, for the tests of the tools for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from model import build_model
from model.fewshot import FewShotModel
from util.config import Config, load_config
from util.data.transform import normalise, val_transform

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "demo" / "demo_split0_resnet18.yaml"


def small_config(**changes: Any) -> Config:
    """The demo's model at a fixed input size, whatever the demo itself is tuned to."""
    changes = {"val_size": 81, "width": 16, "resized_val": True, **changes}
    return load_config(CONFIG, [x for pair in changes.items() for x in pair])


def untrained(cfg: Config) -> FewShotModel:
    """A model with random weights that calls about half of a picture object."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    fit = val_transform(cfg)
    (query, _), (image, mask) = (fit(*disc((80, 80), seed)) for seed in (0, 1))
    with torch.no_grad():
        out = model(
            normalise(query)[None],
            normalise(image)[None, None],
            torch.from_numpy(mask)[None, None],
        )
        odds = (out.meta[:, 1] - out.meta[:, 0]).median()
        last = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        last.bias += torch.stack([odds / 2, -odds / 2])
    return model


def disc(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture with a coloured disc: uint8 RGB [H, W, 3] and its mask {0, 1} [H, W]."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    centre = [int(rng.integers(length // 3, 2 * length // 3)) for length in size]
    cv2.circle(mask, (centre[1], centre[0]), min(size) // 4, 1, -1)
    image = rng.integers(0, 90, (*size, 3), dtype=np.uint8)
    image[mask == 1] += np.array([150, 80, 20], np.uint8)
    return image, mask


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)
    return path


def with_orientation(jpeg: Path, orientation: int) -> None:
    """Give a JPEG file an EXIF orientation tag; its stored pixels stay as they are."""
    from PIL import Image

    with Image.open(jpeg) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(jpeg, exif=exif, quality=95)
