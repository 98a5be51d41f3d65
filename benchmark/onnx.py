"""The photograph model in PyTorch, on onnxruntime, in a browser: loading, memory, time, room."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmark.browser import Isolated, Quiet, missing, seconds_in_the_browser, served
from benchmark.one_predictor import picture
from model import build_model
from util.config import load_config
from util.weights.onnx import export_onnx
from util.weights.onnx_about import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config/photos/photos_split0_tf_efficientnet_lite0.yaml"
ROUNDS = 3  # processes of each engine, in turns


def predictors(folder: Path) -> list[dict]:
    """Rows: engine; MB on disk, seconds to load (imports included), milliseconds for a support and
    for a picture with one class of one support, the highest memory of the process; medians over
    processes in turns. Weights are random: they change none of it.

    folder: takes the files that are measured.
    """
    torch.manual_seed(0)
    cfg = load_config(CONFIG)
    weight = folder / "model.pth"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.to_dict()}, weight)
    rows = [{"engine": "PyTorch", "mb": weight.stat().st_size / 1e6}]
    asked = [("torch", weight)]
    for weights in WEIGHTS:
        written = export_onnx(cfg, weight, folder / weights, weights)
        size, difference = sum(written.sizes.values()), max(written.differences.values())
        rows.append(
            {"engine": f"onnxruntime {weights}", "mb": size / 1e6, "difference": difference}
        )
        asked.append(("onnx", folder / weights))
    rounds = [[_measured(*each) for each in asked] for _ in range(ROUNDS)]
    for row, times in zip(rows, zip(*rounds, strict=True), strict=True):
        row |= {key: statistics.median(each[key] for each in times) for key in times[0]}
    if lacking := missing():
        print(f"not measured in a browser, which needs {', '.join(lacking)}")
        return rows
    for name, handler in (("one core", Quiet), ("all cores", Isolated)):
        with served(folder / "int8", folder / "site", handler) as address:
            times = seconds_in_the_browser(address, picture(), folder)
        size = sum(path.stat().st_size for path in (folder / "site").iterdir())
        rows.append({"engine": f"Chromium int8, {name}", "mb": size / 1e6, **times})
    return rows


def _measured(engine: str, path: Path) -> dict[str, float]:
    """What one process of ``benchmark.one_predictor`` found."""
    words = [sys.executable, "-m", "benchmark.one_predictor", engine, str(path)]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
