"""A data set of a few tiny pictures and the commands that train on it, for the training tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from train import EpisodicStage
from train_base import BaseStage
from util.config import Config
from util.runtime.signals import StopRequest
from util.train.loop import fit

ROOT = Path(__file__).resolve().parent.parent
SIDE = 41
CLASSES = ("disc", "square", "stripe", "frame")


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture with two of the four classes: uint8 RGB [H, W, 3] and class ids [H, W]."""
    image = generator.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    chosen = generator.choice(len(CLASSES), 2, replace=False)
    for place, number in zip((10, 30), chosen, strict=True):
        x, y = place, int(generator.integers(10, 30))
        shape = np.zeros_like(mask)
        if number == 0:
            cv2.circle(shape, (x, y), 7, 1, -1)
        elif number == 1:
            cv2.rectangle(shape, (x - 6, y - 6), (x + 6, y + 6), 1, -1)
        elif number == 2:
            cv2.rectangle(shape, (x - 3, y - 9), (x + 3, y + 9), 1, -1)
        else:
            cv2.rectangle(shape, (x - 7, y - 7), (x + 7, y + 7), 1, 3)
        image[shape == 1] = generator.integers(130, 255, 3, dtype=np.uint8)
        mask[shape == 1] = number + 1
    return image, mask


def make_data(folder: Path, pictures: int = 16, ignored: bool = False) -> None:
    """Pictures, masks, lists and the two configuration files ``stage1.yaml``, ``stage2.yaml``.

    ignored: give half of the masks a band of 255, so that parts of a batch differ in valid pixels.
    """
    generator = np.random.default_rng(7)
    (folder / "data").mkdir(parents=True)
    lines = []
    for number in range(pictures):
        image, mask = draw(generator)
        if ignored and number % 2:
            mask[: SIDE // 3] = 255
        cv2.imwrite(str(folder / "data" / f"{number}.jpg"), image[:, :, ::-1])
        cv2.imwrite(str(folder / "data" / f"{number}.png"), mask)
        lines.append(f"{number}.jpg {number}.png\n")
    (folder / "list.txt").write_text("".join(lines))
    common: dict[str, Any] = {
        "data_set": "tiny",
        "data_root": str(folder / "data"),
        "train_list": str(folder / "list.txt"),
        "val_list": str(folder / "list.txt"),
        "class_names": list(CLASSES),
        "folds": [[1], [2]],
        "protocol": "pfenet",
        "min_pixels": 20,
        "train_h": SIDE,
        "train_w": SIDE,
        "val_size": SIDE,
        "workers": 0,
        "epochs": 2,
        "print_freq": 2,
        "episodes": 4,
        "exp_root": str(folder / "exp"),
        "backbone": "resnet18",
        "width": 8,
        "pretrained": "none",
        "base_lr": 0.001,
        "batch_size": 2,
    }
    (folder / "stage2.yaml").write_text(yaml.safe_dump({**common, "stages": 2}))
    stage1 = {**common, "arch": "PSPNet", "batch_size": 4, "fix_bn": False, "base_lr": 0.01}
    (folder / "stage1.yaml").write_text(yaml.safe_dump(stage1))


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with one thread a process and no GPU."""
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **quiet, **extra}


def command(script: str, config: Path, *arguments: Any) -> list[str]:
    """``python <script> --config <config> <arguments>``."""
    return [sys.executable, str(ROOT / script), "--config", str(config), *map(str, arguments)]


def call(script: str, config: Path, *arguments: Any, **extra: str) -> subprocess.CompletedProcess:
    """Run a training script to its end, for at most four minutes."""
    return subprocess.run(
        command(script, config, *arguments),
        cwd=config.parent,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=240,
    )


def train(cfg: Config, resume: str | None = None, stop: Any = None) -> None:
    """Train in this process, on the CPU, the stage that belongs to ``cfg``."""
    stage = BaseStage if cfg.arch == "PSPNet" else EpisodicStage
    fit(stage, cfg, torch.device("cpu"), resume, stop or StopRequest())
